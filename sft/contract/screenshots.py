"""Screenshot files: checking, opening, hashing, storing. Knows nothing of trajectories, tokens or models.

What becomes of an odd image: palette, grey, CMYK, transparent (on white), 16-bit (high byte) and EXIF-rotated ones are
opened as upright RGB, a phone's JPEG with further pictures behind it as its first one; an animation, an image beyond
the limits below, a damaged file and a format that is not listed are refused.
"""

import hashlib
import io
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from sft.errors import UserError

MAX_IMAGE_PIXELS = 40_000_000
MAX_IMAGE_SIDE = 16_384
MAX_ASPECT_RATIO = 100
FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}
_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
# Pillow warns above 89 million pixels; the limit here is lower and refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_EXIF_ORIENTATION, _TURNED_BY_90 = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class ScreenshotFacts:
    """What a check found: `problem` is None where the screenshot can be used; `width_height` is upright, in pixels."""

    sha256: str = ""
    format: str = ""
    width_height: tuple[int, int] = (0, 0)
    problem: str | None = None


def find_image_problem(path: Path) -> str | None:
    """Decode a screenshot fully; return what is wrong with it, or None."""
    return read_facts(path, decode=True).problem


def read_facts(path: Path, decode: bool) -> ScreenshotFacts:
    """Check one file: format, size, completeness (PNG checksums, WebP and JPEG length); `decode` reads every pixel."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ScreenshotFacts(
            problem=f"found no file {path}; expected a screenshot there (paths are relative to image_root)"
        )
    except OSError as error:
        return ScreenshotFacts(problem=f"found a file that cannot be read: {path} ({error.strerror})")
    return inspect_bytes(data, str(path), decode)


def inspect_bytes(data: bytes, name: str, decode: bool) -> ScreenshotFacts:
    """Check an image in memory, as `read_facts` does; `name` stands in the problem's text."""
    sha256 = hashlib.sha256(data).hexdigest()

    def refuse(message: str) -> ScreenshotFacts:
        return ScreenshotFacts(sha256, problem=message)

    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS or max(width, height) > MAX_IMAGE_SIDE:
                return refuse(
                    f"found {width}x{height} pixels in {name}; expected at most {MAX_IMAGE_PIXELS} pixels and "
                    f"{MAX_IMAGE_SIDE} a side"
                )
            if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
                return refuse(f"found {width}x{height} pixels in {name}; expected a side ratio of at most 100")
            is_phones = image.format == "MPO"  # a JPEG with further pictures behind the first
            image_format = "JPEG" if is_phones else image.format or ""
            if getattr(image, "is_animated", False) and not is_phones:
                return refuse(f"found an animation of {image.n_frames} frames: {name}; expected one still image")  # type: ignore[attr-defined]
            if message := _find_damage(data, image_format):
                return refuse(f"found a damaged image: {name} ({message}); restore the file")
            width_height = _find_upright_size(image, data)
            if decode:
                image.load()
    except UnidentifiedImageError:
        return refuse(f"found a file that is no image: {name}; expected PNG, JPEG or WebP")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return refuse(f"found too many pixels in {name} ({error}); expected at most {MAX_IMAGE_PIXELS}")
    except (OSError, SyntaxError, ValueError, IndexError, TypeError, struct.error, zlib.error) as error:
        return refuse(f"found a damaged image: {name} ({error}); restore the file")
    return ScreenshotFacts(sha256, image_format, width_height)


def read_upright_size(path: Path) -> tuple[int, int]:
    """Return width and height of the image that `open_screenshot` returns, without decoding it."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
        return _find_upright_size(image, data)


def open_screenshot(path: Path) -> Image.Image:
    """Open a screenshot as the model sees it: upright (EXIF) and RGB; transparent parts become white.

    Raises:
        UserError: the file is missing or damaged; only a file that changed after the data was checked gets here.
    """
    try:
        with Image.open(path, formats=list(FORMATS)) as file:
            image: Image.Image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it, a viewer shows the high byte
                image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
                image.info.pop("transparency", None)  # a 16-bit value, which would hide another grey
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: found a screenshot that cannot be opened ({error}); restore the file") from error


def read_as_shown(path: Path) -> tuple[str, bytes]:
    """Return a media type and bytes that any reader decodes to the image of `open_screenshot`.

    They are the file's own where it is upright RGB in a format of the web; otherwise a PNG, since what becomes of an
    orientation, transparency or 16 bits is the reader's choice.
    """
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
        is_upright = _find_orientation(image, data) == 1
        if is_upright and image.mode == "RGB" and not image.has_transparency_data and image.format in _MEDIA_TYPES:
            return _MEDIA_TYPES[image.format], data
    png = io.BytesIO()
    open_screenshot(path).save(png, "PNG")
    return "image/png", png.getvalue()


def hash_screenshot(path: Path) -> str:
    """Return the SHA-256 of the file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def store_screenshot(data: bytes, facts: ScreenshotFacts, folder: Path) -> str:
    """Write an image under the hash of its content, whole or not at all; return its file name."""
    name = f"{facts.sha256[:16]}.{FORMATS[facts.format]}"
    path = folder / name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    return name


def find_screenshot(name: str, folders: Sequence[Path]) -> Path | None:
    """Find a file below one of the folders: by its path there, or by its bare name. Nothing outside them is opened."""
    relative = PurePosixPath(name.replace("\\", "/"))
    if not relative.name or "\0" in name or len(name) > 1000:
        return None
    paths = [PurePosixPath(relative.name)]
    if not relative.is_absolute() and ".." not in relative.parts:
        paths.insert(0, relative)
    return next((folder / path for folder in folders for path in paths if (folder / path).is_file()), None)


def _find_upright_size(image: Image.Image, data: bytes) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _find_orientation(image, data) in _TURNED_BY_90 else (width, height)


def _find_orientation(image: Image.Image, data: bytes) -> Any:
    """Return the EXIF orientation as the file has it, 1 where there is none."""
    has_exif = "exif" in image.info or (image.format == "PNG" and b"eXIf" in data)  # getexif() decodes a PNG
    return image.getexif().get(_EXIF_ORIENTATION, 1) if has_exif else 1


def _find_damage(data: bytes, image_format: str) -> str | None:
    """Return what the file's own lengths and checksums say is wrong; far cheaper than to decode it."""
    if image_format == "PNG":
        return _find_png_damage(data)
    if image_format == "WEBP" and len(data) < struct.unpack("<I", data[4:8])[0] + 8:
        return "the file is cut short"
    if image_format == "JPEG" and not _has_jpeg_end(data):
        return "the file is cut short"
    return None


def _has_jpeg_end(data: bytes) -> bool:
    """Return whether the picture's data ends with its end marker; other bytes may follow, as phones write them.

    The search begins at the picture's own scan: a preview in the header has an end marker too.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        is_alone = data[position + 1] in (0x01, 0xFF) or 0xD0 <= data[position + 1] <= 0xD8  # no length follows
        if is_alone:
            position += 1 if data[position + 1] == 0xFF else 2
        else:
            position += 2 + struct.unpack(">H", data[position + 2 : position + 4])[0]
    return data.find(b"\xff\xd9", position) >= 0


def _find_png_damage(data: bytes) -> str | None:
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(data[position + 4 : end]) != struct.unpack(">I", data[end : end + 4])[0]:
            return f"wrong checksum of its {kind.decode('latin-1')!r} part"
        if kind == b"IEND":
            return None
        position = end + 4
    return "the file is cut short"
