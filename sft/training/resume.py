"""Whether and from where a run resumes; refused where recipe or data are no longer those it began with."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sft.batches.sampler import PACKING_RULE
from sft.errors import UserError
from sft.json_text import parse_json
from sft.recipe.launch import Launch
from sft.recipe.recipe import Recipe
from sft.recipe.training_keys import find_value
from sft.training.checkpoint_folder import (
    copy_checkpoint,
    find_code,
    find_damage,
    find_newest_whole,
    is_copy,
    list_checkpoints,
    name_checkpoint,
    read_run,
    read_step,
    set_aside,
)

if TYPE_CHECKING:
    from datasets import Dataset

# What may change when a run resumes: where things are and what is told of them, not what is computed. The files named
# here are compared by content, and accumulation by the batches of an optimiser step.
MAY_CHANGE = {
    "output_dir",
    "resume",
    "resume_anyway",
    "run_purpose",
    "country_iso_code",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "screenshot_cache",
    "vision_cache_gb",
    "image_root",
    "train_csv",
    "val_csv",
    "gradient_accumulation_steps",
    "gradient_checkpointing",  # every form gives gradients of the same bits
    "logging_steps",
    "report_to",
    "run_name",
    "disable_tqdm",
    "save_total_limit",
    "save_steps",
    "dataloader_num_workers",
    "dataloader_prefetch_factor",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "ddp_timeout",
}
# What the optimiser's and the schedule's saved state brings back, whatever a recipe says on resuming.
_KEPT_BY_STATE = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")
STATE_NAME = "trainer_state.json"  # of transformers
_SHOWN = 8
log = logging.getLogger("sft")


def describe_run(recipe: Recipe, launch: Launch, train: "Dataset", val: "Dataset | None") -> dict[str, dict[str, Any]]:
    """Return what decides the course of a run, as JSON: recipe, a hash of each task's rows, and how steps are batched.

    ZeRO's optimiser state is cut for a number of processes, so that is part of it there; elsewhere only the batches of
    an optimiser step are, and a run may resume with another number of processes.
    """
    settings = {k: v for k, v in yaml.safe_load(recipe.to_yaml()).items() if k not in MAY_CHANGE}
    accumulation = find_value(recipe.training, "gradient_accumulation_steps")
    processes: dict[str, Any] = {"batches_per_step": launch.n_processes * accumulation}
    if recipe.batch.packing != "none":
        processes["packing_rule"] = PACKING_RULE
    if launch.engine.startswith("zero"):
        processes |= {"engine": launch.engine, "processes": launch.n_processes}
    return {
        "recipe": settings,
        "train tasks": _hash_tasks(train),
        "val tasks": _hash_tasks(val) if val is not None else {},
        "launch": processes,
    }


def choose_checkpoint(recipe: Recipe, output_dir: Path, run: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """Return the checkpoint to resume from by `resume` (`auto`, a path or nothing), or None for a start at step 0.

    Checkpoints of higher steps than the one resumed from are set aside: the run will write its own.

    Raises:
        UserError: the one named is missing or damaged, recipe or data have changed, or a run that is to start at step
            0 finds checkpoints of another in its folder.
    """
    resume = recipe.resume.resume
    if resume is None:
        if found := list_checkpoints(output_dir):
            raise UserError(
                f"{output_dir}: found {found[-1].name} of an earlier run; expected --resume auto to resume from it, "
                "another output_dir, or that folder removed"
            )
        return None
    checkpoint = find_newest_whole(output_dir) if resume == "auto" else Path(resume)
    if checkpoint is None:
        log.info("resume: found no whole checkpoint in %s; starting at step 0", output_dir)
        return None
    if resume != "auto" and (damage := find_damage(checkpoint) if checkpoint.is_dir() else "there is no such folder"):
        raise UserError(f"resume: {checkpoint}: {damage}; expected a whole checkpoint: try --resume auto")
    if code := find_code(checkpoint):
        raise UserError(
            f"resume: {checkpoint}: {code}, which could run code when it is loaded; expected the states that a "
            "training saves: resume from a checkpoint that you know, or start anew in another output_dir"
        )
    if changes := find_changes(read_run(checkpoint), run):
        message = "\n".join(f"resume: {checkpoint.name}: {change}" for change in changes)
        if not recipe.resume.resume_anyway:
            raise UserError(f"{message}\nresume: start anew in another output_dir, or add --resume_anyway true")
        log.warning("%s", message)
    state = _read_state(checkpoint / STATE_NAME)
    for superseded in list_checkpoints(output_dir):
        if read_step(superseded) > state["global_step"]:
            log.warning("%s: of a later step than the one resumed from; set aside", set_aside(superseded))
    if state.get("best_global_step"):
        keep_best(checkpoint, output_dir, state, recipe)
    log.info("resume: continuing from %s", checkpoint)
    return checkpoint


def keep_best(checkpoint: Path, output_dir: Path, state: Mapping[str, Any], recipe: Recipe) -> None:
    """Make sure that the best checkpoint so far is in `output_dir`, under its step: where the trainer looks for it.

    It is known by its step alone, so that a run's folder can be moved. Where the run resumes in another folder than
    that of its checkpoint, the best one is copied there. A best one that cannot be used is set aside.

    Raises:
        UserError: it is gone or damaged, the recipe keeps the best one, and `resume_anyway` is not set.
    """
    step = int(state["best_global_step"])
    kept = output_dir / name_checkpoint(step)
    best = checkpoint if step == state["global_step"] else checkpoint.with_name(kept.name)
    damage = find_damage(best) if best.is_dir() else "there is no such folder"
    if damage is None:
        if best.resolve() != kept.resolve() and not is_copy(kept, best):
            if kept.exists():
                set_aside(kept)
            copy_checkpoint(best, kept)
        return
    message = (
        f"resume: {checkpoint.name}: the best evaluation so far ({state['best_metric']:.4g}) was at step {step}, but "
        f"{best}: {damage}"
    )
    if recipe.training.get("load_best_model_at_end") and not recipe.resume.resume_anyway:
        raise UserError(
            f"{message}; expected it whole: copy it back, or add --resume_anyway true to choose among the evaluations "
            "from now on alone"
        )
    if kept.exists():
        set_aside(kept)
    log.warning("%s; the best one is chosen among the evaluations from now on alone", message)


def find_changes(saved: Mapping[str, Mapping[str, Any]], current: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line for each value that differs, at most a few of each section."""
    lines = []
    for section in current:
        before, now = saved.get(section, {}), current[section]
        keys = [k for k in {**before, **now} if before.get(k) != now.get(k) or (k in before) != (k in now)]
        for key in keys[:_SHOWN]:
            if section.endswith("tasks"):
                what = "is new" if key not in before else "is missing" if key not in now else "has changed"
                lines.append(f"{section}: {key} {what}")
            else:
                kept = ", which the saved optimiser keeps: a new value needs a new run" * (key in _KEPT_BY_STATE)
                lines.append(f"{section}: {key}: found {now.get(key)!r}; the run began with {before.get(key)!r}{kept}")
        if len(keys) > _SHOWN:
            lines.append(f"{section}: and {len(keys) - _SHOWN} more")
    return lines


def _read_state(path: Path) -> dict[str, Any]:
    """Read what transformers saved of a training's course, as far as it is used here.

    Raises:
        UserError: it is not what a training saves.
    """
    try:
        state: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        steps = (state["global_step"], state.get("best_global_step") or 0)
        if not all(isinstance(step, int) and step >= 0 for step in steps):
            raise ValueError(f"steps {steps}")
        if steps[1] and not isinstance(state["best_metric"], (int, float)):
            raise ValueError(f"best_metric {state['best_metric']!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"resume: {path}: found no state of a training ({error}); expected that of transformers"
        ) from error
    return state


def _hash_tasks(rows: "Dataset") -> dict[str, str]:
    """Return a hash of what the model is shown and taught of each task, screenshots included."""
    digests: dict[str, Any] = defaultdict(hashlib.sha256)
    for task, *texts in zip(*(rows[c] for c in ("task_id", "image_sha256", "prompt", "completion"))):
        digests[task].update("\0".join([*texts, ""]).encode("utf-8", "surrogatepass"))
    return {task: digest.hexdigest()[:16] for task, digest in digests.items()}
