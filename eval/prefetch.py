"""Screenshots prepared for the vision tower ahead of time, in threads. Knows nothing of tasks or models."""

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sft.batches.encoding import StepEncoder

N_WORKERS = 2
CAPACITY = 64  # prepared screenshots held at once; one of 1920x1080 is about 30 MB


class ScreenshotLoader:
    """Prepares each screenshot once while it is in use; the least recently used ones make room."""

    def __init__(self, encoder: StepEncoder):
        self.encoder = encoder
        self._pool = ThreadPoolExecutor(N_WORKERS, thread_name_prefix="screenshots")
        self._prepared: OrderedDict[Path, Future[dict[str, Any]]] = OrderedDict()

    def load(self, paths: Iterable[Path]) -> dict[Path, dict[str, Any]]:
        """Return what `StepEncoder.encode_screenshots` gives of each distinct screenshot; waits where needed."""
        distinct = list(dict.fromkeys(paths))
        self.prepare(distinct)
        return {path: self._prepared[path].result() for path in distinct}

    def prepare(self, paths: Iterable[Path]) -> None:
        """Begin to prepare screenshots that will be asked for soon."""
        distinct = list(dict.fromkeys(paths))
        for path in distinct:
            if path not in self._prepared:
                self._prepared[path] = self._pool.submit(self._encode, path)
            self._prepared.move_to_end(path)
        while len(self._prepared) > max(CAPACITY, len(distinct)):
            self._prepared.popitem(last=False)

    def _encode(self, path: Path) -> dict[str, Any]:
        return self.encoder.encode_screenshots([path])
