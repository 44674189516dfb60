"""Where is the picture that a source gives as bytes, as text or by name, and is it that alone? Opens no file."""

import base64
import binascii
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.convert.converted import ConvertedTask, DroppedTask
from sft.data.embedded import read_image_bytes
from sft.data.image_paths import find_screenshot, split_name, suggest_names

_INLINE = "data:image"


def read_picture(value: Any, folders: Sequence[Path]) -> bytes | Path | None:
    """Return a picture's bytes, or its file below one of the folders; None where there is none.

    It is given as bytes, as the text of a data URI, as a file's name, or as an object that holds one of these under
    `bytes`, `path` or `url`.

    Raises:
        ValueError: a data URI that cannot be read.
    """
    if (data := read_image_bytes(value)) is not None:
        return data
    if isinstance(value, Mapping):
        value = next((v for key in ("path", "url", "image", "image_url") if (v := value.get(key))), None)
        return read_picture(value, folders) if value is not None else None
    if not isinstance(value, str):
        return None
    return decode_picture(value) if is_inline(value) else find_screenshot(value, folders)


def name_picture(value: Any) -> str:
    """Return the name by which a source gives a picture's file; "" where it gives none."""
    if isinstance(value, Mapping) and read_image_bytes(value) is None:
        return name_picture(next((v for key in ("path", "url", "image", "image_url") if (v := value.get(key))), None))
    return value if isinstance(value, str) and not is_inline(value) else ""


def find_picture(value: Any, folders: Sequence[Path]) -> bytes | Path:
    """Return the picture as `read_picture` does.

    Raises:
        ValueError: there is none; with the names that are near to it.
    """
    found = read_picture(value, folders)
    if found is None:
        name = (name_picture(value) or ("" if value is None else str(value)))[:80]
        hint = next((hint for folder in folders if (hint := suggest_names(name, folder))), "")
        raise ValueError(f"found no screenshot {name!r}; give its folder with --images_dir{hint}")
    return found


def is_inline(text: str) -> bool:
    """Say whether a text is a picture itself (a data URI) and no name."""
    return text.startswith(_INLINE)


def decode_picture(uri: str) -> bytes:
    """Return the bytes of a data URI.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"found a broken data URI ({error}); expected a picture in base64") from error


@dataclass(frozen=True)
class _Use:
    """A step that found a file, and the parts of the name by which it did."""

    parts: tuple[str, ...]
    name: str
    file: Path
    task_id: str
    source: str
    number: int


class FileNames:
    """By which names a source's steps found each file; the folders that it names may be those of another machine.

    A file that lies where its name says was found by its whole name; a name that only ends like the file's path found
    it by that end. Of such names, two of which neither is the other's end are two pictures, and the file is at most
    one of them.
    """

    def __init__(self) -> None:
        self._uses: dict[Path, list[_Use]] = {}
        self._whole: dict[Path, _Use] = {}

    def add(self, task_id: str, task: ConvertedTask) -> None:
        """Note the files of a task."""
        for step in task.steps:
            file, name = step.image, step.image_name
            if isinstance(file, Path) and name:
                use = _Use(tuple(map(_fold, split_name(name))), name[:80], file, task_id, task.source, step.number)
                if not _is_end(use.parts, tuple(map(_fold, file.parts))):
                    self._uses.setdefault(file, []).append(use)
                elif len(use.parts) > 1:
                    self._whole.setdefault(file, use)

    def find_doubtful(self) -> list[DroppedTask]:
        """Return every task that may have the picture of another name, as dropped with the reason."""
        doubtful: dict[str, DroppedTask] = {}
        for file, uses in self._uses.items():
            known = [*uses, *([self._whole[file]] if file in self._whole else [])]
            longest = max(known, key=lambda use: len(use.parts))
            others = [use for use in known if not _is_end(use.parts, longest.parts)]
            for use in uses if others else []:
                rival = others[0] if use.parts == longest.parts else longest
                reason = (
                    f"step {use.number}: found {file.name!r} by the end of the name {use.name!r}, and also for "
                    f"{rival.name!r} (task {rival.task_id}): which of them it shows is not known; give the folder in "
                    "which the names begin with --images_dir"
                )
                doubtful.setdefault(use.task_id, DroppedTask(use.task_id, use.source, 0, reason))
        return list(doubtful.values())

    def find_bare(self) -> Iterator[tuple[str, str]]:
        """Yield tasks with a screenshot found by its bare name alone, where others were found with their folders."""
        uses = [use for uses in self._uses.values() for use in uses if len(use.parts) > 1] if self._whole else []
        for use in uses:
            if _fold(use.file.parent.name) != use.parts[-2]:
                yield use.task_id, f"step {use.number}: found {use.name!r} by its bare name alone"


def _fold(part: str) -> str:
    return unicodedata.normalize("NFC", part).casefold()


def _is_end(parts: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    """Say whether parts of a path are the last ones of another."""
    return len(parts) <= len(whole) and whole[len(whole) - len(parts) :] == parts
