"""Checkpoints on disk: named when whole, checked before use, the best and the last kept. Knows nothing of models.

A checkpoint is written to `unfinished/` and renamed once it is complete, so one under its own name was whole when it
got it. Its `checkpoint.json` holds size and SHA-256 of every file, which tells what was cut or changed afterwards.
Order is by step, never by a clock.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.errors import UserError
from sft.files import force_to_disk, hash_file
from sft.json_text import parse_json

MANIFEST_NAME = "checkpoint.json"
UNFINISHED_NAME = "unfinished"
_FORMAT = 1
_PICKLES = (".pt", ".pth", ".bin", ".pkl")
# What the states of a training refer to beside what torch takes for safe: random numbers, DeepSpeed's loss scale
_KNOWN_STATES = {
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
log = logging.getLogger("sft")


def name_checkpoint(step: int) -> str:
    return f"checkpoint-{step}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the folders `checkpoint-N`, lowest step first."""
    return sorted((p for p in output_dir.glob("checkpoint-*") if _is_named(p)), key=read_step)


def read_step(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def finish_checkpoint(written: Path, final: Path, run: Mapping[str, Any]) -> None:
    """Describe a completely written folder in its manifest, force it to disk and give it its name.

    `run` says which recipe and data it belongs to (`sft.training.resume.describe_run`).
    """
    files = {str(p.relative_to(written)): p for p in sorted(written.rglob("*")) if p.is_file()}
    entries = {name: {"bytes": path.stat().st_size, "sha256": hash_file(path)} for name, path in files.items()}
    manifest = written / MANIFEST_NAME
    manifest.write_text(json.dumps({"format": _FORMAT, "files": entries, "run": run}, indent=1), encoding="utf-8")
    for path in (*files.values(), manifest, *(p for p in written.rglob("*") if p.is_dir()), written):
        force_to_disk(path)
    if final.exists():
        remove_checkpoint(final)
    written.rename(final)
    force_to_disk(final.parent)


def find_damage(checkpoint: Path) -> str | None:
    """Return what makes a checkpoint unusable, or None where every file is as it was written."""
    try:
        manifest = _read_manifest(checkpoint)
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        dict(manifest["run"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST_NAME} cannot be read ({type(error).__name__}: {error})"
    for name, (expected_bytes, expected_sha256) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if (n_bytes := path.stat().st_size) != expected_bytes:
            return f"{name} has {n_bytes} bytes; expected {expected_bytes}"
        if hash_file(path) != expected_sha256:
            return f"{name} has other content than was written"
    return None


def find_code(checkpoint: Path) -> str | None:
    """Return what in a checkpoint's pickled states could run code when they are loaded, or None where nothing could.

    DeepSpeed loads its states whatever they call (0.19). Whoever made the folder made its manifest too, so a whole
    checkpoint may hold anything. Nothing is loaded here: the names are read that the pickles refer to.
    """
    from torch.serialization import get_unsafe_globals_in_checkpoint

    for path in sorted(p for p in checkpoint.rglob("*") if p.suffix in _PICKLES and p.is_file()):
        try:
            named = set(get_unsafe_globals_in_checkpoint(str(path))) - _KNOWN_STATES
        except Exception as error:  # of a forged file torch's reader raises whatever it meets
            return f"{path.relative_to(checkpoint)} is no state that torch saved ({error})"
        if named:
            return f"{path.relative_to(checkpoint)} calls {', '.join(sorted(named))}"
    return None


def find_newest_whole(output_dir: Path) -> Path | None:
    """Return the whole checkpoint of the highest step; damaged ones above it are set aside and named in the log."""
    for checkpoint in reversed(list_checkpoints(output_dir)):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        aside = set_aside(checkpoint)
        log.warning("%s: %s; set aside as %s", checkpoint, damage, aside.name)
    return None


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint so that it is neither resumed from nor counted; return its new path."""
    names = (f"aside-{checkpoint.name}{f'-{i}' if i else ''}" for i in range(1000))
    aside = next(path for name in names if not (path := checkpoint.with_name(name)).exists())
    checkpoint.rename(aside)
    return aside


def copy_checkpoint(checkpoint: Path, final: Path) -> None:
    """Copy a whole checkpoint of another folder to `final`, which has its name only once it is all there."""
    check_disk_space(final.parent, read_size(checkpoint))
    written = prepare_unfinished(final.parent) / final.name
    shutil.copytree(checkpoint, written)
    for path in (*written.rglob("*"), written):
        force_to_disk(path)
    written.rename(final)
    force_to_disk(final.parent)
    clear_unfinished(final.parent)


def is_copy(checkpoint: Path, other: Path) -> bool:
    """Say whether a checkpoint, if there is one, is whole and has the content of another whole one."""
    return find_damage(checkpoint) is None and _read_manifest(checkpoint) == _read_manifest(other)


def read_run(checkpoint: Path) -> dict[str, Any]:
    """Return what `finish_checkpoint` was told of the run a whole checkpoint belongs to."""
    return _read_manifest(checkpoint)["run"]


def read_size(checkpoint: Path) -> int:
    """Return the bytes of a whole checkpoint."""
    return sum(entry["bytes"] for entry in _read_manifest(checkpoint)["files"].values())


def prune_checkpoints(output_dir: Path, limit: int | None, best: Path | None) -> None:
    """Remove the lowest steps until `limit` checkpoints are left; the newest and the best always stay."""
    checkpoints = list_checkpoints(output_dir)
    if not limit or not checkpoints:
        return
    kept = {checkpoints[-1].name} | ({best.name} if best else set())
    excess = len(checkpoints) - max(limit, len(kept))
    for checkpoint in [c for c in checkpoints if c.name not in kept][: max(excess, 0)]:
        remove_checkpoint(checkpoint)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint so that a kill in between leaves none that is half there under its name."""
    waste = checkpoint.parent / UNFINISHED_NAME / f"removed-{checkpoint.name}"
    waste.parent.mkdir(exist_ok=True)
    checkpoint.rename(waste)
    shutil.rmtree(waste)


def prepare_unfinished(output_dir: Path) -> Path:
    """Return the empty folder that the next checkpoint is written to."""
    clear_unfinished(output_dir)
    folder = output_dir / UNFINISHED_NAME
    folder.mkdir(parents=True)
    return folder


def clear_unfinished(output_dir: Path) -> None:
    """Remove what is left in `unfinished/`, also of a killed run."""
    if (folder := output_dir / UNFINISHED_NAME).exists():
        shutil.rmtree(folder)


def check_disk_space(output_dir: Path, n_bytes: int) -> None:
    """Make sure the next checkpoint, of about `n_bytes`, fits on the disk.

    Raises:
        UserError: it does not.
    """
    free = shutil.disk_usage(output_dir).free
    if free < n_bytes:
        raise UserError(
            f"{output_dir}: found {free / 1e6:.1f} MB free on the disk; expected {n_bytes / 1e6:.1f} MB for the next "
            "checkpoint: make room, then resume with --resume auto; earlier checkpoints are untouched"
        )


def _is_named(path: Path) -> bool:
    return path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name) is not None


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    manifest = parse_json((checkpoint / MANIFEST_NAME).read_text(encoding="utf-8"))
    if manifest.get("format") != _FORMAT:
        raise ValueError(f"found format {manifest.get('format')!r}; expected {_FORMAT}")
    return manifest
