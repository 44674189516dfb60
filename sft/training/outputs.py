"""What a training leaves behind: weights, checked, and all that a rollout and a reader need beside them."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.agent import agent_to_json
from sft.data.overlap import TRAINING_DATA
from sft.data.problems import QUARANTINE_NAME, write_quarantine
from sft.data.train_val import TaskSplit, describe_tasks
from sft.files import hash_file, write_whole
from sft.models.model_folder import ADAPTER_CONFIG, ADAPTER_FILE, SMALL_FILES, is_adapter
from sft.recipe.recipe import Recipe, resolves_to_bf16
from sft.training.checkpoint_folder import UNFINISHED_NAME
from sft.versions import read_versions

if TYPE_CHECKING:
    from sft.training.checkpoint_trainer import CheckpointTrainer

# What a rollout or an export of the weights needs to know: how prompts are made, which base, which tasks were seen.
RUN_FILES = ("agent_config.json", "training_data.json", "versions.json", "recipe.yaml")
# What a training writes into its folder and would replace there; `WRITTEN_FIRST` says that the folder is one's own.
WRITTEN_FIRST = TRAINING_DATA
WRITTEN = (
    *("README.md", UNFINISHED_NAME, *RUN_FILES, *SMALL_FILES, ADAPTER_FILE, ADAPTER_CONFIG, "*.safetensors"),
    *("trainer_state.json", "training_curves.png", QUARANTINE_NAME),
)
log = logging.getLogger("sft")


def save_run_files(recipe: Recipe, split: TaskSplit, folder: Path, processor: Any) -> None:
    """Save what the rollout and a reader need beside the weights: agent, recipe, versions, data, processor."""
    from accelerate import PartialState

    from sft.models.processors import save_processor

    if not PartialState().is_main_process:
        return
    folder.mkdir(parents=True, exist_ok=True)
    train_csv, val_csv = recipe.data.train_csv, recipe.data.val_csv or recipe.data.train_csv
    data = {"train": describe_tasks(split.train, train_csv, split.sha256_of[train_csv])}
    if split.val:
        data["val"] = describe_tasks(split.val, val_csv, split.sha256_of[val_csv])
    resolved = replace(recipe, training={**recipe.training, "bf16": resolves_to_bf16(recipe.training)})
    _write_json(folder / WRITTEN_FIRST, data)
    _write_json(folder / "agent_config.json", agent_to_json(recipe.agent))
    # with its hash: a file that was edited to hide what the model saw is found out
    _write_json(folder / "versions.json", {**read_versions(), WRITTEN_FIRST: hash_file(folder / WRITTEN_FIRST)})
    write_whole(folder / "recipe.yaml", resolved.to_yaml())
    write_quarantine(folder / QUARANTINE_NAME, split.quarantined)
    save_processor(processor, folder)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def save_model(trainer: "CheckpointTrainer", folder: Path) -> None:
    """Save the weights, reopen and check them, and draw the curves."""
    from sft.compute.plots import plot_curves
    from sft.models.model import check_adapter

    if trainer.args.load_best_model_at_end and trainer.state.best_global_step is None:
        log.warning("load_best_model_at_end: no evaluation gave a metric to choose by; the last weights are saved")
    trainer.save_model()
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    if is_adapter(folder):
        model, needs_update = trainer.accelerator.unwrap_model(trainer.model), trainer.has_rate_by(trainer.final_step)
        n_tensors = check_adapter(folder, model, needs_update)
        if not needs_update:
            log.warning("nothing was learned: every step up to %d had a learning rate of 0", trainer.final_step)
        log.info("adapter reopened: %d tensors, as trained", n_tensors)
    plot_curves(trainer.state.log_history, folder / "training_curves.png")
    log.info("saved to %s", folder)


def publish(recipe: Recipe, folder: Path) -> None:
    """Write the model card, once the ledger has the run's last figures, and upload where the recipe says so."""
    from sft.training.card import write_card

    write_card(folder)
    if recipe.training.get("push_to_hub"):
        from sft.training.push import push_trained

        log.info("uploaded to %s", push_trained(folder, recipe.training))
