"""What a training saves beside the weights: agent, recipe, versions, data, processor."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sft.agent import agent_to_json
from sft.data.problems import QUARANTINE_NAME, write_quarantine
from sft.data.train_val import TaskSplit, describe_tasks
from sft.recipe.config import Recipe, resolves_to_bf16
from sft.versions import read_versions

# What a rollout or an export of the weights needs to know: how prompts are made, which base, which tasks were seen.
RUN_FILES = ("agent_config.json", "training_data.json", "versions.json", "recipe.yaml")


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
    write_quarantine(folder / QUARANTINE_NAME, split.quarantined)
    resolved = replace(recipe, training={**recipe.training, "bf16": resolves_to_bf16(recipe.training)})
    (folder / "recipe.yaml").write_text(resolved.to_yaml(), encoding="utf-8", errors="replace")
    for name, content in (
        ("agent_config.json", agent_to_json(recipe.agent)),
        ("training_data.json", data),
        ("versions.json", read_versions()),
    ):
        (folder / name).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace"
        )
    save_processor(processor, folder)
