"""Single moves in OHIF's pages: filter the list, choose a tool, draw on the image. Knows no tasks."""

from playwright.sync_api import Page

from demo.capture.recorder import Recorder, SuspectStep
from demo.clinic import ohif_page
from demo.clinic.ohif_studies import Box

MEASUREMENT_TOOLS = ("Bidirectional", "Annotation", "Ellipse", "Rectangle", "Circle", "Freehand ROI")

ALL_DRAWN = """() => {
  const viewports = (window.cornerstone?.getRenderingEngines() || []).flatMap(engine => engine.getViewports());
  return viewports.length > 0 && viewports.every(viewport => viewport.getImageData())
    && [...document.querySelectorAll("[data-cy=study-browser-thumbnail] img")].every(img => img.complete);
}"""

ROWS_FIT = """text => {
  const rows = [...document.querySelectorAll("tbody tr")].filter(row => row.innerText.trim());
  return rows.length > 0 && rows.every(row => row.innerText.toLowerCase().includes(text.toLowerCase()));
}"""


def wait_until_drawn(page: Page) -> None:
    """Wait until every viewport has its image and every thumbnail is there."""
    page.wait_for_function(ALL_DRAWN, timeout=30_000)


def filter_list(rec: Recorder, column: str, text: str) -> None:
    """Type into a filter of the study list and wait until only fitting studies are listed."""
    rec.text(column, text, "study list filtered")
    rec.page.wait_for_function(ROWS_FIT, arg=text)


def choose_tool(rec: Recorder, tool: str) -> None:
    """Activate a tool: Length from the toolbar, the others from the two drop-down menus."""
    if tool == "Length":
        rec.click(tool, "Length tool active")
    elif tool in MEASUREMENT_TOOLS:
        choose_item(rec, "Measurement tools", tool, f"{tool} tool active")
    else:
        choose_item(rec, "More tools", tool, f"{tool} tool active")


def choose_item(rec: Recorder, menu: str, item: str, effect: str) -> None:
    """Pick an item of one of the toolbar's drop-down menus."""
    rec.click(menu, f"{menu.lower()} listed")
    rec.click(item, effect)


def type_in_dialog(rec: Recorder, placeholder: str, text: str, effect: str) -> None:
    """Fill the only field of a dialog and save."""
    rec.text(placeholder, text, "text entered")
    rec.click("Save", effect)


def accept_tracking(rec: Recorder) -> None:
    """Answer "Track measurements for this series?" with yes."""
    rec.click("Yes", "measurements tracked")


def draw(rec: Recorder, tool: str, box: Box, where: str, effect: str) -> None:
    """Draw with the active tool around or across `box`, given in fractions of the image."""
    wait_until_drawn(rec.page)
    number, (left, top, right, bottom) = ohif_page.find_viewport(rec.page, where)
    points = ohif_page.locate_drawing(rec.page, tool, box, number)
    if not all(left + 4 < x < right - 4 and top + 4 < y < bottom - 4 for x, y in points):
        raise SuspectStep(f"{tool}: {points} leave the {where}; choose a structure nearer to the middle")
    rec.segment(tool, ohif_page.compute_extent(points), points, effect)
