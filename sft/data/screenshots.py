"""Screenshot files: checking, opening, hashing, storing. Knows nothing of trajectories, tokens or models.

Every picture of the project is opened here, by one set of rules: palette, grey, CMYK, transparent (on white), 16-bit
(high byte) and turned ones are opened as upright RGB, a phone's JPEG with further pictures behind it as its first one;
an animation, an image beyond the limits below, a damaged file and a format that is not listed are refused.
"""

import contextlib
import hashlib
import io
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from sft.data.image_files import ImageFile, take_apart
from sft.errors import UserError
from sft.file_kinds import describe_no_picture, find_picture_format
from sft.files import write_whole

MAX_IMAGE_PIXELS = 40_000_000
MAX_IMAGE_SIDE = 16_384
MAX_ASPECT_RATIO = 100
MAX_FILE_BYTES = 4 * MAX_IMAGE_PIXELS + 1_000_000  # uncompressed, with transparency
RULES_VERSION = 2  # goes up when a file is opened as another picture than before: what was kept of it is old then
SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}
# Alpha below which nobody tells a pixel from the white behind it, and the share of visible pixels that is worth a word
BARELY_VISIBLE, FEW_VISIBLE = 8, 0.05
_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED_BY_90 = (5, 6, 7, 8)
# What Pillow raises on damaged data, found by damaging files of every format
_DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    zlib.error,
)
# Pillow warns above 89 million pixels; the limit here is lower and refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Decode = Literal["never", "if_unproven", "always"]


class ScreenshotError(UserError):
    """A file that cannot be used as a screenshot; `path` is where it lies, None where it lies in memory."""

    def __init__(self, message: str, path: Path | None = None):
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class ScreenshotFacts:
    """What a check found: `problem` is None where the screenshot can be used; `width_height` is upright, in pixels.

    `note` says what a person should know of one that can be used; "" where there is nothing.
    """

    sha256: str = ""
    format: str = ""
    width_height: tuple[int, int] = (0, 0)
    problem: str | None = None
    note: str = ""


def read_screenshot(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        ScreenshotError: it is missing, no file, larger than any picture that is taken, or cannot be read.
    """
    try:
        status = path.stat()
        is_folder, is_file, n_bytes = stat.S_ISDIR(status.st_mode), stat.S_ISREG(status.st_mode), status.st_size
        if is_folder or (is_file and n_bytes <= MAX_FILE_BYTES):
            return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        message = f"found no file {path}; expected a screenshot there (paths are relative to image_root)"
        raise ScreenshotError(message, path) from error
    except OSError as error:
        raise ScreenshotError(f"found a file that cannot be read: {path} ({error.strerror})", path) from error
    except ValueError as error:
        raise ScreenshotError(f"found a name that no file can have: {str(path)!r} ({error})", path) from error
    if not is_file:  # a pipe would be waited for, a device read without end
        raise ScreenshotError(f"found a pipe or device: {path}; expected a file", path)
    raise ScreenshotError(f"found a file of {n_bytes} bytes: {path}; expected at most {MAX_FILE_BYTES}", path)


def read_facts(path: Path, decode: Decode) -> ScreenshotFacts:
    """Check one file as `inspect_bytes` does."""
    try:
        data = read_screenshot(path)
    except ScreenshotError as error:
        return ScreenshotFacts(problem=str(error))
    return inspect_bytes(data, str(path), decode)


def inspect_bytes(data: bytes, name: str, decode: Decode) -> ScreenshotFacts:
    """Check an image in memory; `name` stands in the problem's text.

    Its structure is looked at in any case: format, size, completeness. "if_unproven" opens it as training does unless
    it is an opaque PNG: there checksums have proved every byte of it, at a tenth of the time.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    note = ""
    try:
        with _open(data, name) as (image, file):
            is_proven = file.has_checksums and not image.has_transparency_data
            width_height = _find_upright_size(image, file)
            if decode == "always" or (decode == "if_unproven" and not is_proven):
                note = _show(image, file)[1]
    except ScreenshotError as error:
        return ScreenshotFacts(sha256, problem=str(error))
    return ScreenshotFacts(sha256, file.kind, width_height, note=note)


def read_upright_size(path: Path) -> tuple[int, int]:
    """Return width and height of the image that `open_screenshot` returns, without decoding it.

    Raises:
        ScreenshotError: as `open_screenshot`, where the file's structure shows it.
    """
    with _open(read_screenshot(path), str(path), path) as (image, file):
        return _find_upright_size(image, file)


def read_version(path: Path) -> tuple[int, int]:
    """Return time and size of a file, which tell it from what was written there before; zeros where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return 0, 0
    return status.st_mtime_ns, status.st_size


def open_screenshot(path: Path) -> Image.Image:
    """Open a screenshot as the model sees it: upright and RGB; transparent parts are white.

    Where no pixel is visible the colours are shown that stand behind the alpha channel.

    Raises:
        ScreenshotError: the file is missing, damaged or beyond a limit, in the words of the check.
    """
    with _open(read_screenshot(path), str(path), path) as (image, file):
        return _show(image, file)[0]


def read_as_shown(path: Path) -> tuple[str, bytes]:
    """Return a media type and bytes that any reader decodes to the image of `open_screenshot`.

    They are the file's own, without what stands beside the pixels, where it is upright RGB in a format of the web;
    otherwise a PNG, since what becomes of an orientation, transparency or 16 bits is the reader's choice.

    Raises:
        ScreenshotError: as `open_screenshot`.
    """
    with _open(read_screenshot(path), str(path), path) as (image, file):
        is_plain = file.orientation == 1 and image.mode == "RGB" and not image.has_transparency_data
        if is_plain and file.kind in _MEDIA_TYPES and not {"exif", "xmp"} & image.info.keys():
            return _MEDIA_TYPES[file.kind], file.data
        png = io.BytesIO()
        _show(image, file)[0].save(png, "PNG")
    return "image/png", png.getvalue()


def hash_screenshot(path: Path) -> str:
    """Return the SHA-256 of the file's bytes, in hex.

    Raises:
        ScreenshotError: the file is missing or cannot be read.
    """
    return hashlib.sha256(read_screenshot(path)).hexdigest()


def store_screenshot(data: bytes, facts: ScreenshotFacts, folder: Path) -> str:
    """Write an image under the hash of its content, whole or not at all; return its file name."""
    name = f"{facts.sha256[:16]}.{SUFFIXES[facts.format]}"
    path = folder / name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, data, is_forced=False)
    return name


@contextlib.contextmanager
def _open(data: bytes, name: str, path: Path | None = None) -> Iterator[tuple[Image.Image, ImageFile]]:
    """Open a picture by this file's rules; what is wrong with it, now or while it is used, is a ScreenshotError."""
    if find_picture_format(data) is None:
        message = f"found {describe_no_picture(data)}: {name}; expected a PNG, JPEG, WebP, BMP or GIF image"
        raise ScreenshotError(message, path)
    try:
        file = take_apart(data)
        with Image.open(io.BytesIO(file.data), formats=[file.kind]) as image:
            if excess := _find_excess(image, file):
                raise ScreenshotError(excess.format(name), path)
            yield image, file
    except ScreenshotError:
        raise
    except Image.DecompressionBombError as error:
        message = f"found too many pixels in {name} ({error}); expected at most {MAX_IMAGE_PIXELS}"
        raise ScreenshotError(message, path) from error
    except Image.UnidentifiedImageError as error:
        message = f"found a damaged image: {name} (its header cannot be read); restore the file"
        raise ScreenshotError(message, path) from error
    except _DAMAGE as error:
        raise ScreenshotError(f"found a damaged image: {name} ({error}); restore the file", path) from error


def _find_excess(image: Image.Image, file: ImageFile) -> str | None:
    """Return what is too much in an image, with a place for its name."""
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS or max(width, height) > MAX_IMAGE_SIDE:
        return (
            f"found {width}x{height} pixels in {{}}; expected at most {MAX_IMAGE_PIXELS} pixels and "
            f"{MAX_IMAGE_SIDE} a side"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        return f"found {width}x{height} pixels in {{}}; expected a side ratio of at most 100"
    if file.n_frames > 1 or getattr(image, "is_animated", False):
        n_frames = max(file.n_frames, getattr(image, "n_frames", 1))
        return f"found an animation of {n_frames} frames: {{}}; expected one still image"
    return None


def _find_upright_size(image: Image.Image, file: ImageFile) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if file.orientation in _TURNED_BY_90 else (width, height)


def _show(image: Image.Image, file: ImageFile) -> tuple[Image.Image, str]:
    """Return the picture as the model sees it, and what is to be said of it."""
    turn = _TURNS.get(file.orientation)
    image.load()
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):  # 16-bit grey: Pillow would clip it, a viewer shows the high byte
        upright = upright.convert("I").point(lambda value: value * (1 / 256)).convert("L")
        upright.info.pop("transparency", None)  # a 16-bit value, which would hide another grey
    if not upright.has_transparency_data:
        return upright.convert("RGB"), ""
    rgba = upright.convert("RGBA")
    counts, n_pixels = rgba.getchannel("A").histogram(), rgba.width * rgba.height
    share = sum(counts[BARELY_VISIBLE:]) / n_pixels
    if counts[255] == n_pixels:  # a window grabbed with an alpha channel that does nothing: spares the compositing
        return rgba.convert("RGB"), ""
    if share == 0:
        return rgba.convert("RGB"), "no pixel of it is visible (alpha 0); its colours are shown without alpha"
    shown = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    few = f"only {share:.1%} of its pixels are visible (alpha above 0); the others are shown as white"
    return shown, few if share < FEW_VISIBLE else ""
