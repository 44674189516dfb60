"""The OHIF workflows: which phases follow each other, with which parameters, and how a person would ask for them."""

from collections.abc import Callable
from dataclasses import dataclass

import ohif_goals
from ohif_phases import (
    Phase,
    add_segmentation,
    annotate,
    browse_tags,
    change_image,
    delete_measurement,
    is_busy,
    launch,
    measure,
    measure_again,
    open_study,
    paint,
    rename_measurement,
    return_to_list,
    scroll,
    set_colours,
    set_layout,
    set_window,
    window_region,
    zoom,
)
from ohif_studies import ACCESSION, DESCRIPTION, FIELD_WORDS, MRN, NAME, STUDIES, Box
from playwright.sync_api import Page
from recorder import Recorder, Task
from stack import Stack

__all__ = ["APPLICATION", "build_tasks", "is_busy", "open_start"]

APPLICATION = "OHIF Viewer"
NO_TOUR = """localStorage.setItem("shownTours", '["basicViewerTour"]')"""


@dataclass(frozen=True)
class Case:
    """One task's parameters: `study` and `fields` find the study, `values` fill the phases and the goal's slots."""

    study: str
    fields: tuple[str, ...]
    values: dict[str, str]

    def __getitem__(self, key: str) -> str:
        return self.values[key]

    def box(self, key: str = "spot") -> Box:
        """Look up the box of a structure named in the values."""
        return STUDIES[self.study].spots[self.values[key]]

    def open(self, mode: str = "Basic Viewer") -> Phase:
        return open_study(STUDIES[self.study], list(self.fields), mode)

    def slots(self) -> dict[str, str]:
        """Name what a goal's template may use: f1 and t1 are the first filter's column and text."""
        slots = dict(self.values, patient=STUDIES[self.study].patient)
        for number, column in enumerate(self.fields, 1):
            slots |= {f"f{number}": FIELD_WORDS[column], f"t{number}": STUDIES[self.study].filters[column]}
        return slots


@dataclass(frozen=True)
class Workflow:
    """A kind of task. `new`: recorded for the test part only."""

    name: str
    phases: Callable[[Case], list[Phase]]
    cases: list[Case]
    new: bool = False


def case(study: str, *fields: str, **values: str) -> Case:
    return Case(study, fields, values)


def measure_zoomed(c: Case) -> list[Phase]:
    return [c.open(), zoom("in"), measure("Length", [c.box()]), zoom("out")]


def measure_two(c: Case) -> list[Phase]:
    return [c.open(), measure(c["tool"], [c.box()]), measure_again(c["tool"], c.box("spot2")), zoom("in")]


def scroll_measure(c: Case) -> list[Phase]:
    return [c.open(), scroll("down"), zoom("in"), measure("Length", [c.box()]), scroll("up", slices=1)]


def window_zoom(c: Case) -> list[Phase]:
    return [c.open(), set_window(c["preset"]), zoom(c["direction"], times=2)]


def annotate_zoomed(c: Case) -> list[Phase]:
    return [c.open(), zoom("in"), annotate(c["text"], c.box()), zoom("out")]


def rename_length(c: Case) -> list[Phase]:
    return [c.open(), zoom("in"), measure("Length", [c.box()]), rename_measurement(c["text"])]


def undo_region(c: Case) -> list[Phase]:
    return [c.open(), measure(c["tool"], [c.box()]), zoom("in"), delete_measurement(), zoom("out")]


def side_by_side(c: Case) -> list[Phase]:
    right = "right viewport"
    zooms = [zoom("in", where="left viewport", subtask="zoom left in"), zoom("out", where=right, subtask="zoom right out")]
    if c["scrolls"]:
        return [c.open(), set_layout("1x2"), scroll("down", 1, right, "scroll right viewport"), *zooms]
    return [c.open(), set_layout("1x2"), *zooms]


def grid_measure(c: Case) -> list[Phase]:
    where = c["where"]
    return [c.open(), set_layout("2x2"), zoom("in", where=where), measure(c["tool"], [c.box(), c.box("spot2")], where)]


def tag_lookup(c: Case) -> list[Phase]:
    return [c.open(), zoom(c["direction"]), browse_tags(c["text"], scroll_first=True)]


def brush_label(c: Case) -> list[Phase]:
    boxes = [c.box(), c.box("spot2")]
    return [c.open("Segmentation"), add_segmentation(), paint("Brush", c["radius"], boxes, "paint segment"), zoom("in")]


def brush_erase(c: Case) -> list[Phase]:
    return [
        c.open("Segmentation"),
        add_segmentation(),
        paint("Brush", c["radius"], [c.box()], "paint segment"),
        paint("Eraser", None, [c.box("spot2")], "erase part"),
    ]


def angle_zoomed(c: Case) -> list[Phase]:
    tool = c["tool"]
    return [c.open(), zoom("in"), measure(tool, [c.box()]), measure_again(tool, c.box("spot2")), zoom("out")]


CHANGES = {
    "rotate": ("Rotate Right", "image rotated", "rotate image"),
    "flip": ("Flip Horizontal", "image flipped", "flip image"),
    "invert": ("Invert", "image inverted", "invert image"),
}


def reorient_measure(c: Case) -> list[Phase]:
    return [c.open(), change_image(*CHANGES[c["change"]]), zoom("out"), measure("Length", [c.box()]), zoom("in")]


def colour_scroll(c: Case) -> list[Phase]:
    return [c.open(), set_colours(c["colours"]), zoom("in"), scroll("down", 1), zoom("out")]


def next_patient(c: Case) -> list[Phase]:
    second = STUDIES[c["second"]]
    return [
        c.open(),
        zoom("in"),
        return_to_list(c["column"], second.filters[c["column"]]),
        launch(second, subtask="open next study"),
        zoom("out"),
    ]


def region_window(c: Case) -> list[Phase]:
    return [c.open(), zoom("in"), window_region(c.box()), zoom("out")]


def window_segment(c: Case) -> list[Phase]:
    """New: a window preset inside the Segmentation mode, one stroke, and out again."""
    boxes = [c.box()]
    return [c.open("Segmentation"), set_window(c["preset"]), add_segmentation(), paint("Brush", c["radius"], boxes, "paint segment"), zoom("out")]


def layout_annotate(c: Case) -> list[Phase]:
    """New: two series side by side, a scroll on the right, an arrow on the left."""
    where, right = "left viewport", "right viewport"
    return [
        c.open(),
        set_layout("1x2"),
        zoom("in", where=where),
        annotate(c["text"], c.box(), where),
        scroll("down", 1, right, "scroll right viewport"),
    ]


CENTRE, UPPER, LOWER = "the centre of the image", "the upper half of the image", "the lower half of the image"
LEFT, RIGHT = "the left side of the image", "the right side of the image"
CANAL, PROCESS = "the vertebral canal", "the spinous process"
LESION, AORTA, KIDNEY = "the liver lesion", "the aorta", "the left kidney"
VENTRICLE, VALVE, ATRIUM = "the left ventricle", "the mitral valve", "the left atrium"
RING, TUBE = "the bright ring", "the tubular structure"
NODE_LEFT, NODE_RIGHT = "the left half of the lymph node", "the right half of the lymph node"
SKULL, BRAIN = "the skull", "the brain"

WORKFLOWS = [
    Workflow(
        "measure_zoomed",
        measure_zoomed,
        [
            case("vertebra", MRN, spot=CANAL),
            case("liver", DESCRIPTION, spot=AORTA),
            case("vessel", NAME, spot=RING),
            case("heart", NAME, spot=VALVE),
            case("vertebra", NAME, spot=PROCESS),
            case("skull", NAME, spot=BRAIN),
            case("liver", MRN, spot=LESION),
            case("heart", MRN, spot=ATRIUM),
            case("node", MRN, spot=NODE_LEFT),
        ],
    ),
    Workflow(
        "measure_two",
        measure_two,
        [
            case("liver", MRN, tool="Ellipse", spot=LESION, spot2=AORTA),
            case("vertebra", MRN, tool="Rectangle", spot=CANAL, spot2=PROCESS),
            case("heart", NAME, tool="Bidirectional", spot=VENTRICLE, spot2=ATRIUM),
            case("vessel", MRN, tool="Circle", spot=RING, spot2=TUBE),
            case("node", NAME, tool="Ellipse", spot=NODE_LEFT, spot2=NODE_RIGHT),
            case("liver", DESCRIPTION, tool="Bidirectional", spot=KIDNEY, spot2=LESION),
            case("skull", MRN, tool="Rectangle", spot=SKULL, spot2=BRAIN),
            case("heart", MRN, tool="Circle", spot=VALVE, spot2=VENTRICLE),
            case("vertebra", NAME, tool="Ellipse", spot="the vertebral body", spot2=CANAL),
        ],
    ),
    Workflow(
        "scroll_measure",
        scroll_measure,
        [
            case("heart", NAME, spot=VENTRICLE),
            case("head", DESCRIPTION, spot=CENTRE),
            case("heart", MRN, spot=VALVE),
            case("head", MRN, DESCRIPTION, spot=UPPER),
            case("heart", NAME, spot=ATRIUM),
            case("head", DESCRIPTION, spot=LOWER),
            case("heart", MRN, spot=VENTRICLE),
            case("head", NAME, DESCRIPTION, spot=RIGHT),
        ],
    ),
    Workflow(
        "window_zoom",
        window_zoom,
        [
            case("vertebra", NAME, preset="Bone", direction="in"),
            case("skull", MRN, preset="Lung", direction="out"),
            case("vertebra", MRN, preset="Lung", direction="in"),
            case("skull", NAME, preset="Soft tissue", direction="in"),
            case("vertebra", NAME, MRN, preset="Soft tissue", direction="out"),
            case("skull", MRN, NAME, preset="Bone", direction="in"),
            case("vertebra", MRN, preset="Liver", direction="out"),
            case("skull", NAME, preset="Brain", direction="out"),
        ],
    ),
    Workflow(
        "annotate_zoomed",
        annotate_zoomed,
        [
            case("liver", DESCRIPTION, spot=LESION, text="hypodense lesion"),
            case("vertebra", NAME, spot=CANAL, text="canal patent"),
            case("heart", MRN, spot=VALVE, text="mitral valve"),
            case("vessel", MRN, spot=RING, text="check lumen"),
            case("liver", MRN, spot=AORTA, text="normal aorta"),
            case("node", NAME, spot=NODE_RIGHT, text="hilar flow"),
            case("heart", NAME, spot=VENTRICLE, text="LV cavity"),
            case("vertebra", MRN, spot=PROCESS, text="no fracture"),
            case("skull", NAME, spot=BRAIN, text="artifact"),
        ],
    ),
    Workflow(
        "rename_length",
        rename_length,
        [
            case("vertebra", MRN, spot=CANAL, text="canal width"),
            case("liver", NAME, spot=LESION, text="target lesion 1"),
            case("heart", NAME, spot=VALVE, text="mitral annulus"),
            case("vessel", NAME, spot=RING, text="outer diameter"),
            case("liver", MRN, DESCRIPTION, spot=AORTA, text="aorta"),
            case("vertebra", NAME, MRN, spot=PROCESS, text="process"),
            case("heart", MRN, NAME, spot=ATRIUM, text="LA"),
            case("node", MRN, spot=NODE_LEFT, text="node length"),
        ],
    ),
    Workflow(
        "delete_region",
        undo_region,
        [
            case("vertebra", MRN, tool="Ellipse", spot=CANAL),
            case("liver", DESCRIPTION, tool="Circle", spot=LESION),
            case("heart", NAME, tool="Rectangle", spot=VENTRICLE),
            case("vessel", MRN, tool="Ellipse", spot=RING),
            case("skull", NAME, tool="Bidirectional", spot=BRAIN),
            case("liver", MRN, tool="Rectangle", spot=AORTA),
            case("vertebra", NAME, tool="Circle", spot=PROCESS),
            case("heart", MRN, tool="Bidirectional", spot=ATRIUM),
        ],
    ),
    Workflow(
        "side_by_side",
        side_by_side,
        [
            case("angio", DESCRIPTION, scrolls="yes"),
            case("brain", ACCESSION, scrolls="yes"),
            case("angio", NAME, DESCRIPTION, scrolls="yes"),
            case("brain", MRN, ACCESSION, scrolls="yes"),
            case("angio", MRN, DESCRIPTION, scrolls="yes"),
            case("brain", NAME, ACCESSION, scrolls="yes"),
            case("brain", ACCESSION, NAME, scrolls="yes"),
            case("angio", DESCRIPTION, MRN, scrolls="yes"),
        ],
    ),
    Workflow(
        "grid_measure",
        grid_measure,
        [
            case("spine", DESCRIPTION, where="top left viewport", tool="Ellipse", spot=UPPER, spot2=LOWER),
            case("angio", DESCRIPTION, where="top right viewport", tool="Length", spot=CENTRE, spot2=LOWER),
            case("spine", MRN, DESCRIPTION, where="bottom left viewport", tool="Rectangle", spot=UPPER, spot2=LOWER),
            case("angio", NAME, DESCRIPTION, where="bottom left viewport", tool="Ellipse", spot=CENTRE, spot2=LOWER),
            case("spine", NAME, DESCRIPTION, where="top right viewport", tool="Length", spot=UPPER, spot2=LOWER),
            case("angio", MRN, DESCRIPTION, where="top left viewport", tool="Rectangle", spot=CENTRE, spot2=UPPER),
            case("spine", DESCRIPTION, where="bottom left viewport", tool="Length", spot=CENTRE, spot2=LOWER),
            case("angio", DESCRIPTION, where="top left viewport", tool="Circle", spot=CENTRE, spot2=LOWER),
        ],
    ),
    Workflow(
        "tag_lookup",
        tag_lookup,
        [
            case("vertebra", MRN, text="SliceThickness", direction="in"),
            case("liver", DESCRIPTION, text="EchoTime", direction="out"),
            case("heart", NAME, text="FrameTime", direction="in"),
            case("skull", NAME, text="KVP", direction="out"),
            case("vessel", NAME, text="Manufacturer", direction="out"),
            case("spine", DESCRIPTION, text="BodyPartExamined", direction="in"),
            case("liver", MRN, text="RepetitionTime", direction="in"),
            case("vertebra", NAME, text="PatientID", direction="out"),
        ],
    ),
    Workflow(
        "brush_label",
        brush_label,
        [
            case("vertebra", MRN, radius="3", spot=CANAL, spot2=PROCESS),
            case("liver", DESCRIPTION, radius="8", spot=LESION, spot2=KIDNEY),
            case("vessel", NAME, radius="2", spot=RING, spot2=TUBE),
            case("skull", NAME, radius="10", spot=BRAIN, spot2=SKULL),
            case("liver", MRN, radius="6", spot=AORTA, spot2=LESION),
            case("vertebra", NAME, radius="4", spot=PROCESS, spot2=CANAL),
            case("vessel", MRN, radius="3", spot=TUBE, spot2=RING),
            case("liver", NAME, radius="12", spot=KIDNEY, spot2=AORTA),
        ],
    ),
    Workflow(
        "brush_erase",
        brush_erase,
        [
            case("liver", MRN, radius="15", spot=LESION, spot2=LESION),
            case("vertebra", NAME, radius="5", spot=CANAL, spot2=CANAL),
            case("skull", MRN, radius="20", spot=BRAIN, spot2=BRAIN),
            case("vessel", MRN, radius="4", spot=RING, spot2=RING),
            case("liver", DESCRIPTION, radius="10", spot=KIDNEY, spot2=KIDNEY),
            case("vertebra", MRN, radius="6", spot=PROCESS, spot2=PROCESS),
            case("liver", NAME, radius="9", spot=AORTA, spot2=AORTA),
        ],
    ),
    Workflow(
        "angle_zoomed",
        angle_zoomed,
        [
            case("vertebra", MRN, tool="Angle", spot=CANAL, spot2=PROCESS),
            case("heart", NAME, tool="Angle", spot=VENTRICLE, spot2=VALVE),
            case("liver", DESCRIPTION, tool="Angle", spot=AORTA, spot2=LESION),
            case("spine", DESCRIPTION, tool="Cobb Angle", spot=CENTRE, spot2=LOWER),
            case("vertebra", NAME, tool="Cobb Angle", spot=CANAL, spot2=PROCESS),
            case("vessel", MRN, tool="Angle", spot=RING, spot2=TUBE),
            case("spine", MRN, DESCRIPTION, tool="Cobb Angle", spot=UPPER, spot2=CENTRE),
            case("heart", MRN, tool="Angle", spot=ATRIUM, spot2=VENTRICLE),
        ],
    ),
    Workflow(
        "reorient_measure",
        reorient_measure,
        [
            case("vertebra", NAME, change="rotate", spot=CANAL),
            case("liver", MRN, change="flip", spot=LESION),
            case("vessel", MRN, change="invert", spot=RING),
            case("skull", NAME, change="rotate", spot=BRAIN),
            case("heart", NAME, change="invert", spot=VENTRICLE),
            case("vertebra", MRN, change="flip", spot=PROCESS),
            case("liver", DESCRIPTION, change="invert", spot=AORTA),
            case("vessel", NAME, change="rotate", spot=TUBE),
        ],
    ),
    Workflow(
        "colour_scroll",
        colour_scroll,
        [
            case("head", DESCRIPTION, colours="Hot Iron"),
            case("head", MRN, DESCRIPTION, colours="HSV"),
            case("head", NAME, DESCRIPTION, colours="PET"),
            case("head", DESCRIPTION, colours="X Ray"),
            case("head", DESCRIPTION, MRN, colours="Red Hot"),
            case("head", DESCRIPTION, NAME, colours="Isodose"),
            case("head", DESCRIPTION, colours="Perfusion"),
        ],
    ),
    Workflow(
        "next_patient",
        next_patient,
        [
            case("vertebra", MRN, second="liver", column=MRN),
            case("heart", NAME, second="vessel", column=NAME),
            case("spine", DESCRIPTION, second="carotids", column=DESCRIPTION),
            case("skull", MRN, second="node", column=MRN),
            case("liver", NAME, second="vertebra", column=NAME),
            case("node", MRN, second="vessel", column=MRN),
            case("liver", DESCRIPTION, second="angio", column=DESCRIPTION),
            case("bars", NAME, second="skull", column=NAME),
        ],
    ),
    Workflow(
        "region_window",
        region_window,
        [
            case("vertebra", MRN, spot=CANAL),
            case("liver", DESCRIPTION, spot=LESION),
            case("vessel", NAME, spot=RING),
            case("angio", DESCRIPTION, spot=CENTRE),
            case("liver", MRN, spot=KIDNEY),
            case("vertebra", NAME, spot=PROCESS),
            case("carotids", ACCESSION, spot=LOWER),
            case("vessel", MRN, spot=TUBE),
        ],
    ),
    Workflow(
        "window_segment",
        window_segment,
        [
            case("vertebra", MRN, preset="Bone", radius="4", spot=PROCESS),
            case("skull", NAME, preset="Brain", radius="12", spot=BRAIN),
            case("vertebra", NAME, preset="Soft tissue", radius="3", spot=CANAL),
            case("skull", MRN, preset="Bone", radius="8", spot=SKULL),
            case("vertebra", MRN, preset="Lung", radius="5", spot=CANAL),
            case("skull", NAME, preset="Soft tissue", radius="15", spot=BRAIN),
        ],
        new=True,
    ),
    Workflow(
        "layout_annotate",
        layout_annotate,
        [
            case("angio", DESCRIPTION, spot=CENTRE, text="localizer ok"),
            case("brain", ACCESSION, spot=UPPER, text="motion"),
            case("angio", NAME, DESCRIPTION, spot=LOWER, text="low signal"),
            case("brain", MRN, ACCESSION, spot=CENTRE, text="bright area"),
            case("angio", MRN, DESCRIPTION, spot=UPPER, text="review with MRA"),
            case("brain", NAME, ACCESSION, spot=LOWER, text="compare pilot"),
        ],
        new=True,
    ),
]


def build_tasks() -> list[Task]:
    """Turn every case of every workflow into a task, each with its own wording.

    Raises:
        ValueError: two tasks would have the same goal.
    """
    tasks = []
    for workflow in WORKFLOWS:
        for number, one in enumerate(workflow.cases):
            tasks.append(_build_task(workflow, number, one))
    goals = [task.goal for task in tasks]
    twice = {goal for goal in goals if goals.count(goal) > 1}
    if twice:
        raise ValueError(f"{len(twice)} goals are used twice, for example {sorted(twice)[0]!r}")
    return tasks


def _build_task(workflow: Workflow, number: int, one: Case) -> Task:
    phases = workflow.phases(one)

    def play(rec: Recorder) -> None:
        for phase in phases:
            rec.subtask(phase.subtask)
            phase.play(rec)
        rec.complete("goal reached")

    return Task(
        f"ohif_{workflow.name}_{number + 1:02d}",
        workflow.name,
        ohif_goals.format_goal(workflow.name, number, one.slots()),
        tuple(phase.subtask for phase in phases),
        play,
        new_workflow=workflow.new,
    )


def open_start(page: Page, stack: Stack) -> None:
    """Show the study list with every study."""
    page.context.add_init_script(NO_TOUR)
    page.goto(stack.ohif_url)
    page.locator("tbody tr").nth(10).wait_for(timeout=30_000)
