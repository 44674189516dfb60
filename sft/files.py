"""A new folder that appears under its name whole, or not at all. Knows nothing of what is written there."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.errors import UserError


def check_new(folder: Path) -> None:
    """Make sure that a folder can be written: it is not there, or empty.

    Raises:
        UserError: something is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: found something there; expected a new or empty folder")


@contextmanager
def write_new(folder: Path) -> Iterator[Path]:
    """Give a folder beside it to write to, which takes its name at the end; after an error nothing is left of it.

    Raises:
        UserError: something is there already.
    """
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
    try:
        yield partial
        partial.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
