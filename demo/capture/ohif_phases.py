"""Parts of a demonstration in OHIF (open a study, zoom, measure, ...), to be put together. Knows no goals."""

from collections.abc import Callable
from dataclasses import dataclass

from demo.capture.ohif_page import (
    accept_tracking,
    choose_item,
    choose_tool,
    draw,
    filter_list,
    type_in_dialog,
    wait_until_drawn,
)
from demo.capture.recorder import Recorder
from demo.clinic.ohif_studies import Box, Study


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
        rec.click(study.patient, "study row expanded")
        rec.click(mode, f"study open in {mode}")
        rec.page.locator("canvas").first.wait_for(timeout=30_000)
        wait_until_drawn(rec.page)

    return Phase(subtask, play)


def return_to_list(column: str, text: str, subtask: str = "find next study") -> Phase:
    """Go back to the study list, replace a filter, and open nothing yet."""

    def play(rec: Recorder) -> None:
        rec.click("Study List", "study list shown")
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
            rec.zoom(where, direction, effect + (" further" if number else ""))

    return Phase(subtask or f"zoom {direction}", play)


def scroll(direction: str, where: str = "viewport", subtask: str | None = None) -> Phase:
    """Turn the wheel over a stack by one slice."""

    def play(rec: Recorder) -> None:
        effect = {"down": "later slice shown", "up": "earlier slice shown"}[direction]
        rec.scroll(where, direction, effect)

    return Phase(subtask or f"scroll {direction}", play)


def select_viewport(where: str) -> Phase:
    """Click a viewport: the first press in one that is not active only activates it."""
    return Phase(f"select {where}", lambda rec: rec.click(where, f"{where} active"))


def set_layout(layout: str) -> Phase:
    """Choose one of the common layouts."""

    def play(rec: Recorder) -> None:
        rec.click("Change layout", "layout menu open")
        rec.click(layout, f"{layout} layout shown")
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
        rec.click("Window Level", "display options open")
        rec.click(menu, listed)
        rec.click(name, effect)

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
        rec.click("Actions", "measurement actions listed")
        rec.click("Rename", "label dialog open")
        type_in_dialog(rec, "Enter new label", text, "measurement renamed")

    return Phase("rename measurement", play)


def delete_measurement() -> Phase:
    """Open the measurement panel and delete the last measurement."""

    def play(rec: Recorder) -> None:
        open_measurements(rec)
        rec.click("Actions", "measurement actions listed")
        rec.click("Delete", "measurement deleted")

    return Phase("delete measurement", play)


def open_measurements(rec: Recorder) -> None:
    """Show the measurement panel on the right."""
    rec.click("Measurements", "measurement panel open")


def browse_tags(text: str, scroll_first: bool) -> Phase:
    """Open the DICOM tag browser, perhaps look down the list, and search it."""

    def play(rec: Recorder) -> None:
        choose_item(rec, "More tools", "DICOM Tag Browser", "tag browser open")
        if scroll_first:
            rec.scroll("DICOM Tag Browser", "down", "later tags shown")
        rec.text("Search metadata", text, "tags filtered")

    return Phase("look up tag", play)


def add_segmentation() -> Phase:
    """Begin a label map; for the Segmentation mode."""

    def play(rec: Recorder) -> None:
        rec.click("Add segmentation", "segmentation added")

    return Phase("add segmentation", play)


def paint(tool: str, radius: str | None, boxes: list[Box], subtask: str) -> Phase:
    """Stroke with Brush or Eraser, one stroke a box; `radius` in mm is typed first if given."""

    def play(rec: Recorder) -> None:
        rec.click(tool, f"{tool} tool active")
        if radius:
            rec.text("Radius (mm)", radius, "radius changed")
        for number, box in enumerate(boxes):
            draw(rec, tool, box, "viewport", f"{'second ' if number else ''}{tool} stroke drawn")

    return Phase(subtask, play)
