"""Which texts stand where on a screenshot? Read from its pixels alone by RapidOCR. Knows no data and no labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.actions import as_plain_text
from sft.data.cells import MAX_CELL_CHARS
from sft.errors import UserError
from sft.files import hash_file
from sft.json_text import dump_json

if TYPE_CHECKING:
    from PIL.Image import Image

Element = dict[str, Any]  # {"name": its text, "bbox": [x1, y1, x2, y2] in whole pixels of the screenshot}

# Goes up when other elements are made of the same texts: of their names, boxes, order or bound.
RULES_VERSION = "1"
PACKAGES = ("onnxruntime", "opencv-python-headless")
MODELS = {"Det": "PP-OCRv6_det_small.onnx", "Rec": "PP-OCRv6_rec_small.onnx"}  # rapidocr's wheel holds both
# Screens stand upright, so no text is turned. Icons are read as letters with low scores: of the demonstration's
# screens, 0.8 keeps 98 % of the names that 0.5 finds, and 0.6 times as many wrong ones.
SETTINGS: Mapping[str, Any] = {
    "Global.text_score": 0.8,
    "Global.use_cls": False,
    "Global.max_side_len": 2000,
    "Det.limit_side_len": 736,
    "Det.limit_type": "min",
    "Det.thresh": 0.3,
    "Det.box_thresh": 0.5,
    "Det.unclip_ratio": 1.6,
}
_ONE_THREAD = {
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
}


@dataclass(frozen=True)
class Detection:
    """The elements of one screenshot in reading order; `n_left_out` more did not fit into a cell of a table."""

    elements: tuple[Element, ...]
    n_left_out: int = 0


class ElementDetector:
    """Reads the texts of screenshots, on one thread; takes a second to load.

    Raises:
        UserError: the package is not installed, or lacks a model.
    """

    def __init__(self) -> None:
        folder = find_models()
        from rapidocr import RapidOCR

        paths = {f"{part}.model_path": str(folder / name) for part, name in MODELS.items()}
        self._engine: Any = RapidOCR(params={**SETTINGS, **paths, **_ONE_THREAD, "Global.log_level": "critical"})

    def detect(self, screenshot: "Image") -> Detection:
        """Return the texts of an upright RGB screenshot as elements."""
        import numpy as np

        found = self._engine(np.ascontiguousarray(np.asarray(screenshot)[:, :, ::-1]))  # OpenCV's order of colours
        if found.txts is None:
            return Detection(())
        width, height = screenshot.size
        elements = []
        for corners, text in zip(found.boxes, found.txts, strict=True):
            if name := " ".join(as_plain_text(text).replace("\0", "").split()):
                elements.append({"name": name, "bbox": _surround(corners.tolist(), width, height)})
        return fit_cell(sort_by_reading(elements))


def sort_by_reading(elements: Sequence[Element]) -> list[Element]:
    """Sort elements line by line from the top, each line from left to right.

    A line begins with the highest element that is left, by its middle; with it go all whose middle lies between that
    element's upper and lower edge.
    """
    left = sorted(elements, key=lambda e: (_middle(e), e["bbox"], e["name"]))
    ordered: list[Element] = []
    while left:
        lower = left[0]["bbox"][3]
        line = [e for e in left if _middle(e) <= max(lower, _middle(left[0]))]
        ordered += sorted(line, key=lambda e: (e["bbox"][0], _middle(e)))
        left = left[len(line) :]  # sorted by their middles, so the line is their beginning
    return ordered


def fit_cell(elements: Sequence[Element]) -> Detection:
    """Leave out the last elements of a list that is too long for a cell."""
    n_chars, n_kept = 2, 0
    for element in elements:
        n_chars += len(dump_json(element)) + 1
        if n_chars > MAX_CELL_CHARS:
            break
        n_kept += 1
    return Detection(tuple(elements[:n_kept]), len(elements) - n_kept)


def find_models() -> Path:
    """Return the folder of the models in RapidOCR's package; nothing is ever downloaded.

    Raises:
        UserError: the package is not installed, or lacks one of them.
    """
    way_out = "pip install -c constraints.txt -e '.[ocr]'"
    found = find_spec("rapidocr"), find_spec("onnxruntime")
    if found[0] is None or found[1] is None or not found[0].submodule_search_locations:
        missing = "rapidocr" if found[0] is None else "onnxruntime"
        raise UserError(f"found no package {missing}, which reads the texts of screenshots; expected {way_out}")
    folder = Path(found[0].submodule_search_locations[0]) / "models"
    if missing_models := [name for name in MODELS.values() if not (folder / name).is_file()]:
        raise UserError(
            f"{folder}: found no {missing_models[0]} (rapidocr {version('rapidocr')}); expected it there: {way_out}"
        )
    return folder


@cache
def describe_detector() -> dict[str, Any]:
    """Say what makes elements here: tool, versions, settings and the models' hashes. Equal words, equal elements.

    Raises:
        UserError: the package is not installed, or lacks a model.
    """
    folder = find_models()
    return {
        "tool": "rapidocr",
        "version": version("rapidocr"),
        "packages": {name: version(name) for name in PACKAGES if _is_installed(name)},
        "models": {name: hash_file(folder / name) for name in MODELS.values()},
        "settings": dict(SETTINGS),
        "rules": RULES_VERSION,
    }


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _middle(element: Element) -> float:
    return (element["bbox"][1] + element["bbox"][3]) / 2


def _surround(corners: Sequence[Sequence[float]], width: int, height: int) -> list[int]:
    """Return the box around four corners, in whole pixels inside the screenshot."""
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    low = [min(max(int(min(v)), 0), most) for v, most in ((xs, width), (ys, height))]
    high = [min(max(-int(-max(v) // 1), 0), most) for v, most in ((xs, width), (ys, height))]
    return [*low, *high]
