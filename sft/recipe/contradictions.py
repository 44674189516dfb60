"""Which values of a recipe do not go together. Reads settings alone: no data, no model."""

from collections.abc import Mapping
from importlib.util import find_spec
from math import isfinite
from typing import Any

from sft.recipe.countries import list_countries
from sft.recipe.validation import find_validation_contradictions

_LEAST = {
    "lora_r": 1,
    "lora_alpha": 1,
    "memory_budget_chars": 4,  # two empty objects
    "min_pixels": 1,
    "max_prompt_tokens": 1,
    "max_answer_tokens": 1,
    "tokens_per_batch": 1,
    "val_rollout_tasks": 0,
    "val_rollout_batch_size": 1,
    "early_stopping_patience": 1,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "save_total_limit": 1,
    "learning_rate": 0,
    "max_grad_norm": 0,
    "dataloader_num_workers": 0,
    "seed": 0,
    "data_seed": 0,
    "weight_decay": 0,
    "adam_epsilon": 0,
    "label_smoothing_factor": 0,
}
_BELOW_1 = ("lora_dropout", "adam_beta1", "adam_beta2")
_MOST_SEED = 2**32 - 1  # NumPy's
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")  # of transformers
_LOSSES = ("nll", "dft")
_NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
_ABOVE_0 = ("num_train_epochs", "logging_steps", "eval_steps", "save_steps")


def find_contradictions(settings: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    data, model, agent, validation = (settings[name] for name in ("data", "model", "agent", "validation"))
    values = {name: value for part in settings.values() for name, value in vars(part).items()} | dict(training)
    if endless := [name for name, value in values.items() if isinstance(value, float) and not isfinite(value)]:
        return [f"{name}: found {values[name]}; expected a finite number" for name in endless]
    problems = [
        f"{name}: found {values[name]}; expected at least {least}"
        for name, least in _LEAST.items()
        if values.get(name) is not None and values[name] < least
    ]
    problems += [
        f"{name}: found {training[name]}; expected more than 0"
        for name in _ABOVE_0
        if training.get(name) is not None and training[name] <= 0
    ]
    problems += [
        f"{name}: found {values[name]}; expected at most {_MOST_SEED}"
        for name in ("seed", "data_seed")
        if values.get(name) is not None and values[name] > _MOST_SEED
    ]
    problems += [
        f"{name}: found {values[name]}; expected a share from 0 to below 1"
        for name in _BELOW_1
        if values.get(name) is not None and not 0 <= values[name] < 1
    ]
    if training.get("label_smoothing_factor", 0) > 1:
        problems.append(f"label_smoothing_factor: found {training['label_smoothing_factor']}; expected at most 1")
    if training.get("dataloader_persistent_workers") and not training.get("dataloader_num_workers"):
        problems.append(
            "dataloader_persistent_workers: found without workers; expected dataloader_num_workers above 0"
        )
    problems += [
        f"{key}: found {training[key]}; expected one of {', '.join(_LOG_LEVELS)}"
        for key in ("log_level", "log_level_replica")
        if training.get(key, "passive") not in _LOG_LEVELS
    ]
    if training.get("loss_type", "nll") not in _LOSSES:
        problems.append(f"loss_type: found {training['loss_type']}; expected one of {', '.join(_LOSSES)}")
    if training.get("warmup_steps") and training.get("lr_scheduler_type") in _NO_WARMUP:
        problems.append(
            f"warmup_steps: found with lr_scheduler_type {training['lr_scheduler_type']}, which has no warm-up; "
            "expected another, such as constant_with_warmup"
        )
    if training.get("fp16") and training.get("use_cpu"):
        problems.append("fp16: found with use_cpu, where it does nothing; expected bf16 or neither")
    if (max_steps := training.get("max_steps", -1)) < 1 and max_steps != -1:
        problems.append(f"max_steps: found {max_steps}; expected at least 1, or -1 for num_train_epochs")
    names = [action.name.upper() for action in agent.actions]
    if not names or len(set(names)) < len(names):
        problems.append(f"actions: found {', '.join(names) or 'none'}; expected at least one, each name once")
    if agent.min_pixels > agent.max_pixels:
        problems.append(f"max_pixels: found {agent.max_pixels}; expected at least min_pixels={agent.min_pixels}")
    if settings["batch"].packing != "none":
        if model.attn_implementation not in ("sdpa", "eager"):
            problems.append(
                f"packing: {model.attn_implementation} cannot take the mask of a packed sequence; "
                "expected attn_implementation sdpa or eager, or packing: none"
            )
        problems += [
            f"{key}: found together with packing; expected tokens_per_batch, which says how much is one sequence"
            for key in ("per_device_train_batch_size", "per_device_eval_batch_size")
            if training.get(key, 1) != 1
        ]
    elif model.attn_implementation == "flash_attention_2" and find_spec("flash_attn") is None:
        problems.append(
            "attn_implementation: found flash_attention_2, whose package is missing; expected sdpa, or `pip install "
            "flash-attn`"
        )
    if not 0 <= data.val_split < 1:
        problems.append(f"val_split: found {data.val_split}; expected a share from 0 to below 1")
    country = settings["compute"].country_iso_code
    if country is not None and country not in list_countries():
        problems.append(f"country_iso_code: found {country!r}; expected an ISO 3166 code of three letters, e.g. DEU")
    if data.val_csv and data.val_split:
        problems.append("val_split: found together with val_csv; expected one of the two")
    problems += find_validation_contradictions(bool(data.val_csv or data.val_split), validation, training)
    problems += _find_loss_contradictions(settings["batch"].loss_weights, training)
    if model.load_in_4bit and not model.use_peft:
        problems.append("use_peft: found false with load_in_4bit; 4-bit weights train through LoRA only")
    if model.use_peft and not (model.lora_parts or model.lora_modules_to_save):
        problems.append("lora_parts: found nothing to train; expected at least one of language, merger, vision")
    return problems


def _find_loss_contradictions(loss_weights: Mapping[Any, float], training: Mapping[str, Any]) -> list[str]:
    """Both other losses are computed of something else than the weighted log-probabilities."""
    is_smoothed, is_dft = bool(training.get("label_smoothing_factor")), training.get("loss_type") == "dft"
    problems = [
        f"loss_weights: found {weight} for {name}; expected a number from 0"
        for name, weight in loss_weights.items()
        if not (isfinite(weight) and weight >= 0)
    ]
    if is_smoothed and loss_weights:
        problems.append("label_smoothing_factor: found together with loss_weights; expected one of the two")
    if is_dft and loss_weights:
        problems.append("loss_type: found dft together with loss_weights; expected one of the two")
    if is_smoothed and is_dft:
        problems.append("label_smoothing_factor: found with loss_type dft, which has none; expected one of the two")
    return problems
