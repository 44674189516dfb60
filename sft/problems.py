"""What is wrong in a data file: one problem, and the error that lists them all. Knows nothing of rows or cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sft.errors import UserError

MAX_PROBLEMS_SHOWN = 20


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


class TrajectoryError(UserError):
    """A data file that cannot be used; its text lists every problem found (the first 20 and a count)."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        lines = [str(p) for p in self.problems[:MAX_PROBLEMS_SHOWN]]
        if len(self.problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"... and {len(self.problems) - MAX_PROBLEMS_SHOWN} more")
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__("\n".join([*lines, f"{len(self.problems)} {noun}; nothing was loaded."]))
