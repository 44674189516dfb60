"""A data file, by whatever name it goes, to rows of text cells. Knows nothing of steps or actions."""

import hashlib
from pathlib import Path

from sft.data.arrow_rows import is_arrow_file
from sft.data.csv_text import parse_csv
from sft.data.json_rows import parse_json_rows
from sft.data.problems import Problem, TrajectoryError
from sft.data.sources import Table, looks_like_dataset
from sft.file_kinds import CSV, JSON, FileKind, find_kind


def read_table(source: str | Path, image_root: str | Path | None = None) -> Table:
    """Read a CSV file, one of JSON Lines, Parquet or Arrow, a folder saved by `datasets`, or a Hub data set.

    A Hub data set is `owner/name` or `owner/name:split`. What a file is, is told by its content.

    Raises:
        TrajectoryError: no such data, a file of another kind, or one whose rows cannot be told apart.
    """
    path = Path(source)
    kind = None if looks_like_dataset(source) else find_table_kind(path)
    if looks_like_dataset(source) or is_arrow_file(path, kind):
        from sft.data.embedded import read_embedded  # pyarrow and `datasets` take seconds to import

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
