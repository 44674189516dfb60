"""Files and folders that appear whole or not at all, and hashes of files. Knows nothing of what is written there."""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from sft.errors import UserError

LOCK_NAME = ".lock"
_NAMED = 50  # characters of a file's name in that of its temporary one; a name has at most 255 bytes
log = logging.getLogger("sft")
_UMASK = os.umask(0o077)  # can be read by setting it alone
os.umask(_UMASK)


def write_whole(path: Path, content: str | bytes, is_forced: bool = True) -> None:
    """Write a file under a name of its own beside it, then rename it: no reader, and no kill, finds half of it.

    Half characters (lone surrogates), which JSON can name but UTF-8 cannot hold, become "?". The content is on the
    disk before the file has its name, for the day the power fails; what is cheap to make anew need not be `is_forced`.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:_NAMED]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if is_forced:
                file.flush()
                os.fsync(file.fileno())
        share_as_usual(Path(temporary))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
        UserError: something is there already, or has come there meanwhile.
    """
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:_NAMED]}.partial-"))
    try:
        yield partial
        share_as_usual(partial)
        check_new(folder)  # another process may have written it
        partial.rename(folder)  # takes the place of an empty folder, and of no other
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def claim_folder(folder: Path, doing: str) -> Iterator[None]:
    """Keep a folder for this process by `flock`, which the kernel gives up with the process, however that ends.

    Processes forked off meanwhile share it: those of a process that was killed keep it until they end too, as torch's
    data workers do within some 5 seconds. `doing` is what is done there, for others to read: "trains into this
    folder".

    Raises:
        UserError: another process has it, or reads it (`read_folder`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_NAME).open("a", encoding="utf-8") as file:
        problem = (
            f"{folder}: found another process that {doing} or reads it; expected one at a time: wait for it or end "
            "it, then give the same command again"
        )
        with _lock(file, fcntl.LOCK_EX, problem):
            yield


@contextmanager
def read_folder(folder: Path) -> Iterator[None]:
    """Have nobody claim a folder while it is read; any number of processes may read it at once.

    One that was never claimed, or whose lock cannot be opened, is read as it is.

    Raises:
        UserError: another process has claimed it.
    """
    try:
        file = (folder / LOCK_NAME).open(encoding="utf-8")
    except OSError:
        yield
        return
    problem = (
        f"{folder}: found another process that writes into this folder; expected one that is finished: wait for it or "
        "end it, then give the same command again"
    )
    with file, _lock(file, fcntl.LOCK_SH, problem):
        yield


@contextmanager
def _lock(file: TextIO, kind: int, problem: str) -> Iterator[None]:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(problem) from error
    except OSError as error:  # a file system without locks, such as Lustre mounted without them
        log.warning("%s: cannot be locked (%s); make sure that no other process uses the folder", file.name, error)
    try:
        yield
    finally:
        with suppress(OSError):  # where it cannot be locked
            fcntl.flock(file, fcntl.LOCK_UN)  # or a data worker, forked off meanwhile, would keep it


def refuse_foreign(folder: Path, names: Iterable[str], proof: str) -> None:
    """Make sure that what is to be written into a folder replaces no file of somebody else.

    A folder is ours where it holds the file `proof`. `names` (patterns) are the others that would be replaced; an
    empty one binds nobody. A link in the place of any is not ours: what it points to lies elsewhere.

    Raises:
        UserError: what was found.
    """
    found = sorted(p for name in names for p in folder.glob(name) if p.is_symlink() or p.is_dir() or p.stat().st_size)
    told = ", ".join(path.name for path in found)
    if found and not (folder / proof).is_file():
        raise UserError(
            f"{folder}: found {told}, which would be replaced, and no {proof} that would say it is of the same kind; "
            "expected a new folder, or one that was written by this command: choose another"
        )
    if links := [path.name for path in (folder / proof, *found) if path.is_symlink()]:
        raise UserError(
            f"{folder}: found links in the place of {', '.join(links)}, which would be written through; expected "
            "files: choose another folder"
        )


def is_within(path: Path, folder: Path) -> bool:
    """Say whether a file lies in a folder, links followed: a link in a model folder may bring anybody's file."""
    return path.resolve().is_relative_to(folder.resolve())


def share_as_usual(path: Path) -> None:
    """Give a file, or a folder with all that is in it, the mode that the user's umask gives to new ones.

    Libraries that write to a temporary file first, as safetensors does, leave one that nobody else can read: a
    colleague of the same group could read all of a model but its weights.
    """
    for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
        if not each.is_symlink():
            each.chmod((0o777 if each.is_dir() else 0o666) & ~_UMASK)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Iterable[Path]) -> str:
    """Return one SHA-256 over the contents of files, in hex."""
    return hashlib.sha256(b"".join(bytes.fromhex(hash_file(path)) for path in paths)).hexdigest()


def is_full_disk(error: BaseException) -> bool:
    """Say whether there was no room on the disk, or in the user's share of it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def force_to_disk(path: Path) -> None:
    """Have a file or folder on the disk before anything else happens."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
