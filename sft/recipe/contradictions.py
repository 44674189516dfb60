"""Which values of a recipe do not go together. Reads settings alone: no data, no model."""

from collections.abc import Mapping
from typing import Any

from sft.recipe.countries import list_countries

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
}


def find_contradictions(settings: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    data, model, agent, validation = (settings[name] for name in ("data", "model", "agent", "validation"))
    values = {name: value for part in settings.values() for name, value in vars(part).items()}
    problems = [
        f"{name}: found {values[name]}; expected at least {least}"
        for name, least in _LEAST.items()
        if values[name] is not None and values[name] < least
    ]
    if agent.min_pixels > agent.max_pixels:
        problems.append(f"max_pixels: found {agent.max_pixels}; expected at least min_pixels={agent.min_pixels}")
    if not 0 <= model.lora_dropout < 1:
        problems.append(f"lora_dropout: found {model.lora_dropout}; expected a share from 0 to below 1")
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
    if not 0 <= data.val_split < 1:
        problems.append(f"val_split: found {data.val_split}; expected a share from 0 to below 1")
    country = settings["compute"].country_iso_code
    if country is not None and country not in list_countries():
        problems.append(f"country_iso_code: found {country!r}; expected an ISO 3166 code of three letters, e.g. DEU")
    if data.val_csv and data.val_split:
        problems.append("val_split: found together with val_csv; expected one of the two")
    has_validation = bool(data.val_csv or data.val_split)
    if training.get("eval_strategy", "no") != "no" and not has_validation:
        problems.append("eval_strategy: found no validation data; give val_csv or val_split")
    if training.get("metric_for_best_model") in ("swa", "eval_swa") and not validation.val_rollout_tasks:
        problems.append("metric_for_best_model: found swa without a rollout; expected val_rollout_tasks above 0")
    if validation.early_stopping_patience is not None and not training.get("load_best_model_at_end"):
        problems.append("early_stopping_patience: found without load_best_model_at_end; expected it to be true")
    if model.load_in_4bit and not model.use_peft:
        problems.append("use_peft: found false with load_in_4bit; 4-bit weights train through LoRA only")
    if model.use_peft and not (model.lora_parts or model.lora_modules_to_save):
        problems.append("lora_parts: found nothing to train; expected at least one of language, merger, vision")
    return problems
