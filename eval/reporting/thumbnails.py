"""Screenshots to small WebP data for the report, each distinct file once. Knows nothing of steps or HTML."""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from tqdm import tqdm

from sft.data.image_paths import resolve_image
from sft.data.screenshots import ScreenshotError, hash_screenshot, open_screenshot

# 960 px keeps labels of a 1280 or 1920 px screen legible at about 13 KB each; past 600 files that would be over 10 MB.
WIDTH_PX, WIDTH_OF_MANY_PX, MANY = 960, 640, 600


@dataclass(frozen=True)
class Thumbnail:
    """A screenshot made small: `data` is base64 WebP, `screen` the (width, height) of the original in pixels.

    A linked screenshot has a `url` instead, relative to the report.
    """

    data: str
    screen: tuple[int, int]
    url: str = ""


@dataclass(frozen=True)
class Thumbnails:
    """All screenshots of a report; `index_of` maps an image id to its place in `images`.

    `problems` names what could not be read; those image ids are not in `index_of`.
    """

    images: Sequence[Thumbnail]
    index_of: Mapping[str, int]
    problems: Sequence[str]


def load_thumbnails(image_ids: Sequence[str], image_root: Path, link_from: Path | None = None) -> Thumbnails:
    """Read and shrink every distinct screenshot; files with the same bytes share one thumbnail.

    With `link_from`, the folder of the report, they are linked instead of shrunk and embedded.

    A name is found as the check finds it (`resolve_image`), links followed. A screenshot that is missing or damaged
    becomes one line of `problems`: a report of a run whose screenshots have been moved is still a report.
    """
    root = image_root.resolve()
    files: dict[str, Path] = {}  # content hash -> one file that has it
    hash_of: dict[str, str] = {}
    problems = []
    for image_id in dict.fromkeys(image_ids):
        try:
            path = resolve_image(image_id, root)
            hash_of[image_id] = hash_screenshot(path)
        except ValueError as error:
            problems.append(str(error))
        else:
            files.setdefault(hash_of[image_id], path)
    width = WIDTH_PX if len(files) <= MANY else WIDTH_OF_MANY_PX
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL while it decodes, shrinks and encodes
        made = pool.map(lambda path: _make_thumbnail(path, width, link_from), files.values())
        bar = tqdm(made, total=len(files), desc="Embedding screenshots", unit="file", leave=False)
        by_hash = dict(zip(files, bar))
    problems += [entry for entry in by_hash.values() if isinstance(entry, str)]
    images = {digest: entry for digest, entry in by_hash.items() if isinstance(entry, Thumbnail)}
    place = {digest: i for i, digest in enumerate(images)}
    index_of = {image_id: place[digest] for image_id, digest in hash_of.items() if digest in place}
    return Thumbnails(list(images.values()), index_of, problems)


@lru_cache(maxsize=2048)  # the reports of several modes show the same screenshots
def _make_thumbnail(path: Path, width: int, link_from: Path | None) -> Thumbnail | str:
    try:
        image = open_screenshot(path)
    except ScreenshotError as error:
        return str(error)
    screen = image.size
    if link_from is not None:
        return Thumbnail("", screen, quote(os.path.relpath(path, link_from.resolve()).replace(os.sep, "/")))
    if image.width > width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=60, method=2)
    return Thumbnail(base64.b64encode(file.getvalue()).decode("ascii"), screen)
