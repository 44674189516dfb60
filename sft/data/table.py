"""A table of text cells: its columns, and CSV or JSON text read as one, strictly. Opens no file."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

from sft.data.cells import read_text
from sft.data.literals import read_literal
from sft.data.problems import Problem, TrajectoryError

REQUIRED_COLUMNS = ("Task_id", "Image_id", "Instruction", "Output", "Grounding")
OPTIONAL_COLUMNS = ("Slide_number", "Application", "Group", "Detected_Elements", "Also_Right")
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
    """Split `owner/name:split` or `folder:split` into the data set and its split."""
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


def parse_csv(data: bytes, path: Path) -> tuple[Sequence[Row], tuple[Problem, ...]]:
    """Return the records that are not blank, and the problems of records with too few or too many cells.

    Raises:
        TrajectoryError: the bytes are no CSV with the five columns.
    """

    def fail(message: str) -> TrajectoryError:
        return TrajectoryError([Problem(path, None, None, message)])

    text = decode_text(data, path)
    if not text.strip():
        raise fail("found an empty file; expected a header row and one row per step")
    if "\0" in text:
        raise fail("found a NUL character; expected text: is this a CSV file?")
    csv.field_size_limit(max(131_072, len(text)))
    del text  # from here on one row at a time
    bad_rows: list[Problem] = []
    try:
        records = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), strict=True)
        header = [name.strip() for name in next(records)]
        _check_header(header, path)
        rows = list(_lay_out(header, records, path, bad_rows))
    except csv.Error as error:
        raise fail(f"found broken CSV ({error}); expected comma-separated cells, quoted with double quotes") from error
    if not rows and not bad_rows:
        raise fail("found a header and no rows; expected one row per step")
    return rows, tuple(bad_rows)


def format_csv(columns: Sequence[str], rows: Iterable[Cells]) -> str:
    """Write rows as CSV text that `parse_csv` reads back cell by cell; cells of other columns are left out."""
    file = io.StringIO()
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for cells in [columns, *([row[name] for name in columns] for row in rows)]:
        # before Python 3.13 a lone carriage return is written without quotes, and a reader takes it for a line's end
        (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)
    return file.getvalue()


def decode_text(data: bytes, path: Path) -> str:
    """Decode a text file.

    Raises:
        TrajectoryError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"found bytes that are not UTF-8 at position {error.start}; save the file as UTF-8"
        raise TrajectoryError([Problem(path, None, None, message)]) from error


def _lay_out(
    header: Sequence[str], records: Iterable[list[str]], path: Path, bad_rows: list[Problem]
) -> Iterator[Row]:
    """Yield the records that are not blank as rows; one with too few or too many cells goes to `bad_rows`.

    The index that pandas writes before a blank record does not make it a row.
    """
    task_at = header.index("Task_id")
    is_index = [not name or name.startswith("Unnamed: ") for name in header]
    for number, record in enumerate(records, start=2):
        is_blank = not any(cell.strip() for cell, skip in zip_longest(record, is_index) if cell and not skip)
        if len(record) == len(header) and not is_blank:
            yield number, dict(zip(header, record))
        elif not is_blank:
            task_id = read_text(record[task_at]) if task_at < len(record) else ""
            message = f"found {len(record)} cells; expected {len(header)}"
            bad_rows.append(Problem(path, number, None, message, task_id or None))


def _check_header(header: list[str], path: Path) -> None:
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            message = f"found columns separated by {name}; expected commas: export the file again as CSV (comma)"
            raise TrajectoryError([Problem(path, 1, None, message)])
    check_columns(header, path)
    refuse_doubled(header, path)


def parse_json_rows(data: bytes, path: Path) -> tuple[Sequence[Row], tuple[Problem, ...]]:
    """Return one row an object, and the problems of lines that are none; a row is numbered as its line, from 1.

    In one list of objects (`[{...}, ...]`) the objects are counted. A null is what the user wrote, and stays.

    Raises:
        TrajectoryError: the text is no such table, or lacks one of the five columns.
    """
    objects, bad_rows = _read_objects(decode_text(data, path), path)
    columns = list(dict.fromkeys(name for _, fields in objects for name in fields))
    check_columns(columns, path)
    rows: list[Row] = []
    for number, fields in objects:
        try:
            rows.append((number, build_cells(fields, columns)))
        except CellError as error:
            task_id = read_text(str(fields.get("Task_id") or "")) or None
            bad_rows.append(Problem(path, number, error.column, str(error), task_id))
    return rows, tuple(bad_rows)


def split_lines(text: str) -> list[str]:
    """Split a text at the line ends of any system; other characters that `str.splitlines` splits at stand in texts."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_line(line: str) -> dict[str, Any]:
    """Read one line of JSON Lines.

    Raises:
        ValueError: what was found and what was expected.
    """
    fields = read_literal(line)
    if not isinstance(fields, dict):
        raise ValueError(f"found {type(fields).__name__}; expected one object per line")
    return fields


def read_list(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read one list of objects, each with its number from 1.

    Raises:
        TrajectoryError: the text is anything else.
    """
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TrajectoryError([Problem(path, None, None, f"found broken JSON ({error}); restore the file")]) from error
    if not items or not all(isinstance(item, dict) for item in items):
        raise TrajectoryError([Problem(path, None, None, "found no list of objects; expected one object per step")])
    return list(enumerate(items, start=1))


def _read_objects(text: str, path: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[Problem]]:
    if text.lstrip().startswith("["):
        return read_list(text, path), []
    objects, problems = [], []
    for number, line in enumerate(split_lines(text), start=1):
        try:
            if line.strip():
                objects.append((number, read_line(line)))
        except ValueError as error:
            problems.append(Problem(path, number, None, str(error)))
    if not objects:
        message = "found JSON that is neither one object per line nor a list of objects; expected one of the two"
        raise TrajectoryError([Problem(path, None, None, message)])
    return objects, problems
