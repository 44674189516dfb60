"""Screenshots prepared for the vision tower ahead of time, in threads. Knows nothing of tasks or models."""

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sft.batches.encoder import StepEncoder
from sft.data.screenshots import ScreenshotError, read_version

N_WORKERS = 2
CAPACITY = 64  # prepared screenshots held at once; one of 1920x1080 is about 30 MB

Prepared = dict[str, Any] | ScreenshotError


class ScreenshotLoader:
    """Prepares each screenshot once while it is in use; the least recently used ones make room.

    A file that is written anew is another screenshot.
    """

    def __init__(self, encoder: StepEncoder):
        self.encoder = encoder
        self._pool = ThreadPoolExecutor(N_WORKERS, thread_name_prefix="screenshots")
        self._prepared: OrderedDict[tuple[Path, tuple[int, int]], Future[Prepared]] = OrderedDict()

    def load(self, paths: Iterable[Path]) -> dict[Path, Prepared]:
        """Return what `StepEncoder.encode_screenshots` gives of each distinct screenshot; waits where needed.

        One that cannot be opened stands as its error.
        """
        return {path: prepared.result() for path, prepared in self.prepare(paths).items()}

    def prepare(self, paths: Iterable[Path]) -> dict[Path, Future[Prepared]]:
        """Begin to prepare screenshots that will be asked for soon."""
        begun = {}
        for path in dict.fromkeys(paths):
            key = (path, read_version(path))
            if key not in self._prepared:
                self._prepared[key] = self._pool.submit(self._encode, path)
            self._prepared.move_to_end(key)
            begun[path] = self._prepared[key]
        while len(self._prepared) > max(CAPACITY, len(begun)):
            self._prepared.popitem(last=False)
        return begun

    def _encode(self, path: Path) -> Prepared:
        try:
            return self.encoder.encode_screenshots([path])
        except ScreenshotError as error:
            return error
