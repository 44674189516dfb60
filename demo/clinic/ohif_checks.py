"""When is a goal in OHIF reached? One table by workflow, filled with a task's parameters."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from demo.clinic.ohif_cases import Case
from demo.clinic.ohif_page import VIEWPORTS
from demo.clinic.ohif_studies import ACCESSION, DESCRIPTION, MRN, NAME, STUDIES, Box
from demo.clinic.samples import list_instances
from demo.clinic.stack import Stack
from demo.clinic.tasks import ClinicTask
from demo.clinic.verification import Check, Fact, State, now

MODES = {"Basic Viewer": "/viewer", "Segmentation": "/segmentation"}
TOOL_NAMES = {
    "Length": "Length",
    "Bidirectional": "Bidirectional",
    "Annotation": "ArrowAnnotate",
    "Ellipse": "EllipticalROI",
    "Rectangle": "RectangleROI",
    "Circle": "CircleROI",
    "Freehand ROI": "PlanarFreehandROI",
    "Angle": "Angle",
    "Cobb Angle": "CobbAngle",
}
# Width and level of the CT presets.
PRESETS = {"Soft tissue": (400, 40), "Lung": (1500, -600), "Liver": (150, 90), "Bone": (2500, 480), "Brain": (80, 40)}
COLOURS = {
    "Hot Iron": "hot_iron",
    "HSV": "hsv",
    "PET": "s_pet",
    "X Ray": "X Ray",
    "Perfusion": "perfusion",
    "Red Hot": "red_hot",
}
FILTERS = {NAME: "patientName", MRN: "mrn", DESCRIPTION: "description", ACCESSION: "accession"}  # in the address
NEAR = 0.04  # of the image: how far beside its structure the middle of a drawing, or the end of a line, may be
LARGER = 0.25  # of the structure's longer side: how far beyond that the rest of a drawing may go, on each side
PAINTED_THERE = 0.5  # of what is painted must be on the structures that the goal names, their surroundings included
ZOOM_RATIO = 1.05  # a zoom changes the scale by more than this


def build_check(task: ClinicTask, stack: Stack) -> Check:
    """Fill the workflow's check with a task's parameters."""
    return CHECKS[task.workflow](Asked(task.case, stack))


class Asked:
    """A task's parameters, as facts that states may show."""

    def __init__(self, case: Case, stack: Stack):
        self.case = case
        studies = stack.get("/studies?expand")
        self.study = _find_study(case.study, studies)
        self.second = _find_study(case["second"], studies) if "second" in case.values else ""

    def shown(self, mode: str = "Basic Viewer", study: str = "") -> Fact:
        """Make the fact that a mode is open with the study in every viewport that shows something."""
        wanted = study or self.study

        def holds(state: State) -> bool:
            shown = {viewport["study"] for viewport in state["viewports"] if viewport}
            return state["path"] == MODES[mode] and shown == {wanted}

        return now(f"the study is open in {mode}", holds)

    def zoomed(self, direction: str, where: str = "viewport", study: str = "") -> Fact:
        sign = 1 if direction == "in" else -1
        study = study or self.study

        def holds(before: Any, after: Any) -> bool:
            return (after["zoom"] / before["zoom"]) ** sign > ZOOM_RATIO

        return self._changed(f"zoomed {direction} ({where})", where, study, holds)

    def scrolled(self, direction: str, where: str = "viewport") -> Fact:
        sign = 1 if direction == "down" else -1

        def holds(before: Any, after: Any) -> bool:
            return (after["slice"] - before["slice"]) * sign > 0

        return self._changed(f"scrolled {direction} ({where})", where, self.study, holds)

    def drawn(self, tool: str, key: str = "spot", label: str | None = None, where: str = "viewport") -> Fact:
        """Make the fact that a measurement lies on a structure."""
        box = self.case.box(key)

        def holds(state: State) -> bool:
            return any(
                one["tool"] == TOOL_NAMES[tool]
                and one["study"] == self.study
                and _lies_on(tool, one["points"], box)
                and (label is None or one["label"] == label)
                and one["series"] == (_viewport(state, where) or {}).get("series")
                for one in state["measurements"]
            )

        words = f"{tool} on {self.case[key]}" + (f' called "{label}"' if label is not None else "")
        return now(words, holds)

    def only(self, n: int, tracked: bool = True) -> Fact:
        """Make the fact that there are n measurements and no others, tracked where they ask for it."""

        def holds(state: State) -> bool:
            series = {one["series"] for one in state["measurements"]}
            return len(state["measurements"]) == n and (not tracked or series <= set(state["tracked"]))

        return now(f"{n} measurements" + (", tracked" if tracked else ""), holds)

    def deleted(self) -> Fact:
        return Fact(
            "the measurement was deleted",
            lambda before, after: bool(before["measurements"]) and not after["measurements"],
        )

    def painted(self, key: str = "spot", radius: str = "radius") -> Fact:
        box, size = self.case.box(key), float(self.case[radius])
        boxes = [self.case.box(one) for one in ("spot", "spot2") if one in self.case.values]

        def holds(state: State) -> bool:
            cells = state["painted"]
            n_there = sum(any(_is_in(cell, _enlarge(one)) for one in boxes) for cell in cells)
            is_there = any(_is_in(cell, box) for cell in cells) and n_there >= PAINTED_THERE * len(cells)
            return state["radius"] == size and is_there

        return now(f"painted on {self.case[key]} with radius {size:g}", holds)

    def erased(self) -> Fact:
        return Fact("something painted was erased", lambda before, after: 0 <= after["nPainted"] < before["nPainted"])

    def narrowed(self) -> Fact:
        filters = STUDIES[self.case.study].filters
        wanted = {FILTERS[column]: filters[column].casefold() for column in self.case.fields}

        def holds(state: State) -> bool:
            typed = {name: text.strip().casefold() for name, text in state["filters"].items()}
            return wanted.items() <= typed.items()

        return now(f"the list was filtered by {', '.join(self.case.fields)}", holds)

    def window(self) -> Fact:
        width, level = PRESETS[self.case["preset"]]
        wanted = (level - width / 2, level + width / 2)

        def holds(state: State) -> bool:
            found = (_viewport(state, "viewport") or {"window": (None, None)})["window"]
            return None not in found and all(abs(a - b) <= 2 for a, b in zip(found, wanted))

        return now(f"the {self.case['preset']} window is set", holds)

    def coloured(self) -> Fact:
        wanted = COLOURS[self.case["colours"]]
        return now(
            f"{self.case['colours']} colours",
            lambda state: (_viewport(state, "viewport") or {}).get("colours") == wanted,
        )

    def changed(self) -> Fact:
        change = self.case["change"]

        def holds(state: State) -> bool:
            viewport = _viewport(state, "viewport")
            if viewport is None:
                return False
            return {
                "rotate": viewport["rotation"] % 360 == 90,
                "flip": viewport["isFlipped"],
                "invert": viewport["isInverted"],
            }[change]

        return now(f"the image has the change: {change}", holds)

    def tags_scrolled(self) -> Fact:
        return now(
            "the list of tags was scrolled", lambda state: state["tagSearch"] is not None and state["tagScroll"] > 0
        )

    def tags_searched(self) -> Fact:
        text = self.case["text"]
        return now(f"the tag browser searches {text}", lambda state: (state["tagSearch"] or "").strip() == text)

    def _changed(self, words: str, where: str, study: str, holds: Callable[[Any, Any], bool]) -> Fact:
        """Make a fact about one viewport that showed the same series of the study before and after."""

        def is_so(before: State, after: State) -> bool:
            first, second = _viewport(before, where), _viewport(after, where)
            if first is None or second is None or second["study"] != study or first["series"] != second["series"]:
                return False
            return len(before["viewports"]) == len(after["viewports"]) and holds(first, second)

        return Fact(words, is_so)


def _find_study(name: str, studies: list[dict[str, Any]]) -> str:
    """Return the StudyInstanceUID of the one study that the filters of a name leave."""
    filters = STUDIES[name].filters
    found = [
        study["MainDicomTags"]["StudyInstanceUID"]
        for study in studies
        if study["PatientMainDicomTags"]["PatientID"] == filters[MRN]
        and filters.get(DESCRIPTION, "").lower() in study["MainDicomTags"].get("StudyDescription", "").lower()
        and filters.get(ACCESSION, "") in study["MainDicomTags"].get("AccessionNumber", "")
    ]
    if len(found) != 1:
        raise LookupError(f"{len(found)} studies are {name}")
    return found[0]


def _viewport(state: State, where: str) -> Mapping[str, Any] | None:
    number = VIEWPORTS[where]
    return state["viewports"][number] if number < len(state["viewports"]) else None


def _lies_on(tool: str, points: list[list[float]], box: Box) -> bool:
    """Say whether a drawing is on a structure: an arrow's head, a line's ends, the middle and size of all else."""
    if not points:
        return False
    if tool in ("Annotation", "Length"):
        return all(_is_in(point, box) for point in points[: 1 if tool == "Annotation" else 2])
    if tool == "Circle":  # its middle and a point on it
        (x, y), radius = points[0], math.dist(*points[:2])
        points = [[x - radius, y], [x + radius, y], [x, y - radius], [x, y + radius]]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    middle = [(min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2]
    return _is_in(middle, box) and all(_is_in(point, _enlarge(box)) for point in points)


def _enlarge(box: Box) -> Box:
    left, top, right, bottom = box
    more = LARGER * max(right - left, bottom - top)  # the longer one: a circle on a flat structure is as high as wide
    return left - more, top - more, right + more, bottom + more


def _is_in(point: list[float], box: Box) -> bool:
    left, top, right, bottom = box
    return left - NEAR <= point[0] <= right + NEAR and top - NEAR <= point[1] <= bottom + NEAR


def _layout(rows: int, columns: int) -> Fact:
    return now(f"the layout is {rows}x{columns}", lambda state: (state["rows"], state["columns"]) == (rows, columns))


def _other_frames() -> Fact:
    return now("on two frames", lambda state: len({one["image"] for one in state["measurements"]}) == 2)


SEGMENTED = now("there is a segmentation", lambda state: len(state["segmentations"]) == 1)
KEPT = now("the store has not changed", lambda state: state["instances"] == list_instances())
IN, OUT, DOWN, UP = "in", "out", "down", "up"
LEFT, RIGHT = "left viewport", "right viewport"


def _narrow_list(a: Asked) -> Check:
    return Check([a.narrowed(), a.zoomed(a.case["first"]), a.zoomed(a.case["last"])], [a.shown(), KEPT])


def _grid_measure(a: Asked) -> Check:
    tool, where = a.case["tool"], a.case["where"]
    drawings = [a.drawn(tool, key, where=where) for key in ("spot", "spot2")]
    return Check([a.zoomed(OUT, where), *drawings], [a.shown(), _layout(2, 2), *drawings, a.only(2), KEPT])


def _layout_annotate(a: Asked) -> Check:
    arrow = a.drawn("Annotation", label=a.case["text"], where=LEFT)
    return Check(
        [a.zoomed(IN, LEFT), arrow, a.scrolled(DOWN, RIGHT)], [a.shown(), _layout(1, 2), arrow, a.only(1), KEPT]
    )


def _measure(*way: Callable[[Asked], Fact], n: int = 1, tracked: bool = True) -> "Make":
    """Make the check of a workflow in the Basic Viewer: the way there, and n measurements in the end."""
    return lambda a: Check([fact(a) for fact in way], [a.shown(), a.only(n, tracked), KEPT])


Make = Callable[[Asked], Check]


def _zoomed(direction: str) -> Callable[[Asked], Fact]:
    return lambda a: a.zoomed(direction)


def _scrolled(direction: str) -> Callable[[Asked], Fact]:
    return lambda a: a.scrolled(direction)


def _drawn(tool: str = "", key: str = "spot", label: bool = False) -> Callable[[Asked], Fact]:
    return lambda a: a.drawn(tool or a.case["tool"], key, a.case["text"] if label else None)


CHECKS: dict[str, Make] = {
    "measure_zoomed": _measure(_zoomed(IN), _drawn("Length"), _zoomed(OUT)),
    "measure_two": _measure(_drawn(), _drawn(key="spot2"), _zoomed(IN), n=2),
    "scroll_measure": _measure(_scrolled(DOWN), _zoomed(IN), _drawn("Length"), _scrolled(UP)),
    "window_zoom": lambda a: Check(
        [a.window(), a.zoomed(a.case["direction"]), a.zoomed(a.case["direction"])],
        [a.shown(), a.window(), a.only(0), KEPT],
    ),
    "annotate_zoomed": _measure(_zoomed(IN), _drawn("Annotation", label=True), _zoomed(OUT)),
    "rename_length": lambda a: Check(
        [a.zoomed(IN), a.drawn("Length")], [a.shown(), a.drawn("Length", label=a.case["text"]), a.only(1), KEPT]
    ),
    "delete_region": _measure(_drawn(), _zoomed(IN), Asked.deleted, _zoomed(OUT), n=0),
    "side_by_side": lambda a: Check(
        [a.scrolled(DOWN, RIGHT), a.zoomed(a.case["direction"], RIGHT), a.zoomed(IN, LEFT)],
        [a.shown(), _layout(1, 2), a.only(0), KEPT],
    ),
    "grid_measure": _grid_measure,
    "tag_lookup": lambda a: Check(
        [a.zoomed(a.case["direction"]), a.tags_scrolled()], [a.shown(), a.tags_searched(), a.only(0), KEPT]
    ),
    "brush_label": lambda a: Check(
        [a.painted(), a.painted("spot2"), a.zoomed(IN)],
        [a.shown("Segmentation"), SEGMENTED, a.painted(), a.painted("spot2"), KEPT],
    ),
    "brush_erase": lambda a: Check([a.painted(), a.erased()], [a.shown("Segmentation"), SEGMENTED, KEPT]),
    "angle_zoomed": _measure(_zoomed(IN), _drawn(), _drawn(key="spot2"), _zoomed(OUT), n=2),
    "reorient_measure": lambda a: Check(
        [a.changed(), a.zoomed(OUT), a.drawn("Length"), a.zoomed(IN)], [a.shown(), a.changed(), a.only(1), KEPT]
    ),
    "colour_region": lambda a: Check(
        [a.coloured(), a.zoomed(IN), a.drawn("Rectangle"), a.zoomed(OUT)], [a.shown(), a.coloured(), a.only(1), KEPT]
    ),
    "next_patient": lambda a: Check(
        [a.zoomed(IN), a.zoomed(OUT, study=a.second)], [a.shown(study=a.second), a.only(0), KEPT]
    ),
    "freehand_outline": _measure(
        _zoomed(IN), _drawn("Freehand ROI"), _drawn("Freehand ROI", "spot2"), _zoomed(OUT), n=2, tracked=False
    ),
    "stack_review": _measure(_scrolled(DOWN), _zoomed(IN), _scrolled(DOWN), _zoomed(OUT), n=0),
    "narrow_list": _narrow_list,
    "frame_compare": lambda a: Check(
        [a.scrolled(DOWN), a.drawn("Length"), a.scrolled(UP), a.drawn("Length", "spot2")],
        [a.shown(), a.only(2), _other_frames(), KEPT],
    ),
    "window_segment": lambda a: Check(
        [a.window(), a.painted(), a.zoomed(OUT)], [a.shown("Segmentation"), a.window(), SEGMENTED, a.painted(), KEPT]
    ),
    "layout_annotate": _layout_annotate,
}
