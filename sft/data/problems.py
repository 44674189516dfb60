"""What is wrong in a data file: one problem, and the error that lists them all. Knows nothing of rows or cells."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.errors import UserError

MAX_PROBLEMS_SHOWN = 20
QUARANTINE_NAME = "quarantine.jsonl"


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a file. `row` counts records as a spreadsheet does: the header is row 1.

    `task_id` names the task that cannot be used because of it; None where that cannot be told, or where it is all.
    """

    path: Path
    row: int | None
    column: str | None
    message: str
    task_id: str | None = None

    def __str__(self) -> str:
        place = str(self.path) if self.row is None else f"{self.path}: row {self.row}"
        return f"{place}: {self.column}: {self.message}" if self.column else f"{place}: {self.message}"


@dataclass(frozen=True)
class QuarantinedTask:
    """A task that was set aside whole, and why. `rows` are the row numbers of all its steps."""

    task_id: str
    rows: tuple[int, ...]
    problems: tuple[Problem, ...]


def describe_quarantine(tasks: Sequence[QuarantinedTask]) -> dict[str, Any]:
    """Return how much was set aside and why, short enough for a log line (`summary`) and a report."""
    n_rows = sum(len(task.rows) for task in tasks)
    noun = "task" if len(tasks) == 1 else "tasks"
    named = ", ".join(task.task_id[:40] for task in tasks[:5]) + (", ..." if len(tasks) > 5 else "")
    return {
        "n_tasks": len(tasks),
        "n_rows": n_rows,
        "summary": f"{len(tasks)} {noun} ({n_rows} rows) set aside for bad rows: {named}" if tasks else "",
        "reasons": {task.task_id: str(task.problems[0]) for task in tasks},
    }


def write_quarantine(path: Path, tasks: Sequence[QuarantinedTask]) -> None:
    """Write one JSON line a task that was set aside: its rows and every problem; no file where there is none."""
    if not tasks:
        path.unlink(missing_ok=True)
        return
    lines = []
    for task in tasks:
        problems = [{"row": p.row, "column": p.column, "message": p.message} for p in task.problems]
        data = str(task.problems[0].path)
        lines.append(json.dumps({"task_id": task.task_id, "data": data, "rows": task.rows, "problems": problems}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")


class TrajectoryError(UserError):
    """A data file that cannot be used; its text lists every problem found (the first 20 and a count)."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        lines = [str(p) for p in self.problems[:MAX_PROBLEMS_SHOWN]]
        if len(self.problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"... and {len(self.problems) - MAX_PROBLEMS_SHOWN} more")
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__("\n".join([*lines, f"{len(self.problems)} {noun}; nothing was loaded."]))
