"""Recorded trajectories: data files to validated tasks and steps. Knows nothing of prompts, models or training."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from sft.actions import DEFAULT_ACTIONS, ActionType
from sft.data.cells import read_text
from sft.data.literals import is_missing
from sft.data.memory_audit import find_leaks
from sft.data.problems import Problem, QuarantinedTask, TrajectoryError
from sft.data.rows import RowReader, check_screenshots
from sft.data.screenshots import ScreenshotFacts
from sft.data.steps import Trajectory
from sft.data.table import Table, looks_like_dataset, parse_csv, parse_json_rows
from sft.file_kinds import CSV, JSON, FileKind, find_kind, is_arrow_file

OnBadRows = Literal["refuse", "quarantine"]


@dataclass(frozen=True)
class TaskSet:
    """The tasks of one data file that can be used, and those that were set aside whole."""

    path: Path
    sha256: str
    image_root: Path
    trajectories: list[Trajectory] = field(repr=False)
    quarantined: tuple[QuarantinedTask, ...] = ()
    screenshots: Mapping[Path, ScreenshotFacts] = field(default_factory=dict, repr=False)


class ReadOptions(TypedDict, total=False):
    """How a data file is read; what each means and its default are `read_task_set`'s."""

    actions: Sequence[ActionType] | None
    task_start: int
    task_end: int | None
    needs_elements: bool
    memory_parts: Sequence[str]
    on_bad_rows: OnBadRows
    show_progress: bool


def load_trajectories(
    source: str | Path, image_root: str | Path | None = None, **options: Unpack[ReadOptions]
) -> list[Trajectory]:
    """Read and validate trajectories; as `load_task_set`, without what was set aside."""
    return load_task_set(source, image_root, **options).trajectories


def load_task_set(source: str | Path, image_root: str | Path | None = None, **options: Unpack[ReadOptions]) -> TaskSet:
    """Read and validate a trajectory CSV or a `datasets` data set; tasks come in natural order (`t2` before `t10`).

    `image_root` defaults to the folder of the CSV.

    Raises:
        TrajectoryError: with every problem of the file, each naming file, row, column, what was found and expected.
    """
    return read_task_set(read_table(source, image_root), **options)


def read_task_set(
    table: Table,
    *,
    actions: Sequence[ActionType] | None = DEFAULT_ACTIONS,
    task_start: int = 0,
    task_end: int | None = None,
    needs_elements: bool = False,
    memory_parts: Sequence[str] = (),
    on_bad_rows: OnBadRows = "refuse",
    show_progress: bool = True,
) -> TaskSet:
    """Validate the rows of a table. `actions` None takes actions of any name, and leaves their arguments unread.

    `task_start` and `task_end` choose tasks by position, as a Python slice does. With `on_bad_rows` "quarantine" a
    task with a bad row is set aside whole; what cannot be laid at one task's door (a missing column, a row that names
    no task) is refused all the same. `memory_parts` are the parts of recorded memory that prompts will show: where one
    tells the action of the step that is shown it, the row is a bad one.

    Raises:
        TrajectoryError: with every problem of the file, each naming file, row, column, what was found and expected.
    """
    by_task, problems = _group_by_task(table)
    if not table.image_root.is_dir():
        message = f"found no folder {table.image_root}; expected one"
        raise TrajectoryError([Problem(table.path, None, "image_root", message)])
    if needs_elements and table.rows and "Detected_Elements" not in table.rows[0][1]:
        message = "found no such column; use_grounding needs it: python -m sft.elements makes it"
        raise TrajectoryError([Problem(table.path, 1, "Detected_Elements", message)])
    chosen = sorted(by_task, key=natural_key)[task_start:task_end]
    if not chosen:
        message = f"found {len(by_task)} tasks, none in task_start={task_start}, task_end={task_end}"
        raise TrajectoryError([*problems, Problem(table.path, None, None, message)])
    reader = RowReader(table, actions, needs_elements)
    images = reader.find_images(table.rows[i] for task_id in chosen for i in by_task[task_id])
    screenshots = check_screenshots(images, show_progress)
    read = [
        reader.read_task(task_id, [table.rows[i] for i in by_task[task_id]], screenshots)
        for task_id in chosen
        if by_task[task_id]
    ]
    leaks = find_leak_problems(table.path, [t for t in read if t is not None], memory_parts)
    problems = sorted([*problems, *reader.problems, *leaks], key=lambda p: p.row or 0)
    unusable = {p.task_id for p in problems}
    trajectories = [t for t in read if t is not None and t.task_id not in unusable]
    if problems and (on_bad_rows == "refuse" or None in unusable or not trajectories):
        raise TrajectoryError(problems)
    quarantined = tuple(
        _set_aside(t, [table.rows[i][0] for i in by_task[t]], problems) for t in chosen if t in unusable
    )
    return TaskSet(table.path, table.sha256, table.image_root, trajectories, quarantined, screenshots)


def _set_aside(task_id: str, rows: Sequence[int], problems: Sequence[Problem]) -> QuarantinedTask:
    own = tuple(p for p in problems if p.task_id == task_id)
    return QuarantinedTask(task_id, tuple(sorted({*rows, *(p.row for p in own if p.row is not None)})), own)


def find_leak_problems(path: Path, trajectories: Sequence[Trajectory], memory_parts: Sequence[str]) -> list[Problem]:
    """Return the rows whose recorded memory tells the next step's action, in those of its parts that prompts show."""
    if not memory_parts:
        return []
    return [
        Problem(path, row, "Output", message, t.task_id)
        for t in trajectories
        for row, message in find_leaks(t, memory_parts)
    ]


def read_table(source: str | Path, image_root: str | Path | None = None) -> Table:
    """Read a CSV file, one of JSON Lines, Parquet or Arrow, a folder saved by `datasets`, or a Hub data set.

    A Hub data set is `owner/name` or `owner/name:split`. What a file is, is told by its content.

    Raises:
        TrajectoryError: no such data, a file of another kind, or one whose rows cannot be told apart.
    """
    path = Path(source)
    kind = None if looks_like_dataset(source) else find_table_kind(path)
    if looks_like_dataset(source) or is_arrow_file(path, kind):
        from sft.data.embedded import read_embedded

        return read_embedded(source, image_root)
    data = path.read_bytes()
    rows, bad_rows = parse_json_rows(data, path) if kind is JSON else parse_csv(data, path)
    root = Path(image_root) if image_root is not None else path.parent
    return Table(path, rows, hashlib.sha256(data).hexdigest(), root, bad_rows)


def find_table_kind(path: Path, expected: str = "a trajectory CSV") -> FileKind | None:
    """Return the kind of a file that can hold a table, None for any other text.

    Raises:
        TrajectoryError: no such file, or one of a kind that holds none, named for what it is.
    """
    message = ""
    if path.is_dir():
        message = f"found a folder; expected {expected}"
    elif not path.is_file():
        message = f"found no such file; expected {expected}"
    else:
        try:
            kind = find_kind(path)
        except OSError as error:
            message = f"found a file that cannot be read ({error.strerror}); expected {expected}"
        else:
            if kind is None or kind in (CSV, JSON) or is_arrow_file(path, kind):
                return kind
            message = f"found {kind.name}; expected {expected}: {kind.way_out}"
    raise TrajectoryError([Problem(path, None, None, message)])


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key under which numbers inside a text count as numbers, of any length."""
    parts = [part for part in re.split("([0-9]+)", text) if part]
    digits = {part: part.lstrip("0") for part in parts if part[0] in "0123456789"}
    return [(0, len(digits[part]), digits[part]) if part in digits else (1, 0, part) for part in parts]


def _group_by_task(table: Table) -> tuple[dict[str, list[int]], list[Problem]]:
    """Return where in `table.rows` every task's rows are, and the problems of rows that are broken or name no task."""
    by_task: dict[str, list[int]] = {}
    problems = list(table.bad_rows)
    for i, (number, cells) in enumerate(table.rows):
        task_id = read_text(cells["Task_id"])
        if not is_missing(task_id):
            by_task.setdefault(task_id, []).append(i)
        else:
            found = f"found {task_id!r}, a missing value" if task_id else "found an empty cell"
            problems.append(Problem(table.path, number, "Task_id", f"{found}; expected the task's id"))
    for problem in table.bad_rows:
        if problem.task_id is not None:
            by_task.setdefault(problem.task_id, [])
    return by_task, problems
