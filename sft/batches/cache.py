"""Resized screenshots on disk, so that each is decoded and resized once. Knows nothing of prompts or batches."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np

from sft.data.screenshots import RULES_VERSION, hash_screenshot, open_screenshot
from sft.errors import UserError
from sft.files import write_whole
from sft.models.layouts import Layout


class ScreenshotCache:
    """Keeps one uint8 array a screenshot, keyed by the file's content, how it is opened and the pixel budget.

    Safe for several processes at once: a file appears whole or not at all. Arrays are uncompressed: 3 bytes a pixel
    after resizing, at most 3 * `max_pixels` bytes a screenshot.
    """

    def __init__(self, folder: Path, layout: Layout):
        self.folder, self.layout = folder, layout
        self._hash = lru_cache(maxsize=None)(hash_screenshot)
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, path: Path) -> np.ndarray:
        """Return the screenshot as the family resizes it: (3, height, width) uint8.

        Raises:
            ScreenshotError: the screenshot is missing or damaged.
            UserError: what was kept of it is damaged.
        """
        file = self.folder / f"{self._hash(path)}_{self.layout.name_budget()}_r{RULES_VERSION}.npy"
        if not file.is_file():
            self._write(file, self.layout.prepare(open_screenshot(path)))
        try:
            return np.load(file)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{file}: found a damaged file ({error}); delete it, it is made anew") from error

    def _write(self, file: Path, pixels: np.ndarray) -> None:
        array = io.BytesIO()
        np.save(array, pixels)
        write_whole(file, array.getvalue(), is_forced=False)
