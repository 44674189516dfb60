"""`split.json`: what a split put where. Written by `sft.split`; training and rollout look their file up in it."""

from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from sft.data.hints import as_visible
from sft.data.load import TaskSet
from sft.files import hash_file
from sft.json_text import parse_json

MANIFEST_NAME = "split.json"


def describe_part(part: TaskSet) -> dict[str, Any]:
    """Return one part of the manifest; the file must be written already: its hash is taken."""
    return {
        "csv": part.path.name,
        "sha256": hash_file(part.path),
        "n_tasks": len(part.trajectories),
        "n_steps": sum(len(t.steps) for t in part.trajectories),
        "applications": dict(sorted(Counter(t.application for t in part.trajectories).items())),
        "tasks": [t.task_id for t in part.trajectories],
    }


def list_own_parts(folder: Path, source_sha256: str) -> set[str]:
    """Return the names of the parts in a folder that were split off the same data and are as they were written."""
    try:
        content = parse_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        listed = {part["csv"]: part["sha256"] for part in content["parts"].values()}
        if content["source_sha256"] != source_sha256:
            return set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()  # no split.json, or another program's
    paths = {name: folder / name for name in listed if isinstance(name, str) and Path(name).name == name}
    return {name for name, path in paths.items() if path.is_file() and hash_file(path) == listed[name]}


def find_split(csv_path: str | Path) -> dict[str, Any] | None:
    """Return what the manifest beside a CSV says of it, or None where there is none.

    `is_unchanged` is false where the file is no longer the one that was split off.
    """
    path = Path(csv_path)
    manifest = path.parent / MANIFEST_NAME
    if not path.is_file() or not manifest.is_file():
        return None
    try:
        content = parse_json(manifest.read_text(encoding="utf-8"))
        name, part = next((n, p) for n, p in content["parts"].items() if p["csv"] == path.name)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None  # another program's split.json, or one that does not name this file
    return {
        "part": name,
        "seed": content.get("seed"),
        "source_sha256": content.get("source_sha256"),
        "held_out_applications": content.get("held_out_applications", []),
        "is_unchanged": part.get("sha256") == hash_file(path),
    }


def format_split_table(manifest: dict[str, Any]) -> Table:
    """Build the table a person reads after splitting: tasks and steps of every part, by application."""
    parts = manifest["parts"]
    applications = sorted({name for part in parts.values() for name in part["applications"]})
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column("Part")
    for name in ("Tasks", "Steps", *applications):
        table.add_column(Text(as_visible(name) or "(none)"), justify="right")
    for name, part in parts.items():
        counts = [part["n_tasks"], part["n_steps"], *(part["applications"].get(a, 0) for a in applications)]
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table
