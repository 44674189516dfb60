"""A foreign source to rows of plain values: JSON, JSON Lines, Parquet, Arrow, a data set of `datasets`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.data.arrow_rows import iterate_rows, open_table
from sft.data.literals import read_literal
from sft.data.load import find_table_kind
from sft.data.table import decode_text, looks_like_dataset, read_line, read_list, split_source
from sft.errors import UserError
from sft.file_kinds import JSON, is_arrow_file

MAX_LINE_BYTES = 256 << 20  # a row of JSON whose pictures are in it
Row = Mapping[str, Any]


def read_rows(source: str, expected: str) -> Iterator[tuple[int, Row | ValueError]]:
    """Yield every row with its number, from 1; of a file of lines that of its line. A line that is none is an error.

    Raises:
        UserError: no such source, or one of another kind.
    """
    path = Path(source)
    kind = None if looks_like_dataset(source) else find_table_kind(path, expected)
    if looks_like_dataset(source) or is_arrow_file(path, kind):
        yield from enumerate(iterate_rows(open_table(source)), start=1)
    elif kind is JSON:
        yield from _read_json(path)
    else:
        raise UserError(f"{path}: found {kind.name if kind else 'a file of no known kind'}; expected {expected}")


def list_folders(source: str, images_dir: Path | None) -> Sequence[Path]:
    """Return the folders below which a source's pictures are looked for: the given one, else its own and `images`."""
    if images_dir is not None:
        return [images_dir]
    root = split_source(source)[0] if looks_like_dataset(source) else Path(source).parent
    return [root, root / "images"]


def read_texts(row: Row, *names: str) -> str:
    """Return the first of the columns that holds a text or a number, as text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    return ""


def as_value(value: Any) -> Any:
    """Return a column's value; one that was saved as the text of a list or object is read.

    Raises:
        ValueError: the text is no such thing.
    """
    return read_literal(value) if isinstance(value, str) and value.lstrip().startswith(("[", "{")) else value


def _read_json(path: Path) -> Iterator[tuple[int, Row | ValueError]]:
    """Read one list of objects whole, or lines one by one: published files of lines are larger than memory."""
    with path.open("rb") as file:
        head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        if head.startswith(b"["):
            yield from read_list(decode_text(file.read(), path), path)
            return
        if file.readline(MAX_LINE_BYTES).removeprefix(b"\xef\xbb\xbf").strip() == b"{":  # one object over many lines
            yield 1, _read_whole(path)
            return
        file.seek(0)
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
            if len(line) == MAX_LINE_BYTES:
                raise UserError(f"{path}: line {number}: found more than {MAX_LINE_BYTES} bytes; expected one row")
            text = decode_text(line, path)
            if text.strip():
                yield number, _read_line(text)


def _read_whole(path: Path) -> Row:
    if path.stat().st_size > MAX_LINE_BYTES:
        raise UserError(f"{path}: found an object of more than {MAX_LINE_BYTES} bytes; expected one row")
    try:
        return read_line(decode_text(path.read_bytes(), path))
    except ValueError as error:
        raise UserError(f"{path}: {error}; expected one object, one a line, or a list of them") from error


def _read_line(text: str) -> Row | ValueError:
    try:
        return read_line(text)
    except ValueError as error:
        return error
