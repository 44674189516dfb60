"""The elements of many screenshots: each content read once, kept on disk, by several processes. Knows no table."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from sft.data.screenshots import hash_screenshot, open_screenshot
from sft.data.steps import Trajectory
from sft.elements.detector import Detection, ElementDetector, describe_detector
from sft.errors import UserError
from sft.files import write_whole

_detector: ElementDetector | None = None  # of a worker process


def detect_elements(
    screenshots: Mapping[str, Path], cache_dir: Path | None, n_workers: int = 1
) -> dict[str, Detection]:
    """Read each screenshot, given by its content's SHA-256; what `cache_dir` holds of it is taken from there.

    A result is kept as soon as it is there, so that a run that was killed loses what was under way and no more.

    Raises:
        UserError: the OCR package is not installed, a file of `cache_dir` is damaged, or a screenshot was replaced.
        ScreenshotError: a screenshot went bad after it was checked.
    """
    cache = None if cache_dir is None else _DetectionCache(cache_dir)
    found = {} if cache is None else {sha256: kept for sha256 in screenshots if (kept := cache.load(sha256))}
    left = [sha256 for sha256 in screenshots if sha256 not in found]
    bar = tqdm(total=len(screenshots), initial=len(found), desc="Detecting elements", unit="screenshot", disable=None)
    with bar:
        for sha256, detection in zip(left, _read_all([screenshots[s] for s in left], n_workers)):
            if hash_screenshot(path := screenshots[sha256]) != sha256:
                raise UserError(f"{path}: found another picture than when it was checked; give the same command again")
            found[sha256] = detection
            if cache is not None:
                cache.keep(sha256, detection)
            bar.update()
    return found


def give_elements(trajectories: Sequence[Trajectory], cache_dir: Path | None, n_workers: int = 1) -> list[Trajectory]:
    """Return tasks whose steps have the elements that are detected on their screenshots, whatever they had before."""
    screenshots = {step.image_sha256: step.image_path for t in trajectories for step in t.steps}
    found = detect_elements(screenshots, cache_dir, n_workers)
    return [
        replace(t, steps=tuple(replace(step, elements=found[step.image_sha256].elements) for step in t.steps))
        for t in trajectories
    ]


def _read_all(paths: Sequence[Path], n_workers: int) -> Iterator[Detection]:
    if not paths:
        return
    if n_workers == 1:
        detector = ElementDetector()
        for path in paths:
            yield detector.detect(open_screenshot(path))
        return
    describe_detector()  # says what is missing before any process is started
    # Spawned: a fork would take over the locks of this process's threads.
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_read, paths)


def _read(path: Path) -> Detection:
    global _detector
    if _detector is None:
        _detector = ElementDetector()
    return _detector.detect(open_screenshot(path))


class _DetectionCache:
    """One JSON file a screenshot, named by its content and by what reads it; it appears whole or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder
        made_by = json.dumps(describe_detector(), sort_keys=True)
        self._suffix = hashlib.sha256(made_by.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, sha256: str) -> Detection | None:
        path = self._name(sha256)
        if not path.is_file():
            return None
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return Detection(tuple(fields["elements"]), fields["n_left_out"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{path}: found a damaged file ({error}); delete it, it is made anew") from error

    def keep(self, sha256: str, detection: Detection) -> None:
        content = {"elements": detection.elements, "n_left_out": detection.n_left_out}
        write_whole(self._name(sha256), json.dumps(content, ensure_ascii=False) + "\n", is_forced=False)

    def _name(self, sha256: str) -> Path:
        return self.folder / f"{sha256}_{self._suffix}.json"
