"""A data file, by whatever name it goes, to rows of text cells. Knows nothing of steps or actions."""

import hashlib
from pathlib import Path

from sft.contract.csv_text import parse_csv
from sft.contract.problems import Problem, TrajectoryError
from sft.contract.sources import Table, looks_like_dataset


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
