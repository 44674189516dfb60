"""Recorded trajectories: CSV rows to validated tasks and steps. Knows nothing of prompts, models or training."""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sft.actions import DEFAULT_ACTIONS, ActionType, find_action_type
from sft.cells import Grounding, read_application, read_elements, read_gold, read_grounding
from sft.errors import UserError
from sft.memory import EMPTY_MEMORY, Answer, Memory, MemoryWriter, update
from sft.screenshots import find_image_problem

REQUIRED_COLUMNS = ("Task_id", "Image_id", "Instruction", "Output", "Grounding")
OPTIONAL_COLUMNS = ("Slide_number", "Application", "Group", "Detected_Elements")
MAX_PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a file. `row` counts records as a spreadsheet does: the header is row 1."""

    path: Path
    row: int | None
    column: str | None
    message: str

    def __str__(self) -> str:
        place = str(self.path) if self.row is None else f"{self.path}: row {self.row}"
        return f"{place}: {self.column}: {self.message}" if self.column else f"{place}: {self.message}"


class TrajectoryError(UserError):
    """A data file that cannot be used; its text lists every problem found (the first 20 and a count)."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        lines = [str(p) for p in self.problems[:MAX_PROBLEMS_SHOWN]]
        if len(self.problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"... and {len(self.problems) - MAX_PROBLEMS_SHOWN} more")
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__("\n".join([*lines, f"{len(self.problems)} {noun}; nothing was loaded."]))


@dataclass(frozen=True)
class Step:
    """One recorded step; `index` is 0-based in its task. `gold` and `grounding` are labels and reach no prompt."""

    task_id: str
    index: int
    row: int
    image_path: Path
    image_id: str
    gold: Answer
    grounding: Grounding
    elements: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """One task: a goal and its steps in order. `group` is a free label by which results are also scored apart."""

    task_id: str
    instruction: str
    application: str
    group: str
    steps: tuple[Step, ...] = field(repr=False)


def load_trajectories(
    csv_path: str | Path,
    image_root: str | Path | None = None,
    *,
    actions: Sequence[ActionType] = DEFAULT_ACTIONS,
    task_start: int = 0,
    task_end: int | None = None,
    needs_elements: bool = False,
    show_progress: bool = True,
) -> list[Trajectory]:
    """Read and validate a trajectory CSV; tasks come in natural order (`t2` before `t10`).

    Every screenshot of the chosen tasks is opened and decoded once here, so that none can fail later. `task_start` and
    `task_end` choose tasks by position, as a Python slice does. `image_root` defaults to the folder of the CSV.

    Raises:
        TrajectoryError: with every problem of the file, each naming file, row, column, what was found and expected.
    """
    path = Path(csv_path)
    rows = _read_rows(path)
    root = Path(image_root) if image_root is not None else path.parent
    if not root.is_dir():
        raise TrajectoryError([Problem(path, None, "image_root", f"found no folder {root}; expected one")])
    reader = _RowReader(path, root.resolve(), actions, needs_elements)
    by_task = _group_by_task(rows)
    chosen = sorted(by_task, key=natural_key)[task_start:task_end]
    if not chosen:
        raise TrajectoryError(
            [
                Problem(
                    path,
                    None,
                    None,
                    f"found {len(by_task)} tasks, none in task_start={task_start}, task_end={task_end}",
                )
            ]
        )
    trajectories = [reader.read_task(task_id, by_task[task_id]) for task_id in chosen]
    reader.check_images(show_progress)
    if reader.problems:
        raise TrajectoryError(sorted(reader.problems, key=lambda p: p.row or 0))
    return [t for t in trajectories if t is not None]


def gold_memories(trajectory: Trajectory, writer: MemoryWriter, budget_chars: int) -> list[Memory]:
    """Return the memory shown at each step when every answer before it was right.

    Lagged by one: entry t is made from the gold answers of steps < t only, so entry 0 is empty.
    """
    memories = [EMPTY_MEMORY]
    for step in trajectory.steps[:-1]:
        memories.append(update(memories[-1], step.gold, writer, budget_chars))
    return memories


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key under which numbers inside a text count as numbers, however long they are."""
    parts = [(part, part.lstrip("0")) for part in re.split(r"([0-9]+)", text) if part]
    return [(0, len(number), number) if part[0] in "0123456789" else (1, 0, part) for part, number in parts]


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return (row number, cells) of every record that is not blank."""

    def fail(message: str, row: int | None = None, column: str | None = None) -> TrajectoryError:
        return TrajectoryError([Problem(path, row, column, message)])

    if not path.is_file():
        raise fail("found no such file; expected a trajectory CSV")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fail(f"found bytes that are not UTF-8 at position {error.start}; save the file as UTF-8") from error
    if not text.strip():
        raise fail("found an empty file; expected a header row and one row a step")
    if "\0" in text:
        raise fail("found a NUL character; expected text: is this a CSV file?")
    csv.field_size_limit(max(131_072, len(text)))
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise fail(f"found broken CSV ({error}); expected comma-separated cells, quoted with double quotes") from error
    header = [name.strip() for name in records[0]]
    if missing := [name for name in REQUIRED_COLUMNS if name not in header]:
        for separator, name in ((";", "semicolons"), ("\t", "tabs")):
            if len(header) == 1 and separator in header[0]:
                raise fail(
                    f"found columns separated by {name}; expected commas: export the file again as CSV (comma)", 1
                )
        problems = [
            Problem(path, 1, name, f"found columns {', '.join(header)}; expected {name} too") for name in missing
        ]
        raise TrajectoryError(problems)
    if doubled := sorted({name for name in header if name and header.count(name) > 1}):
        raise TrajectoryError([Problem(path, 1, n, "found this column twice; expected it once") for n in doubled])
    rows = [(number, record) for number, record in enumerate(records[1:], start=2) if any(c.strip() for c in record)]
    if not rows:
        raise fail("found a header and no rows; expected one row a step")
    if ragged := [(n, r) for n, r in rows if len(r) != len(header)]:
        raise TrajectoryError(
            [Problem(path, n, None, f"found {len(r)} cells; expected {len(header)}") for n, r in ragged]
        )
    return [(number, dict(zip(header, record))) for number, record in rows]


def _group_by_task(rows: Iterable[tuple[int, dict[str, str]]]) -> dict[str, list[tuple[int, dict[str, str]]]]:
    by_task: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for number, cells in rows:
        by_task.setdefault(cells["Task_id"].strip(), []).append((number, cells))
    return by_task


class _RowReader:
    """Turns rows into steps and collects what is wrong with them."""

    def __init__(self, path: Path, root: Path, actions: Sequence[ActionType], needs_elements: bool):
        self.path, self.root, self.actions, self.needs_elements = path, root, actions, needs_elements
        self.problems: list[Problem] = []
        self._first_row_of_image: dict[Path, int] = {}

    def read_task(self, task_id: str, rows: list[tuple[int, dict[str, str]]]) -> Trajectory | None:
        if not task_id:
            for number, _ in rows:
                self._report(number, "Task_id", "found an empty cell; expected the task's id")
            return None
        rows = self._order(rows)
        steps = [self._read_step(task_id, i, number, cells) for i, (number, cells) in enumerate(rows)]
        self._check_same(rows, "Instruction")
        self._check_same(rows, "Application")
        self._check_same(rows, "Group")
        for step, (number, _) in list(zip(steps, rows))[:-1]:
            kind = find_action_type(step.gold.action.kind, self.actions) if step else None
            if kind is not None and kind.is_final:
                self._report(
                    number, "Output", f"found {kind.name} before the last step of task {task_id}; expected it last"
                )
        first = rows[0][1]
        if not first["Instruction"].strip():
            self._report(rows[0][0], "Instruction", "found an empty cell; expected the user's goal")
        if any(step is None for step in steps):
            return None
        application = first.get("Application", "").strip() or read_application(first["Grounding"])
        group = first.get("Group", "").strip()
        return Trajectory(task_id, first["Instruction"].strip(), application, group, tuple(s for s in steps if s))

    def check_images(self, show_progress: bool) -> None:
        """Decode every screenshot once, in threads (Pillow releases the GIL while it decodes)."""
        paths = list(self._first_row_of_image)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(find_image_problem, paths)
            bar = tqdm(found, total=len(paths), desc="Checking screenshots", unit="file", disable=not show_progress)
            for path, message in zip(paths, bar):
                if message:
                    self._report(self._first_row_of_image[path], "Image_id", message)

    def _report(self, row: int, column: str, message: str) -> None:
        self.problems.append(Problem(self.path, row, column, message))

    def _order(self, rows: list[tuple[int, dict[str, str]]]) -> list[tuple[int, dict[str, str]]]:
        """Sort by Slide_number where the column is there; file order is the order of steps where it is not."""
        if "Slide_number" not in rows[0][1]:
            return rows
        numbers: dict[int, int] = {}
        for row, cells in rows:
            text = cells["Slide_number"].strip()
            if not re.fullmatch(r"[0-9]{1,6}(\.0)?", text) or int(float(text)) < 1:
                self._report(row, "Slide_number", f"found {text[:40]!r}; expected a whole number from 1 on")
                return rows
            number = int(float(text))
            if number in numbers:
                self._report(
                    row,
                    "Slide_number",
                    f"found step {number} again (first in row {numbers[number]}); expected it once",
                )
            numbers.setdefault(number, row)
        return sorted(rows, key=lambda entry: int(float(entry[1]["Slide_number"])))

    def _check_same(self, rows: list[tuple[int, dict[str, str]]], column: str) -> None:
        first_row, first = rows[0][0], rows[0][1].get(column, "").strip()
        for row, cells in rows[1:]:
            if cells.get(column, "").strip() != first:
                found = cells[column].strip()[:60]
                self._report(
                    row,
                    column,
                    f"found {found!r}; expected the same text as row {first_row} of this task: {first[:60]!r}",
                )

    def _read_step(self, task_id: str, index: int, row: int, cells: dict[str, str]) -> Step | None:
        grounding = self._try(row, "Grounding", read_grounding, cells["Grounding"])
        evidence = "" if grounding is None else cells["Grounding"]  # a broken one is reported once, as what it is
        gold = self._try(row, "Output", lambda cell: read_gold(cell, evidence, self.actions), cells["Output"])
        elements = self._try(row, "Detected_Elements", read_elements, cells.get("Detected_Elements", ""))
        if self.needs_elements and "Detected_Elements" not in cells:
            self._report(row, "Detected_Elements", "found no such column; use_grounding needs it")
        image_path = self._try(row, "Image_id", self._resolve_image, cells["Image_id"])
        if gold is None or grounding is None or elements is None or image_path is None:
            return None
        self._first_row_of_image.setdefault(image_path, row)
        return Step(task_id, index, row, image_path, cells["Image_id"].strip(), gold, grounding, elements)

    def _try(self, row: int, column: str, read: Any, cell: str) -> Any:
        try:
            return read(cell)
        except ValueError as error:
            self._report(row, column, str(error))
            return None

    def _resolve_image(self, cell: str) -> Path:
        name = cell.strip()
        if not name:
            raise ValueError("found an empty cell; expected the screenshot's path")
        if Path(name).is_absolute() or re.match(r"[A-Za-z]:[\\/]", name):
            raise ValueError(f"found the absolute path {name[:80]!r}; expected one relative to {self.root}")
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise ValueError(f"found {name[:80]!r}, which leaves {self.root}; expected a path inside it")
        return path
