"""Whether optimiser, learning-rate schedule and trackers of a run can be built; tried before a model is loaded.

Many need a package or a setting of their own, which transformers would only notice once the model is in memory.
"""

import dataclasses
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl import SFTConfig

# Packages of the trackers that `report_to` may name.
_TRACKERS: Mapping[str, str] = {
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
_OF_TRACKIO = ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
# Optimisers that update weights within the backward pass, where no gradient can be checked before it is used.
_WITHIN_BACKWARD = ("lomo", "adalomo")
# Optimisers that are built from the modules of the model itself: prefix, package, its name on PyPI.
_OF_THE_MODEL = {"galore": ("galore_torch", "galore-torch"), "apollo": ("apollo_torch", "apollo-torch")}
_OF_SOME_OPTIMISERS = ("optim_args", "adam_beta1", "adam_beta2", "adam_epsilon")


def find_missing_parts(training: "SFTConfig") -> list[str]:
    """Return why a part that `training` names cannot be built here, and which of its settings no part reads."""
    trackers = [name for name in training.report_to or [] if name != "kubeflow"]  # added by its environment
    problems = [
        f"report_to: found {name}; expected some of {', '.join(_TRACKERS)}, or none"
        for name in trackers
        if name not in _TRACKERS
    ]
    problems += [
        f"report_to: found {name}, whose package {_TRACKERS[name]} is missing; expected it installed, or report_to: "
        "tensorboard"
        for name in trackers
        if name in _TRACKERS and find_spec(_TRACKERS[name]) is None
    ]
    if "trackio" not in trackers:
        defaults = {field.name: field.default for field in dataclasses.fields(training)}
        problems += [
            f"{name}: found without report_to trackio, which alone reads it"
            for name in _OF_TRACKIO
            if getattr(training, name) != defaults[name]
        ]
    return problems + _find_optimiser_problems(training) + _find_schedule_problems(training)


def _find_optimiser_problems(training: "SFTConfig") -> list[str]:
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    name = OptimizerNames(training.optim).value
    if name in _WITHIN_BACKWARD or name.endswith("_layerwise"):
        return [
            f"optim: found {name}, which updates weights within the backward pass; expected one that steps after it, "
            "so that gradients are checked first"
        ]
    family = name.split("_")[0]
    if training.optim_target_modules and family not in _OF_THE_MODEL:
        return [f"optim_target_modules: found with optim {name}; galore and apollo optimisers alone read it"]
    if family in _OF_THE_MODEL:
        package, project = _OF_THE_MODEL[family]
        missing = find_spec(package) is None
        return [f"optim: found {name}, whose package is missing; expected `pip install {project}`"] if missing else []
    if any("=" not in part for part in (training.optim_args or "=").split(",")):
        return [f"optim_args: found {training.optim_args!r}; expected key=value, separated by commas"]
    try:
        built = Trainer.get_optimizer_cls_and_kwargs(training)
    except (ImportError, ValueError) as error:
        return [f"optim: found {name}, which cannot be built here ({_shorten(error)})"]
    idle = []
    for field in dataclasses.fields(training):
        if field.name in _OF_SOME_OPTIMISERS and (found := getattr(training, field.name)) != field.default:
            setattr(training, field.name, field.default)
            if Trainer.get_optimizer_cls_and_kwargs(training) == built:
                idle.append(f"{field.name}: found {found}, which optim {name} does not read; leave it out")
            setattr(training, field.name, found)
    return idle


def _find_schedule_problems(training: "SFTConfig") -> list[str]:
    import torch
    from transformers import SchedulerType, get_scheduler

    kwargs: Any = training.lr_scheduler_kwargs
    try:
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        get_scheduler(training.lr_scheduler_type, optimiser, 1, 10, scheduler_specific_kwargs=kwargs)
    except (ValueError, TypeError) as error:
        name = SchedulerType(training.lr_scheduler_type).value
        return [
            f"lr_scheduler_kwargs: found {kwargs} with lr_scheduler_type {name}, which cannot be built of it "
            f"({_shorten(error)})"
        ]
    return []


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
