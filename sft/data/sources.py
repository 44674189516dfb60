"""What the readers of data files share: names of sources, the columns, and a table of text cells. Opens no file."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from sft.data.problems import Problem, TrajectoryError

REQUIRED_COLUMNS = ("Task_id", "Image_id", "Instruction", "Output", "Grounding")
OPTIONAL_COLUMNS = ("Slide_number", "Application", "Group", "Detected_Elements")
MEMORY_COLUMNS = ("Short_Term_Memory", "Long_term_Memory")  # published ones, audited and never shown
_READ_COLUMNS = {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, *MEMORY_COLUMNS}
_FILE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".json", ".jsonl", ".parquet", ".arrow", ".feather")
EXACT = 2**53  # whole numbers from here on have lost digits where they are held as floats

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
    if path.is_file() or Path(source).suffix.lower() in _FILE_SUFFIXES:
        return False
    return path.is_dir() or bool(re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.is_dir())


def split_source(source: str | Path) -> tuple[Path, str | None]:
    """Part `owner/name:split` or `folder:split` into the data set and its split."""
    name, _, split = str(source).rpartition(":")
    if not name or "/" in split or "\\" in split or Path(source).exists():
        return Path(source), None
    return Path(name), split


def build_cells(fields: Mapping[str, Any], columns: Iterable[str]) -> Cells:
    """Return one row of values as text cells, "" where it lacks a column; a required column is always there.

    Raises:
        CellError: a value of a column that is read cannot be a cell.
    """
    cells = dict.fromkeys((*REQUIRED_COLUMNS, *columns), "")
    if isinstance(task_id := fields.get("Task_id"), (Mapping, list)):
        raise CellError("Task_id", f"found {str(task_id)[:40]}; expected the task's id: are rows and columns swapped?")
    for name, value in fields.items():
        try:
            cells[name] = as_cell(value)
        except ValueError as error:
            if name in _READ_COLUMNS:
                raise CellError(name, str(error)) from error
    return cells


class CellError(ValueError):
    """A value that cannot be the text of a cell, and its column."""

    def __init__(self, column: str, message: str):
        self.column = column
        super().__init__(message)


def as_cell(value: Any) -> str:
    """Return a value as the text that a CSV cell would hold; a whole number held as a float is written as one.

    Raises:
        ValueError: a value that no text stands for: bytes, a date inside an object, a number that has lost digits.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (bytes, bytearray)):
        return _refuse(value)
    if isinstance(value, float) and value.is_integer():
        if abs(value) >= EXACT:
            raise ValueError(f"found the number {value}, which has lost digits; expected it saved as text")
        return str(int(value))
    is_object = isinstance(value, (Mapping, Sequence)) and not isinstance(value, str)
    text = json.dumps(value, ensure_ascii=False, default=_refuse) if is_object else str(value)
    if "\0" in text:
        raise ValueError("found a NUL character; expected text")
    return text.encode("utf-8", "replace").decode("utf-8")  # JSON can name half characters, a file cannot hold them


def _refuse(value: Any) -> NoReturn:
    kind = {"bytes": "bytes", "bytearray": "bytes"}.get(type(value).__name__, f"a {type(value).__name__}")
    raise ValueError(f"found {kind} ({str(value)[:40]}), which JSON has no word for; expected it saved as text")


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


def refuse_doubled(columns: Sequence[str], path: Path) -> None:
    """Make sure that no column stands there twice.

    Raises:
        TrajectoryError: naming every column that does.
    """
    if doubled := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise TrajectoryError([Problem(path, 1, n, "found this column twice; expected it once") for n in doubled])
