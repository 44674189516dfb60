"""The OHIF workflows: which phases follow each other, with which parameters, and how a person would ask for them."""

from collections.abc import Callable

from demo.capture.ohif_phases import (
    Phase,
    add_segmentation,
    annotate,
    browse_tags,
    change_image,
    delete_measurement,
    join,
    launch,
    measure,
    measure_again,
    open_study,
    outline,
    paint,
    rename_measurement,
    return_to_list,
    scroll,
    select_viewport,
    set_colours,
    set_layout,
    set_window,
    zoom,
)
from demo.capture.recorder import Recorder, Task
from demo.clinic.ohif_cases import Case
from demo.clinic.ohif_studies import STUDIES
from demo.clinic.tasks import APPLICATIONS, ClinicTask, load_tasks

APPLICATION = APPLICATIONS["ohif"]


def open_case(c: Case, mode: str = "Basic Viewer") -> Phase:
    return open_study(STUDIES[c.study], list(c.fields), mode)


def measure_zoomed(c: Case) -> list[Phase]:
    return [open_case(c), zoom("in"), measure("Length", [c.box()]), zoom("out")]


def measure_two(c: Case) -> list[Phase]:
    return [open_case(c), measure(c["tool"], [c.box()]), measure_again(c["tool"], c.box("spot2")), zoom("in")]


def scroll_measure(c: Case) -> list[Phase]:
    return [open_case(c), scroll("down"), zoom("in"), measure("Length", [c.box()]), scroll("up")]


def window_zoom(c: Case) -> list[Phase]:
    return [open_case(c), set_window(c["preset"]), zoom(c["direction"], times=2)]


def annotate_zoomed(c: Case) -> list[Phase]:
    return [open_case(c), zoom("in"), annotate(c["text"], c.box()), zoom("out")]


def rename_length(c: Case) -> list[Phase]:
    return [open_case(c), zoom("in"), measure("Length", [c.box()]), rename_measurement(c["text"])]


def delete_region(c: Case) -> list[Phase]:
    return [open_case(c), measure(c["tool"], [c.box()]), zoom("in"), delete_measurement(), zoom("out")]


def side_by_side(c: Case) -> list[Phase]:
    left, right = "left viewport", "right viewport"
    return [
        open_case(c),
        set_layout("1x2"),
        scroll("down", right, "scroll right viewport"),
        zoom(c["direction"], where=right, subtask="zoom right viewport"),
        join("zoom left viewport", select_viewport(left), zoom("in", where=left)),
    ]


def grid_measure(c: Case) -> list[Phase]:
    where, boxes = c["where"], [c.box(), c.box("spot2")]
    is_active = where == "top left viewport"
    zoom_out = zoom("out", where=where)
    zoom_out = zoom_out if is_active else join("zoom out", select_viewport(where), zoom_out)
    return [open_case(c), set_layout("2x2"), zoom_out, measure(c["tool"], boxes, where)]


def tag_lookup(c: Case) -> list[Phase]:
    return [open_case(c), zoom(c["direction"]), browse_tags(c["text"], scroll_first=True)]


def brush_label(c: Case) -> list[Phase]:
    boxes = [c.box(), c.box("spot2")]
    return [
        open_case(c, "Segmentation"),
        add_segmentation(),
        paint("Brush", c["radius"], boxes, "paint segment"),
        zoom("in"),
    ]


def brush_erase(c: Case) -> list[Phase]:
    return [
        open_case(c, "Segmentation"),
        add_segmentation(),
        paint("Brush", c["radius"], [c.box()], "paint segment"),
        paint("Eraser", None, [c.box("spot2")], "erase part"),
    ]


def angle_zoomed(c: Case) -> list[Phase]:
    tool = c["tool"]
    return [open_case(c), zoom("in"), measure(tool, [c.box()]), measure_again(tool, c.box("spot2")), zoom("out")]


CHANGES = {
    "rotate": ("Rotate Right", "image rotated", "rotate image"),
    "flip": ("Flip Horizontal", "image flipped", "flip image"),
    "invert": ("Invert", "image inverted", "invert image"),
}


def reorient_measure(c: Case) -> list[Phase]:
    return [open_case(c), change_image(*CHANGES[c["change"]]), zoom("out"), measure("Length", [c.box()]), zoom("in")]


def colour_region(c: Case) -> list[Phase]:
    return [open_case(c), set_colours(c["colours"]), zoom("in"), measure("Rectangle", [c.box()]), zoom("out")]


def next_patient(c: Case) -> list[Phase]:
    second = STUDIES[c["second"]]
    return [
        open_case(c),
        zoom("in"),
        return_to_list(c["column"], second.filters[c["column"]]),
        launch(second, subtask="open next study"),
        zoom("out"),
    ]


def freehand_outline(c: Case) -> list[Phase]:
    return [open_case(c), zoom("in"), outline([c.box(), c.box("spot2")]), zoom("out")]


def stack_review(c: Case) -> list[Phase]:
    further = scroll("down", subtask="scroll further")
    return [open_case(c), scroll("down"), zoom("in"), further, zoom("out")]


def narrow_list(c: Case) -> list[Phase]:
    return [open_case(c), zoom(c["first"]), zoom(c["last"])]


def frame_compare(c: Case) -> list[Phase]:
    again = measure_again("Length", c.box("spot2"))
    return [open_case(c), scroll("down"), measure("Length", [c.box()]), scroll("up"), again]


def window_segment(c: Case) -> list[Phase]:
    """New: a window preset inside the Segmentation mode, one stroke, and out again."""
    boxes = [c.box()]
    return [
        open_case(c, "Segmentation"),
        set_window(c["preset"]),
        add_segmentation(),
        paint("Brush", c["radius"], boxes, "paint segment"),
        zoom("out"),
    ]


def layout_annotate(c: Case) -> list[Phase]:
    """New: two series side by side, a scroll on the right, an arrow on the left."""
    where, right = "left viewport", "right viewport"
    return [
        open_case(c),
        set_layout("1x2"),
        zoom("in", where=where),
        annotate(c["text"], c.box(), where),
        scroll("down", right, "scroll right viewport"),
    ]


KNOWN_WORKFLOWS = [
    measure_zoomed,
    measure_two,
    scroll_measure,
    window_zoom,
    annotate_zoomed,
    rename_length,
    delete_region,
    side_by_side,
    grid_measure,
    tag_lookup,
    brush_label,
    brush_erase,
    angle_zoomed,
    reorient_measure,
    colour_region,
    next_patient,
    freehand_outline,
    stack_review,
    narrow_list,
    frame_compare,
]
NEW_WORKFLOWS = [window_segment, layout_annotate]  # recorded for the test part only


def build_tasks() -> list[Task]:
    """Turn every case of every workflow into a task."""
    workflows = {workflow.__name__: workflow for workflow in KNOWN_WORKFLOWS + NEW_WORKFLOWS}
    return [_build_task(task, workflows[task.workflow]) for task in load_tasks().values() if task.program == "ohif"]


def _build_task(task: ClinicTask, workflow: Callable[[Case], list[Phase]]) -> Task:
    phases = workflow(task.case)

    def play(rec: Recorder) -> None:
        for phase in phases:
            rec.subtask(phase.subtask)
            phase.play(rec)
        rec.complete("goal reached")

    return Task(
        task.task_id,
        task.workflow,
        task.goal,
        tuple(phase.subtask for phase in phases),
        play,
        new_workflow=workflow in NEW_WORKFLOWS,
    )
