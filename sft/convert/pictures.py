"""Where is the picture that a source gives as bytes, as text or by name? Opens no file."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.data.embedded import read_image_bytes
from sft.data.image_paths import find_screenshot, suggest_names

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


def find_picture(value: Any, folders: Sequence[Path]) -> bytes | Path:
    """Return the picture as `read_picture` does.

    Raises:
        ValueError: there is none; with the names that are near to it.
    """
    found = read_picture(value, folders)
    if found is None:
        name = (
            value if isinstance(value, str) else next(iter(value.values()), "") if isinstance(value, dict) else value
        )
        name = str(name)[:80]
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
