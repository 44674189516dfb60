"""Converted tasks to a folder of trajectory data: CSV, screenshots named by content, report. Whole or not at all."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sft.actions import ActionType, format_action
from sft.convert.action_map import format_actions
from sft.convert.converted import ConvertedTask, DroppedTask, rebuild_memories
from sft.convert.pictures import FileNames
from sft.convert.places import place_step
from sft.data.cells import read_text
from sft.data.load import read_table, read_task_set
from sft.data.memory_audit import MEMORY_PARTS
from sft.data.problems import TrajectoryError
from sft.data.screenshots import ScreenshotFacts, inspect_bytes, read_screenshot, store_screenshot
from sft.data.table import format_csv
from sft.errors import UserError
from sft.files import write_new
from sft.json_text import dump_json

COLUMNS = (
    "Task_id",
    "Slide_number",
    "Image_id",
    "Instruction",
    "Output",
    "Grounding",
    "Application",
    "Group",
    "Detected_Elements",
    "Also_Right",
)
LEFT_OUT_IF_EMPTY = ("Detected_Elements", "Also_Right")
CSV_NAME = "data.csv"
REPORT_NAME = "conversion_report.json"
ACTIONS_NAME = "actions.yaml"
_ACTIONS_HEAD = f"# The actions of {CSV_NAME}, for a recipe; alone, this file serves as --recipe of sft.check.\n"


@dataclass
class Conversion:
    """What became of every task of a source."""

    n_tasks: int = 0
    n_steps: int = 0
    n_screenshots: int = 0
    dropped: list[DroppedTask] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the counts and reasons as the content of `conversion_report.json`."""
        return {
            "n_tasks": self.n_tasks,
            "n_steps": self.n_steps,
            "n_screenshots": self.n_screenshots,
            "n_dropped_tasks": len(self.dropped),
            "n_dropped_steps": sum(task.n_steps for task in self.dropped),
            "dropped": [asdict(task) for task in self.dropped],
            "remarks": self.remarks,
        }


def write_tasks(
    tasks: Iterable[ConvertedTask | DroppedTask],
    output_dir: Path,
    about: Mapping[str, Any],
    actions: Sequence[ActionType],
    writes_actions: bool = False,
) -> Conversion:
    """Write tasks as they come; a task that training would refuse is dropped with the reason it would give.

    `about` opens the report. `writes_actions` adds the actions that occur, as a recipe defines them. The folder
    appears under its name only when all of it is written.

    Raises:
        UserError: the folder holds something, or not one task could be converted.
    """
    with write_new(output_dir) as partial:
        return _write(tasks, partial, about, actions, writes_actions)


def _write(
    tasks: Iterable[ConvertedTask | DroppedTask],
    folder: Path,
    about: Mapping[str, Any],
    actions: Sequence[ActionType],
    writes_actions: bool,
) -> Conversion:
    conversion = Conversion()
    rows_of: dict[str, list[dict[str, str]]] = {}
    images = _ImageFolder(folder / "images")
    names = FileNames()
    for task in tasks:
        if isinstance(task, DroppedTask):
            conversion.dropped.append(task)
            continue
        task_id = read_text(task.task_id)  # as it is read back
        try:
            if not task_id or task_id in rows_of:
                raise ValueError(
                    f"found the task id {task_id!r}{' again' if task_id else ''}; expected one of its own"
                )
            rows_of[task_id] = _build_rows(replace(task, task_id=task_id), images, actions)
        except ValueError as error:
            conversion.dropped.append(DroppedTask(task_id, task.source, len(task.steps), str(error)))
            continue
        names.add(task_id, task)
        if task.remarks:
            conversion.remarks[task_id] = list(task.remarks)
    for task in names.find_doubtful():
        conversion.dropped.append(replace(task, n_steps=len(rows_of.pop(task.task_id))))
        conversion.remarks.pop(task.task_id, None)
    for task_id, remark in names.find_bare():
        if task_id in rows_of:
            conversion.remarks.setdefault(task_id, []).append(remark)
    _drop_what_training_refuses(rows_of, folder, conversion, actions)
    if not rows_of:
        reasons = "; ".join(f"{t.task_id}: {t.reason}" for t in conversion.dropped[:5])
        raise UserError(f"found no task that can be converted ({reasons or 'the source is empty'})")
    if writes_actions:
        occurring = {json.loads(row["Output"])["action"] for rows in rows_of.values() for row in rows}
        text = format_actions([a for a in actions if a.is_final or a.name in occurring])
        (folder / ACTIONS_NAME).write_text(f"{_ACTIONS_HEAD}{text}", encoding="utf-8")
    used = {row["Image_id"].partition("/")[2] for rows in rows_of.values() for row in rows}
    for file in (folder / "images").iterdir():
        if file.name not in used:
            file.unlink()
    conversion.n_tasks, conversion.n_steps = len(rows_of), sum(map(len, rows_of.values()))
    conversion.n_screenshots = len(used)
    content = {**about, **conversion.describe()}
    (folder / REPORT_NAME).write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace"
    )
    return conversion


def _build_rows(task: ConvertedTask, images: "_ImageFolder", actions: Sequence[ActionType]) -> list[dict[str, str]]:
    stored = [images.add(step.image, step.number) for step in task.steps]
    steps = [place_step(step, size, actions) for step, (_, size) in zip(task.steps, stored)]
    rows = []
    for step, memory, (name, size) in zip(steps, rebuild_memories(steps), stored):
        output = {
            **format_action(step.action),
            "short_term": dict(memory.short_term),
            "long_term": dict(memory.long_term),
        }
        grounding: dict[str, Any] = {} if step.bbox is None else {"bbox": list(step.bbox)}
        grounding |= {"screen": list(step.screen or size)}
        cells = (
            task.task_id,
            str(step.number),
            f"images/{name}",
            task.instruction,
            dump_json(output),
            dump_json(grounding),
            task.application,
            task.group,
            step.elements,
            step.also_right,
        )
        if any("\0" in cell for cell in cells):
            raise ValueError(f"step {step.number}: found a NUL character; expected text")
        rows.append(dict(zip(COLUMNS, cells)))
    return rows


class _ImageFolder:
    """Writes screenshots by content; remembers what it has checked."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._facts_of_path: dict[Path, tuple[str, ScreenshotFacts]] = {}
        folder.mkdir()

    def add(self, image: bytes | Path, number: int) -> tuple[str, tuple[int, int]]:
        """Store an image; return its file name and upright size.

        Raises:
            ValueError: it cannot be used as a screenshot.
        """
        if isinstance(image, Path) and image in self._facts_of_path:
            name, facts = self._facts_of_path[image]
            return name, facts.width_height
        data = read_screenshot(image) if isinstance(image, Path) else image
        name = image.name if isinstance(image, Path) else "the embedded image"
        facts = inspect_bytes(data, name, decode="always")
        if facts.problem:
            raise ValueError(f"step {number}: {facts.problem}")
        name = store_screenshot(data, facts, self.folder)
        if isinstance(image, Path):
            self._facts_of_path[image] = (name, facts)
        return name, facts.width_height


def _drop_what_training_refuses(
    rows_of: dict[str, list[dict[str, str]]], folder: Path, conversion: Conversion, actions: Sequence[ActionType]
) -> None:
    """Write the CSV, read it back as training would, and write it again without the tasks that were refused."""
    if not rows_of:
        return
    _write_csv(folder / CSV_NAME, rows_of)
    table = read_table(folder / CSV_NAME)
    try:
        read = read_task_set(table, actions=actions, memory_parts=MEMORY_PARTS, on_bad_rows="quarantine")
        refused = {task.task_id: task.problems for task in read.quarantined}
    except TrajectoryError as error:  # not one task is left
        refused = {
            task_id: tuple(p for p in error.problems if p.task_id == task_id) or error.problems for task_id in rows_of
        }
    for task_id, problems in refused.items():
        reason = f"{problems[0].column}: {problems[0].message}"
        conversion.dropped.append(DroppedTask(task_id, "loader", len(rows_of.pop(task_id)), reason))
        conversion.remarks.pop(task_id, None)
    if refused and rows_of:
        _write_csv(folder / CSV_NAME, rows_of)


def _write_csv(path: Path, rows_of: Mapping[str, list[dict[str, str]]]) -> None:
    rows = [row for task in rows_of.values() for row in task]
    columns = [c for c in COLUMNS if c not in LEFT_OUT_IF_EMPTY or any(row[c] for row in rows)]
    text = format_csv(columns, rows)
    path.write_bytes(text.encode("utf-8", "replace"))
