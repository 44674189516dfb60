"""Parts of a demonstration in OHIF (open a study, zoom, measure, ...), to be put together. Knows no goals."""

from collections.abc import Callable
from dataclasses import dataclass

from demo.capture.ohif_page import (
    accept_tracking,
    choose_item,
    choose_tool,
    draw,
    filter_list,
    pane,
    type_in_dialog,
    wait_until_drawn,
)
from demo.capture.recorder import Recorder
from demo.clinic.ohif_studies import Box, Study

LAYOUTS = ("1x1", "1x2", "2x2", "2x3")
TICK_PX = 100  # one slice
ZOOM_DRAG = 0.09  # of the viewport's height: half as large again


@dataclass(frozen=True)
class Phase:
    """A plan item (2 to 4 words) and the steps that reach it."""

    subtask: str
    play: Callable[[Recorder], None]


def join(subtask: str, *phases: Phase) -> Phase:
    """Make one plan item of several phases."""

    def play(rec: Recorder) -> None:
        for phase in phases:
            phase.play(rec)

    return Phase(subtask, play)


def open_study(study: Study, fields: list[str], mode: str = "Basic Viewer", subtask: str = "open study") -> Phase:
    """Filter the study list by some columns, expand the only row that is left, and launch a mode."""

    def play(rec: Recorder) -> None:
        for column in fields:
            filter_list(rec, column, study.filters[column])
        row = rec.page.get_by_text(study.patient, exact=True)
        rec.click(row.first, study.patient, "study row expanded")
        rec.click(rec.page.get_by_role("button", name=mode, exact=True), mode, f"study open in {mode}")
        rec.page.locator("canvas").first.wait_for(timeout=30_000)
        wait_until_drawn(rec.page)

    return Phase(subtask, play)


def return_to_list(column: str, text: str, subtask: str = "find next study") -> Phase:
    """Go back to the study list, replace a filter, and open nothing yet."""

    def play(rec: Recorder) -> None:
        rec.click(rec.page.locator("[data-cy=return-to-work-list]"), "Study List", "study list shown")
        rec.page.locator("tbody tr").first.wait_for(timeout=30_000)
        filter_list(rec, column, text)

    return Phase(subtask, play)


def launch(study: Study, mode: str = "Basic Viewer", subtask: str = "open study") -> Phase:
    """Open a study that the list shows already."""
    return open_study(study, [], mode, subtask)


def zoom(direction: str, times: int = 1, where: str = "viewport", subtask: str | None = None) -> Phase:
    """Zoom by dragging with the right button; the observation counts, so that memory tells first from second."""

    def play(rec: Recorder) -> None:
        effect = {"in": "image enlarged", "out": "image reduced"}[direction]
        for number in range(times):
            place = pane(rec, where)
            distance = round(place.bounding_box()["height"] * ZOOM_DRAG)
            rec.zoom(place, where, direction, effect + (" further" if number else ""), distance)

    return Phase(subtask or f"zoom {direction}", play)


def scroll(direction: str, slices: int = 2, where: str = "viewport", subtask: str | None = None) -> Phase:
    """Turn the wheel over a stack by some slices."""

    def play(rec: Recorder) -> None:
        effect = {"down": "later slice shown", "up": "earlier slice shown"}[direction]
        rec.scroll(pane(rec, where), where, direction, effect, amount=slices * TICK_PX)

    return Phase(subtask or f"scroll {direction}", play)


def select_viewport(where: str) -> Phase:
    """Click a viewport: the first press in one that is not active only activates it."""
    return Phase(f"select {where}", lambda rec: rec.click(pane(rec, where), where, f"{where} active"))


def set_layout(layout: str) -> Phase:
    """Choose one of the common layouts."""

    def play(rec: Recorder) -> None:
        rec.click(rec.page.get_by_label("Change layout"), "Change layout", "layout menu open")
        icons = rec.page.locator("[role=dialog] .flex-shrink-0:has(> svg[width='28px'])")
        rec.click(icons.nth(LAYOUTS.index(layout)), layout, f"{layout} layout shown")
        wait_until_drawn(rec.page)

    return Phase(f"set {layout} layout", play)


def set_window(preset: str) -> Phase:
    """Choose a window preset of CT."""
    return _display_option(
        "Modality Window Presets", "window presets listed", preset, f"{preset} window set", "window"
    )


def set_colours(name: str) -> Phase:
    """Choose a colour table."""
    return _display_option("Color LUT", "colour tables listed", name, f"{name} colours shown", "colours")


def _display_option(menu: str, listed: str, name: str, effect: str, noun: str) -> Phase:
    def play(rec: Recorder) -> None:
        rec.click(rec.page.locator("[data-cy=windowLevelMenu-btn]").first, "Window Level", "display options open")
        rec.click(rec.page.get_by_text(menu, exact=True), menu, listed)
        rec.click(rec.page.get_by_text(name, exact=True), name, effect)

    return Phase(f"set {name} {noun}", play)


def change_image(item: str, effect: str, subtask: str) -> Phase:
    """Rotate, flip or invert: an item of the second menu that acts at once."""
    return Phase(subtask, lambda rec: choose_item(rec, "More tools", item, effect))


def measure(tool: str, boxes: list[Box], where: str = "viewport", is_first: bool = True, subtask: str = "") -> Phase:
    """Draw one measurement a box with one tool; the first of a series asks whether to track, the answer is yes."""

    def play(rec: Recorder) -> None:
        choose_tool(rec, tool)
        for number, box in enumerate(boxes):
            draw(rec, tool, box, where, ("second " if number else "") + f"{tool} drawn")
            if is_first and number == 0:
                accept_tracking(rec)

    return Phase(subtask or f"measure {tool.lower()}", play)


def measure_again(tool: str, box: Box, where: str = "viewport", subtask: str = "measure again") -> Phase:
    """Draw with the tool that is already active."""
    return Phase(subtask, lambda rec: draw(rec, tool, box, where, f"second {tool} drawn"))


def annotate(text: str, box: Box, where: str = "viewport", is_first: bool = True) -> Phase:
    """Draw an arrow at a structure and type its text."""

    def play(rec: Recorder) -> None:
        choose_tool(rec, "Annotation")
        draw(rec, "Annotation", box, where, "arrow text dialog open")
        type_in_dialog(rec, "Enter new text", text, "annotation text shown")
        if is_first:
            accept_tracking(rec)

    return Phase("annotate finding", play)


def outline(boxes: list[Box]) -> Phase:
    """Draw free-hand regions, which do not ask whether to track."""

    def play(rec: Recorder) -> None:
        choose_tool(rec, "Freehand ROI")
        for number, box in enumerate(boxes):
            draw(rec, "Freehand ROI", box, "viewport", f"{'second ' if number else ''}Freehand ROI drawn")

    return Phase("outline region", play)


def rename_measurement(text: str) -> Phase:
    """Open the measurement panel and give the measurement a label."""

    def play(rec: Recorder) -> None:
        open_measurements(rec)
        rec.click(rec.page.locator("[data-cy=actionsMenuTrigger]").last, "Actions", "measurement actions listed")
        rec.click(rec.page.get_by_role("menuitem", name="Rename"), "Rename", "label dialog open")
        type_in_dialog(rec, "Enter new label", text, "measurement renamed")

    return Phase("rename measurement", play)


def delete_measurement() -> Phase:
    """Open the measurement panel and delete the last measurement."""

    def play(rec: Recorder) -> None:
        open_measurements(rec)
        rec.click(rec.page.locator("[data-cy=actionsMenuTrigger]").last, "Actions", "measurement actions listed")
        rec.click(rec.page.get_by_role("menuitem", name="Delete"), "Delete", "measurement deleted")

    return Phase("delete measurement", play)


def open_measurements(rec: Recorder) -> None:
    """Show the measurement panel on the right."""
    rec.click(rec.page.locator("[data-cy=trackedMeasurements-btn]"), "Measurements", "measurement panel open")


def browse_tags(text: str, scroll_first: bool) -> Phase:
    """Open the DICOM tag browser, perhaps look down the list, and search it."""

    def play(rec: Recorder) -> None:
        choose_item(rec, "More tools", "DICOM Tag Browser", "tag browser open")
        dialog = rec.page.get_by_role("dialog")
        if scroll_first:
            rec.scroll(dialog, "DICOM Tag Browser", "down", "later tags shown", amount=600)
        rec.text(dialog.get_by_placeholder("Search metadata"), "Search metadata", text, "tags filtered")

    return Phase("look up tag", play)


def add_segmentation() -> Phase:
    """Begin a label map; for the Segmentation mode."""

    def play(rec: Recorder) -> None:
        rec.click(rec.page.locator("[data-cy=addSegmentation]").first, "Add segmentation", "segmentation added")

    return Phase("add segmentation", play)


def paint(tool: str, radius: str | None, boxes: list[Box], subtask: str) -> Phase:
    """Stroke with Brush or Eraser, one stroke a box; `radius` in mm is typed first if given."""

    def play(rec: Recorder) -> None:
        rec.click(rec.page.locator(f"[data-cy={tool}-btn]"), tool, f"{tool} tool active")
        if radius:
            field = rec.page.locator("[data-cy=brush-radius] input, input[value]").first
            rec.text(field, "Radius (mm)", radius, "radius changed")
        for number, box in enumerate(boxes):
            draw(rec, tool, box, "viewport", f"{'second ' if number else ''}{tool} stroke drawn")

    return Phase(subtask, play)
