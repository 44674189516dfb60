"""What the readers of data files share: names of sources, the columns, and a table of text cells. Opens no file."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sft.contract.problems import Problem, TrajectoryError

REQUIRED_COLUMNS = ("Task_id", "Image_id", "Instruction", "Output", "Grounding")

Cells = dict[str, str]
Row = tuple[int, Cells]


@dataclass(frozen=True)
class Table:
    """Rows of one data file: (row number, cells by column). `image_root` is where `Image_id` starts from.

    `bad_rows` could not be laid out in columns, or hold no screenshot; each names its task in `task_id` where it can.
    """

    path: Path
    rows: Sequence[Row] = field(repr=False)
    sha256: str
    image_root: Path
    bad_rows: tuple[Problem, ...] = ()


def looks_like_dataset(source: str | Path) -> bool:
    """Return whether a `train_csv` names a data set of `datasets` rather than a CSV file."""
    path, _ = split_source(source)
    if path.is_file() or Path(source).suffix.lower() == ".csv":
        return False
    return path.is_dir() or bool(re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.is_dir())


def split_source(source: str | Path) -> tuple[Path, str | None]:
    """Part `owner/name:split` or `folder:split` into the data set and its split."""
    name, _, split = str(source).rpartition(":")
    if not name or "/" in split or "\\" in split or Path(source).exists():
        return Path(source), None
    return Path(name), split


def check_columns(columns: Iterable[str], path: Path) -> None:
    """Make sure that all required columns are there.

    Raises:
        TrajectoryError: naming every column that is missing.
    """
    columns = list(columns)
    if missing := [name for name in REQUIRED_COLUMNS if name not in columns]:
        shown = ", ".join(columns)[:300]
        raise TrajectoryError(
            [Problem(path, 1, name, f"found columns {shown}; expected {name} too") for name in missing]
        )
