"""What the launcher and this machine must be able to do for a recipe, refused before a model is loaded.

Ways of starting processes, trackers, optimisers, schedules: many need a package or a setting of their own, which
transformers would only notice once the model is in memory.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import isfinite
from typing import TYPE_CHECKING, Any

from sft.errors import UserError
from sft.recipe.contradictions import FOLLOW_A_METRIC
from sft.recipe.recipe import Recipe, RecipeError
from sft.recipe.settings import ModelSettings
from sft.recipe.training_keys import FIXED_KEYS, find_value

if TYPE_CHECKING:
    from trl import SFTConfig

# With these accelerate (1.15, `map_pytorch_optim_to_deepspeed`) computes the same steps by DeepSpeedCPUAdam.
OFFLOADED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
_OFFLOADED = ("OPTIMIZER", "PARAM")
# Packages of the trackers that `report_to` may name.
_TRACKERS: Mapping[str, str] = {
    "azure_ml": "azureml",
    "clearml": "clearml",
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
_OUTWARD = "codecarbon"  # as a tracker of transformers'; the ledger uses it offline
_OF_TRACKIO = ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
# Optimisers that update weights within the backward pass, where no gradient can be checked before it is used.
_WITHIN_BACKWARD = ("lomo", "adalomo")
# Optimisers that are built from the modules of the model itself: prefix, package, its name on PyPI.
_OF_THE_MODEL = {"galore": ("galore_torch", "galore-torch"), "apollo": ("apollo_torch", "apollo-torch")}
_TRIED_STEPS = 100  # of a schedule, more than a plateau is given by default
_OF_SOME_OPTIMISERS = ("optim_args", "adam_beta1", "adam_beta2", "adam_epsilon")


@dataclass(frozen=True)
class Launch:
    """How `accelerate launch` started this process: `engine` is single, ddp, zero2, zero3 or one that is refused.

    `offload` is where ZeRO keeps the optimiser's state, and in ZeRO-3 the weights: none, cpu or one that is refused.
    """

    engine: str
    n_processes: int
    offload: str = "none"


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Read from the variables that `accelerate launch` and `torchrun` set how many processes work together and how."""
    n_processes = int(environment.get("WORLD_SIZE", "1"))
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        if environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none").lower() != "none":
            return Launch("deepspeed_config_file", n_processes)  # which holds what the variables would say
        devices = {environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none") for what in _OFFLOADED}
        offload = " and ".join(sorted(devices - {"none"})) or "none"
        return Launch(f"zero{environment.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}", n_processes, offload)
    for engine in ("FSDP", "MEGATRON_LM"):
        if environment.get(f"ACCELERATE_USE_{engine}", "").lower() == "true":
            return Launch(engine, n_processes)
    return Launch("ddp" if n_processes > 1 else "single", n_processes)


def check_support(
    launch: Launch, model: ModelSettings, checkpointing: bool | str, optim: str, keeps_vision: bool = False
) -> None:
    """Refuse what is known not to work; docs/cluster.md has every combination.

    `checkpointing` is the recipe's `gradient_checkpointing`.

    Raises:
        UserError: every reason, each with the way out.
    """
    problems = []
    if launch.engine not in ("single", "ddp", "zero2", "zero3"):
        problems.append(
            f"found {launch.engine}; expected one of accelerate_configs/ (one process, DDP, ZeRO-2, ZeRO-3)"
        )
    if launch.engine == "zero3":
        if model.load_in_4bit and model.dtype != "bfloat16":
            problems.append(
                f"load_in_4bit: found dtype {model.dtype} under ZeRO-3, which can only cut 4-bit weights stored as "
                "bf16; expected dtype: bfloat16, load_in_4bit: false, or ZeRO-2"
            )
        if model.load_in_4bit and (model.lora_parts != ("language",) or model.lora_modules_to_save):
            problems.append(
                f"lora_parts: found {', '.join((*model.lora_parts, *model.lora_modules_to_save))} with load_in_4bit "
                "under ZeRO-3; expected language alone, load_in_4bit: false, or ZeRO-2"
            )
        if model.use_peft and "vision" in model.lora_parts and checkpointing:
            problems.append(
                "lora_parts: found vision with gradient_checkpointing under ZeRO-3, where TRL checkpoints reentrantly "
                "and the vision tower gets no gradient; expected gradient_checkpointing: false, or ZeRO-2"
            )
        if keeps_vision:
            problems.append(
                "vision_cache_gb: found under ZeRO-3, where a process that has its outputs on disk would leave the "
                "others waiting for its share of the vision tower; expected vision_cache_gb: null, or ZeRO-2"
            )
        if checkpointing == "selective":
            problems.append(
                "gradient_checkpointing: found selective under ZeRO-3, where TRL checkpoints reentrantly, which keeps "
                "nothing but inputs; expected true, false or auto, or ZeRO-2"
            )
    if launch.offload not in ("none", "cpu"):
        problems.append(f"offload: found {launch.offload}; expected cpu or none in the accelerate configuration")
    if launch.offload != "none" and optim not in OFFLOADED_OPTIMIZERS:
        problems.append(
            f"optim: found {optim} under ZeRO with offload, which would put DeepSpeed's own optimiser in its place, "
            f"for most a 32-bit Adam; expected {' or '.join(OFFLOADED_OPTIMIZERS)}, or no offload"
        )
    if problems:
        raise UserError("\n".join(problems))


def build_training_arguments(recipe: Recipe) -> "SFTConfig":
    """Build TRL's configuration from the recipe; what TRL itself refuses becomes a `RecipeError`."""
    from trl import SFTConfig  # torch takes seconds to import: only where a run is about to start

    fixed: dict[str, Any] = {**FIXED_KEYS, "push_to_hub": False}  # sft.training.push knows what may leave, not TRL
    if recipe.batch.packing != "none":
        fixed["per_device_train_batch_size"] = fixed["per_device_eval_batch_size"] = 1
    # auto is decided once the rows are known (sft/run.py), and what is kept beside by the trainer
    fixed["gradient_checkpointing"] = bool(find_value(recipe.training, "gradient_checkpointing"))
    batch_size = find_value(recipe.training, "per_device_train_batch_size")
    try:
        training = SFTConfig(**{"per_device_eval_batch_size": batch_size, **recipe.training, **fixed})
    except (ValueError, TypeError) as error:
        keys = [key for key, value in recipe.training.items() if str(error).startswith(f"{value} is not a valid ")]
        raise RecipeError(recipe.path, [": ".join([*keys[:1], str(error)])]) from error
    if missing := find_missing_parts(training):
        raise RecipeError(recipe.path, missing)
    training._n_gpu = min(training.n_gpu, 1)  # else one process that sees more GPUs cuts each batch up for all of them
    return training


def find_missing_parts(training: "SFTConfig") -> list[str]:
    """Return why a part that `training` names cannot be built here, and which of its settings no part reads."""
    trackers = [name for name in training.report_to or [] if name != "kubeflow"]  # added by its environment
    problems = [
        f"report_to: found {name}; expected some of {', '.join(_TRACKERS)}, or none"
        for name in trackers
        if name not in (*_TRACKERS, _OUTWARD)
    ]
    if _OUTWARD in trackers:
        problems.append(
            f"report_to: found {_OUTWARD} (which all stands for too); expected the trackers by name, without it: it "
            "asks the internet where this machine is, and the ledger has the run's energy already (docs/compute.md)"
        )
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
    """Step through the schedule on a parameter of its own: settings of the wrong type act only at some step."""
    import torch
    from transformers import SchedulerType, get_scheduler

    kwargs: Any = training.lr_scheduler_kwargs
    name = SchedulerType(training.lr_scheduler_type).value
    metric = (1.0,) if name in FOLLOW_A_METRIC else ()
    try:
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=training.learning_rate)
        schedule = get_scheduler(name, optimiser, 1, _TRIED_STEPS, scheduler_specific_kwargs=kwargs)
        rates = []
        for _ in range(_TRIED_STEPS):
            optimiser.step()
            schedule.step(*metric)
            rates.append(optimiser.param_groups[0]["lr"])
        wrong = next((rate for rate in rates if not (isinstance(rate, (int, float)) and isfinite(rate))), None)
        reason = "" if wrong is None else f"it gives the learning rate {wrong}"
    except (ValueError, TypeError, ArithmeticError, AttributeError) as error:
        reason = _shorten(error)
    if not reason:
        return []
    return [
        f"lr_scheduler_kwargs: found {kwargs} with lr_scheduler_type {name}, which cannot be built of it ({reason})"
    ]


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
