"""Screenshot files: checking, opening, hashing. Knows nothing of trajectories, tokens or models."""

import hashlib
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_IMAGE_PIXELS = 40_000_000


def find_image_problem(path: Path) -> str | None:
    """Decode a screenshot fully; return what is wrong with it, or None."""
    if not path.is_file():
        return f"found no file {path}; expected a screenshot there (paths are relative to image_root)"
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                return f"found {width}x{height} pixels in {path}; expected at most {MAX_IMAGE_PIXELS}"
            image.load()
    except UnidentifiedImageError:
        return f"found a file that is no image: {path}; expected PNG, JPEG or WebP"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"found a damaged image: {path} ({error}); restore the file"
    return None


def open_screenshot(path: Path) -> Image.Image:
    """Open a screenshot as the model sees it: upright (EXIF) and RGB; transparent parts become white."""
    with Image.open(path) as file:
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return image.convert("RGB")


def hash_screenshot(path: Path) -> str:
    """Return the SHA-256 of the file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
