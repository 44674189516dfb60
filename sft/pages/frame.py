"""How is a page made that opens from disk, asks for nothing and runs no script but its own? For report and data page.

What a model or a data file wrote reaches a page in two ways only: through Jinja with autoescape on, or as JSON in a
script element of type application/json, from which the page's script makes text nodes. A content security policy lets
no script run but that one, and nothing be loaded from anywhere.
"""

import base64
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

_FOLDER = Path(__file__).parent

# 960 px keeps labels of a 1280 or 1920 px screen legible at about 13 KB each; past 600 files that would be over 10 MB.
WIDTH_PX, WIDTH_OF_MANY_PX, MANY = 960, 640, 600


@dataclass(frozen=True)
class PageImage:
    """A screenshot in a page: `data` is base64 WebP; one that stays where it is has a `url` instead."""

    data: str = ""
    url: str = ""


def render_page(
    template: Path,
    data_json: str,
    images: Sequence[PageImage],
    content: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]],
) -> str:
    """Return the page of NAME.html.j2, which fills the blocks of frame.html.j2; NAME.css and NAME.js lie beside it.

    `data_json` is what the script reads, `content` what the template does. `images` are found by their number.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    style, script = (_read_both(template, kind) for kind in ("css", "js"))
    return environment.get_template(template.name).render(
        **content,
        images=images,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        data=Markup(escape_script(data_json)),
    )


def escape_script(json_text: str) -> str:
    """Return JSON, written in ASCII, that may stand in a script element: no `<`, so no `</script` and no `<!--`."""
    return json_text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def choose_width(n_images: int) -> int:
    """Return the width in pixels to which embedded screenshots are shrunk."""
    return WIDTH_PX if n_images <= MANY else WIDTH_OF_MANY_PX


def embed_screenshot(screenshot: Image.Image, width: int) -> PageImage:
    """Shrink an open screenshot to at most `width` pixels across."""
    if screenshot.width > width:
        height = max(1, round(screenshot.height * width / screenshot.width))
        screenshot = screenshot.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    screenshot.save(file, "WEBP", quality=60, method=2)
    return PageImage(data=base64.b64encode(file.getvalue()).decode("ascii"))


def link_screenshot(path: Path, folder: Path) -> PageImage:
    """Name a file as a page in `folder` finds it, in whatever letters and bytes its name is."""
    relative = os.fsencode(os.path.relpath(path, folder.resolve()).replace(os.sep, "/"))
    return PageImage(url=quote(relative))


def _read_both(template: Path, kind: str) -> str:
    """Return the frame's style or script with that of a page behind it."""
    own = template.parent / template.name.replace("html.j2", kind)
    return "".join(path.read_text(encoding="utf-8") for path in (_FOLDER / f"frame.{kind}", own))
