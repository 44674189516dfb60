"""What is the compute ledger told of a training before it starts: recipe, data and processes; no path, no content."""

import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from sft.compute.recorder import RunRecorder
from sft.recipe.recipe import Recipe, load_yaml
from sft.recipe.settings import ComputeSettings

if TYPE_CHECKING:
    from trl import SFTConfig

    from sft.data.steps import Trajectory
    from sft.data.train_val import TaskSplit


# What TRL's configuration says of a run, its defaults included.
_NOTED_KEYS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "optim",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "bf16",
    "seed",
)


def record_training(recipe: Recipe, split: "TaskSplit", training: "SFTConfig") -> RunRecorder:
    """Return the recorder of a training run; all processes of it share one run name."""
    import torch
    from accelerate import PartialState

    state = PartialState()
    run = [uuid.uuid4().hex[:12]]
    if state.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(run)
    return RunRecorder(
        Path(cast(str, training.output_dir)),
        "training",
        recipe.compute.run_purpose,
        country=recipe.compute.country_iso_code,
        about={
            "model": shorten_path(recipe.model.model_name_or_path),
            "training": {name: _plain(getattr(training, name)) for name in _NOTED_KEYS},
            "recipe": shorten_paths(yaml.safe_load(recipe.to_yaml())),
            "data": describe_data(split.train, recipe.data.train_csv, split.sha256_of),
        },
        run=run[0],
        rank=state.process_index,
        n_processes=state.num_processes,
        n_local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes)),  # set by the launcher
        is_first_of_machine=state.is_local_main_process,
        uses_gpu=torch.cuda.is_available() and not training.use_cpu,
    )


def read_compute_settings(folder: Path) -> ComputeSettings:
    """Return what a trained model's recipe says of purpose and country; the defaults where there is no recipe.

    Raises:
        RecipeError: the recipe cannot be read.
    """
    path = folder / "recipe.yaml"
    values = load_yaml(path) if path.is_file() else {}
    return ComputeSettings(**{k: values[k] for k in vars(ComputeSettings()) if k in values})


def describe_data(trajectories: "Iterable[Trajectory]", csv_path: str, sha256_of: Mapping[str, str]) -> dict[str, Any]:
    """Return which data a run saw, by name and hash; no path and no content."""
    tasks = list(trajectories)
    return {
        "csv": shorten_path(csv_path),
        "sha256": sha256_of.get(csv_path),
        "n_tasks": len(tasks),
        "n_steps": sum(len(t.steps) for t in tasks),
    }


def shorten_path(name: str) -> str:
    """Return the last part of a local path, which may hold a user's name; a Hub id stays as it is."""
    path = Path(name)
    is_hub_id = not path.is_absolute() and name.count("/") == 1 and not path.exists() and not name.startswith(".")
    return name if is_hub_id and not path.suffix else path.name


def shorten_paths(value: Any) -> Any:
    """Return a recipe whose paths are reduced to their last part."""
    if isinstance(value, Mapping):
        return {key: shorten_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shorten_paths(item) for item in value]
    return shorten_path(value) if isinstance(value, str) and "/" in value else value


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
