"""Parts of a demonstration in OHIF (open a study, zoom, measure, ...), to be put together. Knows no goals."""

from collections.abc import Callable
from dataclasses import dataclass

from ohif_studies import NAME, MRN, DESCRIPTION, ACCESSION, Box, Study
from playwright.sync_api import Locator, Page
from recorder import Recorder, SuspectStep

FILTER_INDEX = {NAME: 0, MRN: 1, DESCRIPTION: 4, ACCESSION: 6}  # among the inputs of the study list
LAYOUTS = ("1x1", "1x2", "2x2", "2x3")
VIEWPORTS = {
    "viewport": 0,
    "left viewport": 0,
    "right viewport": 1,
    "top left viewport": 0,
    "top middle viewport": 1,
    "top right viewport": 1,
    "bottom left viewport": 2,
}
MEASUREMENT_TOOLS = ("Bidirectional", "Annotation", "Ellipse", "Rectangle", "Circle", "Freehand ROI")
TICK_PX = 100  # one slice

# Where a fraction of the image of viewport n (left to right, top to bottom) lies on the screen.
IMAGE_TO_SCREEN = """([n, points]) => {
  const viewports = window.cornerstone.getRenderingEngines().flatMap(engine => engine.getViewports())
    .filter(viewport => viewport.element.isConnected && viewport.getImageData());
  const box = viewport => viewport.element.getBoundingClientRect();
  viewports.sort((a, b) => box(a).top - box(b).top || box(a).left - box(b).left);
  const {imageData, dimensions} = viewports[n].getImageData();
  const {left, top, right, bottom} = box(viewports[n]);
  const screen = points.map(([u, v]) => {
    const world = imageData.indexToWorld([u * (dimensions[0] - 1), v * (dimensions[1] - 1), 0]);
    const [x, y] = viewports[n].worldToCanvas(world);
    return [left + x, top + y];
  });
  return {screen, frame: [left, top, right, bottom]};
}"""

ALL_DRAWN = """() => {
  const viewports = (window.cornerstone?.getRenderingEngines() || []).flatMap(engine => engine.getViewports());
  return viewports.length > 0 && viewports.every(viewport => viewport.getImageData())
    && [...document.querySelectorAll("[data-cy=study-browser-thumbnail] img")].every(img => img.complete);
}"""

ROWS_FIT = """text => {
  const rows = [...document.querySelectorAll("tbody tr")].filter(row => row.innerText.trim());
  return rows.length > 0 && rows.every(row => row.innerText.toLowerCase().includes(text.toLowerCase()));
}"""


@dataclass(frozen=True)
class Phase:
    """A plan item (2 to 4 words) and the steps that reach it."""

    subtask: str
    play: Callable[[Recorder], None]


def is_busy(page: Page) -> bool:
    """Tell whether OHIF shows a notice that goes away by itself."""
    return page.locator("[data-sonner-toast]").count() > 0


def open_study(study: Study, fields: list[str], mode: str = "Basic Viewer", subtask: str = "open study") -> Phase:
    """Filter the study list by some columns, expand the only row that is left, and launch a mode."""

    def play(rec: Recorder) -> None:
        for column in fields:
            filter_list(rec, column, study.filters[column])
        row = rec.page.get_by_text(study.patient, exact=True)
        rec.click(row.first, study.patient, "study row expanded")
        rec.click(rec.page.get_by_role("button", name=mode, exact=True), mode, f"study open in {mode}")
        rec.page.locator("canvas").first.wait_for(timeout=30_000)
        rec.page.wait_for_function(ALL_DRAWN, timeout=30_000)

    return Phase(subtask, play)


def filter_list(rec: Recorder, column: str, text: str) -> None:
    """Type into a filter of the study list and wait until only fitting studies are listed."""
    rec.text(rec.page.locator("input").nth(FILTER_INDEX[column]), column, text, "study list filtered")
    rec.page.wait_for_function(ROWS_FIT, arg=text)


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
    """Zoom by dragging with the right button; the observation counts, so that memory tells the first from the second."""

    def play(rec: Recorder) -> None:
        effect = {"in": "image enlarged", "out": "image reduced"}[direction]
        for number in range(times):
            rec.zoom(pane(rec, where), where, direction, effect + (" further" if number else ""))

    return Phase(subtask or f"zoom {direction}", play)


def scroll(direction: str, slices: int = 2, where: str = "viewport", subtask: str | None = None) -> Phase:
    """Turn the wheel over a stack by some slices."""

    def play(rec: Recorder) -> None:
        effect = {"down": "later slice shown", "up": "earlier slice shown"}[direction]
        rec.scroll(pane(rec, where), where, direction, effect, amount=slices * TICK_PX)

    return Phase(subtask or f"scroll {direction}", play)


def set_layout(layout: str) -> Phase:
    """Choose one of the common layouts."""

    def play(rec: Recorder) -> None:
        rec.click(rec.page.get_by_label("Change layout"), "Change layout", "layout menu open")
        icons = rec.page.locator("[role=dialog], [data-radix-popper-content-wrapper]").locator("svg:visible")
        rec.click(icons.nth(LAYOUTS.index(layout)), layout, f"{layout} layout shown")
        rec.page.wait_for_function(ALL_DRAWN, timeout=30_000)

    return Phase(f"set {layout} layout", play)


def set_window(preset: str) -> Phase:
    """Choose a window preset of CT."""
    return _display_option("Modality Window Presets", "window presets listed", preset, f"{preset} window set", "window")


def set_colours(name: str) -> Phase:
    """Choose a colour table."""
    return _display_option("Color LUT", "colour tables listed", name, f"{name} colours shown", "colours")


def _display_option(menu: str, listed: str, name: str, effect: str, noun: str) -> Phase:
    def play(rec: Recorder) -> None:
        rec.click(rec.page.locator("[data-cy=windowLevelMenu-btn]").first, "Window Level", "display options open")
        rec.click(rec.page.get_by_text(menu, exact=True), menu, listed)
        rec.click(rec.page.get_by_text(name, exact=True), name, effect)

    return Phase(f"set {name} {noun}", play)


def choose_tool(rec: Recorder, tool: str) -> None:
    """Activate a tool: Length from the toolbar, the others from the two drop-down menus."""
    if tool == "Length":
        rec.click(rec.page.locator("[data-cy=Length-btn]"), tool, "Length tool active")
    elif tool in MEASUREMENT_TOOLS:
        choose_item(rec, "Measurement tools", tool, f"{tool} tool active")
    else:
        choose_item(rec, "More tools", tool, f"{tool} tool active")


def choose_item(rec: Recorder, menu: str, item: str, effect: str) -> None:
    """Pick an item of one of the toolbar's drop-down menus."""
    arrow = menu.replace(" t", "T") + "-split-button-secondary"
    rec.click(rec.page.locator(f"[data-cy={arrow}]"), menu, f"{menu.lower()} listed")
    rec.click(rec.page.get_by_role("menuitem", name=item, exact=True), item, effect)


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


def window_region(box: Box) -> Phase:
    """Let the window follow the grey values of a rectangle."""

    def play(rec: Recorder) -> None:
        choose_tool(rec, "Window Level Region")
        draw(rec, "Window Level Region", box, "viewport", "window fits region")

    return Phase("set window region", play)


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
            rec.scroll((180, 280, 920, 760), "DICOM Tag Browser", "down", "later tags shown", amount=600)
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


def type_in_dialog(rec: Recorder, placeholder: str, text: str, effect: str) -> None:
    """Fill the only field of a dialog and save."""
    rec.text(rec.page.get_by_placeholder(placeholder), placeholder, text, "text entered")
    rec.click(rec.page.get_by_role("button", name="Save", exact=True), "Save", effect)


def accept_tracking(rec: Recorder) -> None:
    """Answer "Track measurements for this series?" with yes."""
    rec.click(rec.page.locator("[data-cy=prompt-begin-tracking-yes-btn]"), "Yes", "measurements tracked")


def pane(rec: Recorder, where: str) -> Locator:
    """Find a viewport by its name."""
    return rec.page.locator("[data-cy=viewport-pane]").nth(VIEWPORTS[where])


def draw(rec: Recorder, tool: str, box: Box, where: str, effect: str) -> None:
    """Draw with the active tool around or across `box`, given in fractions of the image."""
    rec.page.wait_for_function(ALL_DRAWN)
    answer = rec.page.evaluate(IMAGE_TO_SCREEN, [VIEWPORTS[where], build_points(tool, box)])
    points, (left, top, right, bottom) = answer["screen"], answer["frame"]
    if not all(left + 4 < x < right - 4 and top + 4 < y < bottom - 4 for x, y in points):
        raise SuspectStep(f"{tool}: {points} leave {where} {answer['frame']}; choose a structure nearer to the middle")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    bbox = (min(xs) - 8, min(ys) - 8, max(xs) + 8, max(ys) + 8)
    rec.segment(bbox, tool, [tuple(point) for point in points], effect, clicks=tool in ("Angle", "Cobb Angle", "Probe"))


def build_points(tool: str, box: Box) -> list[tuple[float, float]]:
    """Say where the mouse goes, in fractions of the image, to draw `tool` on `box`."""
    left, top, right, bottom = box
    x, y, height = (left + right) / 2, (top + bottom) / 2, bottom - top
    shapes = {
        "Rectangle": [(left, top), (right, bottom)],
        "Window Level Region": [(left, top), (right, bottom)],
        "Ellipse": [(x, y), (right, bottom)],  # OHIF draws ellipses and circles from the centre
        "Circle": [(x, y), (right, y)],
        "Angle": [(left, bottom), (x, top), (right, bottom)],
        "Cobb Angle": [(left, top), (right, top + height / 4), (left, bottom), (right, bottom - height / 4)],
        "Annotation": [(x, y), (x + 0.1, y - 0.1)],
        "Freehand ROI": [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)],
        "Probe": [(x, y)],
        "Bidirectional": [(left, top), (right, bottom)],
    }
    return shapes.get(tool, [(left, y), (right, y)])
