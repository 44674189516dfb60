"""Whether a recipe's evaluations give what it chooses by: the best checkpoint, early stopping, a plateau's rate."""

from collections.abc import Mapping
from typing import Any

from sft.recipe.settings import ValidationSettings

# What an evaluation gives to choose by, and whether more of it is better; None where neither can be said.
_OF_THE_LOSS: Mapping[str, bool | None] = {"loss": False, "mean_token_accuracy": True, "entropy": None}
_OF_THE_ROLLOUT: Mapping[str, bool | None] = {"swa": True, "swa_target": True}
_PLATEAU = ("reduce_lr_on_plateau", "greedy")  # learning rates that follow a metric
_EVAL_STRATEGIES = ("no", "steps", "epoch")
_SAVE_STRATEGIES = (*_EVAL_STRATEGIES, "best")
# TRL's defaults
_SAVE_STRATEGY, _SAVE_STEPS, _LOGGING_STEPS = "steps", 500, 10


def find_validation_contradictions(
    has_validation: bool, validation: ValidationSettings, training: Mapping[str, Any]
) -> list[str]:
    """Return every problem of the keys that say when to evaluate and what to do with the result."""
    problems = []
    strategy, has_best = training.get("eval_strategy", "no"), bool(training.get("load_best_model_at_end"))
    for key, among in {"eval_strategy": _EVAL_STRATEGIES, "save_strategy": _SAVE_STRATEGIES}.items():
        if training.get(key) is not None and training[key] not in among:
            problems.append(f"{key}: found {training[key]}; expected one of {', '.join(among)}")
    if problems:
        return problems
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
        "lr_scheduler_type": training.get("lr_scheduler_type") in _PLATEAU and training["lr_scheduler_type"],
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
    save_strategy = training.get("save_strategy", _SAVE_STRATEGY)
    if save_strategy == "best":
        return []
    if save_strategy != strategy:
        return [
            f"load_best_model_at_end: found save_strategy {save_strategy} and eval_strategy {strategy}; expected the "
            "same, or save_strategy: best"
        ]
    if strategy != "steps":
        return []
    eval_steps = training.get("eval_steps") or training.get("logging_steps", _LOGGING_STEPS)
    save_steps = training.get("save_steps", _SAVE_STEPS)
    # in millionths, as shares of all steps are no round numbers
    is_multiple = round(save_steps * 1e6) % round(eval_steps * 1e6) == 0 and (save_steps < 1) == (eval_steps < 1)
    if not is_multiple:
        return [
            f"load_best_model_at_end: found save_steps {save_steps:g} and eval_steps {eval_steps:g}; expected "
            "save_steps to be a multiple of eval_steps, both numbers of steps or both shares below 1"
        ]
    return []
