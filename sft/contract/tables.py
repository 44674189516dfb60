"""Data files to rows of text cells: CSV here, others in `sft.contract.embedded`. Knows nothing of steps or actions."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sft.contract.compact import CompactList
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


def read_table(source: str | Path, image_root: str | Path | None = None) -> Table:
    """Read a CSV file, a folder saved by `datasets`, or a Hub data set (`owner/name` or `owner/name:split`).

    Raises:
        TrajectoryError: no such data, or a file whose rows cannot be told apart.
    """
    if looks_like_dataset(source):
        from sft.contract.embedded import read_dataset  # `datasets` takes seconds to import

        return read_dataset(str(source), image_root)
    path = Path(source)
    if not path.is_file():
        raise TrajectoryError([Problem(path, None, None, "found no such file; expected a trajectory CSV")])
    data = path.read_bytes()
    rows, bad_rows = parse_csv(data, path)
    root = Path(image_root) if image_root is not None else path.parent
    return Table(path, rows, hashlib.sha256(data).hexdigest(), root, bad_rows)


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


def parse_csv(data: bytes, path: Path) -> tuple[Sequence[Row], tuple[Problem, ...]]:
    """Return the records that are not blank, and the problems of records with too few or too many cells.

    Raises:
        TrajectoryError: the bytes are no CSV with the five columns.
    """

    def fail(message: str, row: int | None = None, column: str | None = None) -> TrajectoryError:
        return TrajectoryError([Problem(path, row, column, message)])

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fail(f"found bytes that are not UTF-8 at position {error.start}; save the file as UTF-8") from error
    if not text.strip():
        raise fail("found an empty file; expected a header row and one row a step")
    if "\0" in text:
        raise fail("found a NUL character; expected text: is this a CSV file?")
    csv.field_size_limit(max(131_072, len(text)))
    del text  # from here on one row at a time
    bad_rows: list[Problem] = []
    try:
        records = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), strict=True)
        header = [name.strip() for name in next(records)]
        _check_header(header, path)
        rows = CompactList(_lay_out(header, records, path, bad_rows))
    except csv.Error as error:
        raise fail(f"found broken CSV ({error}); expected comma-separated cells, quoted with double quotes") from error
    if not rows and not bad_rows:
        raise fail("found a header and no rows; expected one row a step")
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


def _lay_out(
    header: Sequence[str], records: Iterable[list[str]], path: Path, bad_rows: list[Problem]
) -> Iterator[Row]:
    """Yield the records that are not blank as rows; one with too few or too many cells goes to `bad_rows`."""
    task_at = header.index("Task_id")
    for number, record in enumerate(records, start=2):
        if len(record) == len(header) and any(cell.strip() for cell in record):
            yield number, dict(zip(header, record))
        elif any(cell.strip() for cell in record):
            task_id = record[task_at].strip() if task_at < len(record) else ""
            message = f"found {len(record)} cells; expected {len(header)}"
            bad_rows.append(Problem(path, number, None, message, task_id or None))


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


def _check_header(header: list[str], path: Path) -> None:
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            message = f"found columns separated by {name}; expected commas: export the file again as CSV (comma)"
            raise TrajectoryError([Problem(path, 1, None, message)])
    check_columns(header, path)
    if doubled := sorted({name for name in header if name and header.count(name) > 1}):
        raise TrajectoryError([Problem(path, 1, n, "found this column twice; expected it once") for n in doubled])
