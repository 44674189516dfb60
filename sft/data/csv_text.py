"""CSV text to rows and back, strictly: what cannot be told apart is refused. Opens no file."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from sft.data.cells import read_text
from sft.data.problems import Problem, TrajectoryError
from sft.data.sources import Cells, Row, check_columns, refuse_doubled


def parse_csv(data: bytes, path: Path) -> tuple[Sequence[Row], tuple[Problem, ...]]:
    """Return the records that are not blank, and the problems of records with too few or too many cells.

    Raises:
        TrajectoryError: the bytes are no CSV with the five columns.
    """

    def fail(message: str, row: int | None = None, column: str | None = None) -> TrajectoryError:
        return TrajectoryError([Problem(path, row, column, message)])

    text = decode_text(data, path)
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
        rows = list(_lay_out(header, records, path, bad_rows))
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
