"""Names of screenshots, as data writes them, to files: one rule for every reader. Opens no file."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

MAX_NAME_CHARS = 500
MAX_PARTS = 16  # of a path, from its end, that tell one picture from another
MIN_LIKENESS = 80  # percent, of a name that is worth asking "did you mean"


def resolve_image(cell: str, root: Path) -> Path:
    """Return the file that a cell names below `root`, or where it would be if there is none.

    The file of the literal name comes first; else backslashes are taken for slashes, and a name that is written in
    another Unicode form or letter case is found where one file alone has it. The path alone is judged, and links are
    followed wherever they lead: a Hub cache and linked storage keep screenshots outside the root, behind links in it.

    Raises:
        ValueError: an empty, absolute or overlong path, an address (URL), or a path that leaves the root.
    """
    name, root = cell.strip(), _normalise(root)
    if not name:
        raise ValueError("found an empty cell; expected the screenshot's path")
    if len(name) > MAX_NAME_CHARS or "\0" in name:
        raise ValueError(f"found {name[:60]!r} ({len(name)} characters); expected the screenshot's path")
    if re.match(r"[a-z][a-z0-9+.-]+:[\\/]{2}|data:|file:", name, re.I):
        raise ValueError(f"found the address {name[:80]!r}; expected a path relative to {root}")
    forward = name.replace("\\", "/")
    if Path(name).is_absolute() or re.match(r"[A-Za-z]:[\\/]", name) or name.startswith("\\\\"):
        raise ValueError(f"found the absolute path {name[:80]!r}; expected one relative to {root}")
    literal = _join(root, name)
    if _is_file(literal):
        return literal
    if Path(forward).is_absolute():
        raise ValueError(f"found the absolute path {name[:80]!r}; expected one relative to {root}")
    return _find_below(root, _join(root, forward)) or literal


def find_file(path: Path) -> Path:
    """Return the file that a path means, by the rule of `resolve_image` but wherever it lies; else the path itself."""
    if _is_file(path):
        return path
    forward = Path(str(path).strip().replace("\\", "/"))
    return _find_below(Path("/"), forward) or path


def find_screenshot(name: str, folders: Sequence[Path]) -> Path | None:
    """Find a file below one of the folders: by its path there, else by as much of its end as is there.

    Each is read as `resolve_image` reads it; a file that has the bare name itself comes before one near to it. Nothing
    outside the folders is opened. `file://` is the path behind it; another address names no file here.
    """
    name = read_file_address(name.strip())
    parts = split_name(name)
    if re.match(r"[a-z][a-z0-9+.-]+:/{2}", name, re.I) or not parts:
        return None
    ends = [name, *("/".join(parts[i:]) for i in range(len(parts)))]
    found = (path for end in ends for folder in folders if (path := _find_file(end, folder)) is not None)
    near = None
    for path in found:
        if path.name in (parts[-1], PurePosixPath(name).name):
            return path
        near = near or path
    return near


def split_name(name: str) -> tuple[str, ...]:
    """Return the last parts of a name, at most `MAX_PARTS`, without a drive, the root, `.` and `..`."""
    parts = read_file_address(name.strip()).replace("\\", "/").split("/")
    named = [part for part in parts if part not in ("", ".", "..") and not re.fullmatch("[A-Za-z]:", part)]
    return tuple(named[-MAX_PARTS:])


def read_file_address(name: str) -> str:
    """Return the path of a `file://` address, and any other name as it is."""
    match = re.match(r"file://(?:localhost)?(/.*)", name, re.I | re.S)
    return unquote(match[1]) if match else name


def suggest_names(cell: str, root: Path) -> str:
    """Return "; did you mean ...?" for a name that no file has, where one below `root` is near to it; else ""."""
    name = cell.strip().replace("\\", "/")
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
    candidates = [unquote(name), *("/".join(parts[i:]) for i in range(1, len(parts)))]
    for candidate in candidates:
        if candidate != name and (found := _find_file(candidate, root)):
            return f"; did you mean {str(found.relative_to(_normalise(root)))!r}?"
    folder, missing = root, ""
    for missing in parts:
        near = _list_near(folder, missing)
        if len(near) != 1:
            break
        folder /= near[0]
    else:
        return ""
    likely = near or _list_alike(folder, missing)
    shown = [str((folder / found).relative_to(root)) for found in likely[:3]]
    return f"; did you mean {' or '.join(map(repr, shown))}?" if shown else ""


def _join(root: Path, name: str) -> Path:
    path = _normalise(root / name)
    if not path.is_relative_to(root):
        raise ValueError(f"found {name[:80]!r}, which leaves {root}; expected a path inside it")
    return path


def _find_file(name: str, root: Path) -> Path | None:
    try:
        path = resolve_image(name, root)
    except ValueError:
        return None
    return path if _is_file(path) else None


def _find_below(folder: Path, path: Path) -> Path | None:
    """Walk from a folder to a file, each part by its own name or else by the one name near it; None where none is."""
    found = _normalise(folder)
    for part in _normalise(path).relative_to(found).parts:
        near = _list_near(found, part)
        if len(near) != 1:
            return None
        found /= near[0]
    return found if _is_file(found) else None


def _normalise(path: Path) -> Path:
    """Return an absolute path without `.`, `..` and doubled slashes, by its text alone: no link is followed."""
    return Path(os.path.normpath(path.absolute()))


def _list_near(folder: Path, part: str) -> Sequence[str]:
    """Return the name itself where it is there, else those that differ in Unicode form alone, else in letter case."""
    if part == ".." or _exists(folder / part):
        return [part]
    by_form, by_case = _list_forms(folder, _read_time(folder))
    return by_form.get(_compose(part)) or by_case.get(_fold(part), [])


def _list_alike(folder: Path, part: str) -> list[str]:
    """Return the names nearest to one; screenshots are numbered, so a name with other digits is another one."""
    from rapidfuzz import fuzz, process

    digits, stem = re.findall("[0-9]+", part), PurePosixPath(part).stem
    by_form, _ = _list_forms(folder, _read_time(folder))
    names = [name for names in by_form.values() for name in names if re.findall("[0-9]+", name) == digits]
    same_stem = [name for name in names if _fold(PurePosixPath(name).stem) == _fold(stem)]
    alike = process.extract(part, names, scorer=fuzz.ratio, score_cutoff=MIN_LIKENESS, limit=2)
    return same_stem or [name for name, *_ in alike]


@lru_cache(maxsize=1024)
def _list_forms(folder: Path, time_ns: int) -> tuple[Mapping[str, list[str]], Mapping[str, list[str]]]:
    """Return a folder's names by composed form, and by that without letter case; `time_ns` is when it changed last."""
    by_form: dict[str, list[str]] = defaultdict(list)
    by_case: dict[str, list[str]] = defaultdict(list)
    try:
        names = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError):
        names = []
    for name in names:
        by_form[_compose(name)].append(name)
        by_case[_fold(name)].append(name)
    return dict(by_form), dict(by_case)


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", _compose(name).casefold())


def _read_time(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
