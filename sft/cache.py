"""Resized screenshots on disk, so that each is decoded and resized once. Knows nothing of prompts or batches."""

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sft.screenshots import hash_screenshot, open_screenshot


class ScreenshotCache:
    """Keeps one uint8 array a screenshot, keyed by the file's content and the processor's pixel budget.

    Safe for several processes at once: a file appears whole or not at all. Arrays are uncompressed: 3 bytes a pixel
    after resizing, at most 3 * `max_pixels` bytes a screenshot.
    """

    def __init__(self, folder: Path, image_processor: Any):
        self.folder, self.image_processor = folder, image_processor
        self._hash = lru_cache(maxsize=None)(hash_screenshot)
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, path: Path) -> np.ndarray:
        """Return the screenshot as the processor resizes it: (3, height, width) uint8."""
        processor = self.image_processor
        budget = f"{processor.size['shortest_edge']}_{processor.size['longest_edge']}"
        file = self.folder / f"{self._hash(path)}_{processor.patch_size * processor.merge_size}_{budget}.npy"
        if not file.is_file():
            self._write(file, self._resize(path))
        return np.load(file)

    def _resize(self, path: Path) -> np.ndarray:
        processor = self.image_processor
        return processor.resize(
            image=np.asarray(open_screenshot(path)).transpose(2, 0, 1),
            size=processor.size,
            resample=processor.resample,
            factor=processor.patch_size * processor.merge_size,
        )

    def _write(self, file: Path, pixels: np.ndarray) -> None:
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as temporary:
            np.save(temporary, pixels)
        Path(temporary.name).replace(file)
