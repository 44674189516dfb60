"""Which values of a recipe do not go together. Reads settings alone, each within its bounds: no data, no model."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from sft.actions import POINT
from sft.recipe.settings import DataSettings, ModelSettings, ValidationSettings, list_countries
from sft.recipe.training_keys import find_value

FOLLOW_A_METRIC = ("reduce_lr_on_plateau", "greedy")  # schedules that do
_NO_WARMUP = ("constant", *FOLLOW_A_METRIC)
# What an evaluation gives to choose by, and whether more of it is better; None where neither can be said.
_OF_THE_LOSS: Mapping[str, bool | None] = {"loss": False, "mean_token_accuracy": True, "entropy": None}
_OF_THE_ROLLOUT: Mapping[str, bool | None] = {"swa": True, "swa_target": True}


def find_contradictions(settings: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    """Return every problem of values that contradict each other; `settings` are the sections of a recipe by name."""
    data, model, agent, validation = (settings[name] for name in ("data", "model", "agent", "validation"))
    problems = []
    if training.get("dataloader_persistent_workers") and not training.get("dataloader_num_workers"):
        problems.append(
            "dataloader_persistent_workers: found without workers; expected dataloader_num_workers above 0"
        )
    if training.get("warmup_steps") and training.get("lr_scheduler_type") in _NO_WARMUP:
        problems.append(
            f"warmup_steps: found with lr_scheduler_type {training['lr_scheduler_type']}, which has no warm-up; "
            "expected another, such as constant_with_warmup"
        )
    if training.get("fp16") and training.get("use_cpu"):
        problems.append("fp16: found with use_cpu, where it does nothing; expected bf16 or neither")
    names = [action.name.upper() for action in agent.actions]
    if not names or len(set(names)) < len(names):
        problems.append(f"actions: found {', '.join(names) or 'none'}; expected at least one, each name once")
    if pointing := [action.name for action in agent.actions if POINT in action.arguments and not agent.points]:
        problems.append(
            f"actions: found the argument {POINT} of {', '.join(pointing)}; expected points: true, which gives it to "
            "every action with a target, and its value to every row with a box"
        )
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
    problems += _find_checkpointing_contradictions(training)
    country = settings["compute"].country_iso_code
    if country is not None and country not in list_countries():
        problems.append(f"country_iso_code: found {country!r}; expected an ISO 3166 code of three letters, e.g. DEU")
    if data.val_csv and data.val_split:
        problems.append("val_split: found together with val_csv; expected one of the two")
    if data.vision_cache_gb:
        problems += _find_reasons_to_keep_no_vision(data, model)
    problems += _find_validation_contradictions(bool(data.val_csv or data.val_split), validation, training)
    problems += _find_loss_contradictions(settings["batch"].loss_weights, training)
    if model.load_in_4bit and not model.use_peft:
        problems.append("use_peft: found false with load_in_4bit; 4-bit weights train through LoRA only")
    if model.use_peft and not (model.lora_parts or model.lora_modules_to_save):
        problems.append("lora_parts: found nothing to train; expected at least one of language, merger, vision")
    return problems


def _find_reasons_to_keep_no_vision(data: DataSettings, model: ModelSettings) -> list[str]:
    """What the vision tower makes of a screenshot can be kept where no training changes it, and in a folder."""
    problems = []
    if data.screenshot_cache is None:
        problems.append("vision_cache_gb: found without screenshot_cache; expected the folder to keep outputs in")
    trained = [part for part in ("vision", "merger") if part in model.lora_parts]
    if trained or not model.use_peft:
        what = f"lora_parts with {' and '.join(trained)}" if model.use_peft else "use_peft: false"
        problems.append(
            f"vision_cache_gb: found together with {what}, whose training changes what is kept; expected a frozen "
            "vision tower and merger (use_peft: true, lora_parts without vision and merger), or vision_cache_gb: null"
        )
    return problems


def _find_checkpointing_contradictions(training: Mapping[str, Any]) -> list[str]:
    """Selective checkpointing is torch's non-reentrant kind, with what is kept decided here."""
    form, details = find_value(training, "gradient_checkpointing"), training.get("gradient_checkpointing_kwargs")
    if form not in ("selective", "auto") or not isinstance(details, Mapping):
        return []
    return [
        f"gradient_checkpointing_kwargs: found {key}: {str(details[key]).lower()} with gradient_checkpointing {form}; "
        f"expected it without {key}, or gradient_checkpointing: true"
        for key in ("use_reentrant", "selective", "context_fn")
        if details.get(key)
    ]


def _find_loss_contradictions(loss_weights: Mapping[Any, float], training: Mapping[str, Any]) -> list[str]:
    """Both other losses are computed of something else than the weighted log-probabilities."""
    is_smoothed, is_dft = bool(training.get("label_smoothing_factor")), training.get("loss_type") == "dft"
    problems = []
    if is_smoothed and loss_weights:
        problems.append("label_smoothing_factor: found together with loss_weights; expected one of the two")
    if is_dft and loss_weights:
        problems.append("loss_type: found dft together with loss_weights; expected one of the two")
    if is_smoothed and is_dft:
        problems.append("label_smoothing_factor: found with loss_type dft, which has none; expected one of the two")
    return problems


def _find_validation_contradictions(
    has_validation: bool, validation: ValidationSettings, training: Mapping[str, Any]
) -> list[str]:
    """Return every problem of the keys that say when to evaluate and what to do with the result."""
    problems = []
    strategy, has_best = find_value(training, "eval_strategy"), bool(training.get("load_best_model_at_end"))
    if not has_validation:
        problems += _find_missing_data(strategy, has_best, training)
    problems += _find_metric_problems(validation, training)
    if validation.early_stopping_patience is not None and not has_best:
        problems.append("early_stopping_patience: found without load_best_model_at_end; expected it to be true")
    if training.get("save_strategy") == "best" and "metric_for_best_model" not in training and not has_best:
        problems.append("save_strategy: found best without metric_for_best_model; expected the metric to save by")
    for key, value in {
        "load_best_model_at_end": has_best and "true",
        "save_strategy": training.get("save_strategy") == "best" and "best",
        "lr_scheduler_type": training.get("lr_scheduler_type") in FOLLOW_A_METRIC and training["lr_scheduler_type"],
    }.items():
        if value and strategy == "no":
            way_out = ", or load_best_model_at_end: false" if key == "load_best_model_at_end" else ""
            problems.append(
                f"{key}: found {value} without evaluations; expected eval_strategy steps or epoch{way_out}"
            )
    if has_best and strategy != "no":
        problems += _find_missed_saves(strategy, training)
    return problems


def _find_missing_data(strategy: str, has_best: bool, training: Mapping[str, Any]) -> list[str]:
    """Name every key that needs validation data, and the values with which a run does without."""
    needs = {
        "eval_strategy": strategy != "no" and "no",
        "eval_on_start": bool(training.get("eval_on_start")) and "false",
        "load_best_model_at_end": has_best and "false",
    }
    without = " ".join(f"--{key} {value}" for key, value in needs.items() if value)
    return [
        f"{key}: found no validation data; give val_csv or val_split, or train without: {without}"
        for key in ("eval_strategy", "eval_on_start")
        if needs[key]
    ]


def _find_metric_problems(validation: ValidationSettings, training: Mapping[str, Any]) -> list[str]:
    name = training.get("metric_for_best_model")
    metric = str("loss" if name is None else name).removeprefix("eval_")
    yielded = {**_OF_THE_LOSS, **(_OF_THE_ROLLOUT if validation.val_rollout_tasks else {})}
    among = ", ".join(yielded)
    if metric not in yielded:
        if metric in _OF_THE_ROLLOUT:
            return [
                f"metric_for_best_model: found {metric} without a rollout; expected val_rollout_tasks above 0, or one "
                f"of {among}"
            ]
        return [f"metric_for_best_model: found {name}, which no evaluation gives; expected one of {among}"]
    is_greater, wanted = training.get("greater_is_better"), yielded[metric]
    if wanted is None and is_greater is None:  # else transformers would take the highest without a word
        return [f"metric_for_best_model: found {name}; expected greater_is_better beside it: true or false"]
    if is_greater is not None and wanted is not None and is_greater != wanted:
        what = "more" if wanted else "less"
        return [f"greater_is_better: found {str(is_greater).lower()} with {metric}, of which {what} is better"]
    return []


def _find_missed_saves(strategy: str, training: Mapping[str, Any]) -> list[str]:
    """The best evaluation's weights are kept where a checkpoint can be saved at each evaluation."""
    save_strategy = find_value(training, "save_strategy")
    if save_strategy == "best":
        return []
    if save_strategy != strategy:
        return [
            f"load_best_model_at_end: found save_strategy {save_strategy} and eval_strategy {strategy}; expected the "
            "same, or save_strategy: best"
        ]
    if strategy != "steps":
        return []
    eval_steps = training.get("eval_steps") or find_value(training, "logging_steps")
    save_steps = find_value(training, "save_steps")
    # in millionths, as shares of all steps are no round numbers
    is_multiple = round(save_steps * 1e6) % round(eval_steps * 1e6) == 0 and (save_steps < 1) == (eval_steps < 1)
    if not is_multiple:
        return [
            f"load_best_model_at_end: found save_steps {save_steps:g} and eval_steps {eval_steps:g}; expected "
            "save_steps to be a multiple of eval_steps, both numbers of steps or both shares below 1"
        ]
    return []
