"""Single moves in OHIF's pages: filter the list, choose a tool, draw on the image. Knows no tasks."""

import json

from playwright.sync_api import Locator, Page

from demo.capture.recorder import Recorder, SuspectStep
from demo.clinic.ohif_studies import ACCESSION, DESCRIPTION, MRN, NAME, Box

FILTER_INDEX = {NAME: 0, MRN: 1, DESCRIPTION: 4, ACCESSION: 6}  # among the inputs of the study list
MEASUREMENT_TOOLS = ("Bidirectional", "Annotation", "Ellipse", "Rectangle", "Circle", "Freehand ROI")
VIEWPORTS = {
    "viewport": 0,
    "left viewport": 0,
    "right viewport": 1,
    "top left viewport": 0,
    "top middle viewport": 1,
    "top right viewport": 1,
    "bottom left viewport": 2,
}

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


# OHIF gives these no accessible name; the recorded lists of elements should call them what the steps call them.
NAMES = {
    "[data-cy=MeasurementTools-split-button-secondary] button": "Measurement tools",
    "[data-cy=MoreTools-split-button-secondary] button": "More tools",
    "[data-cy=return-to-work-list]": "Study List",
    "[data-cy=side-panel-header-right]": "Right panel",
    "[data-cy=side-panel-header-left]": "Left panel",
    "[data-cy=brush-radius] input": "Radius (mm)",
    "button:has([data-cy=trackedMeasurements-btn]), [data-cy=trackedMeasurements-btn]": "Measurements",
    "button:has([data-cy=panelSegmentation-btn]), [data-cy=panelSegmentation-btn]": "Segmentations",
    ".flex-shrink-0 > button[data-cy=undefined-btn]": "Settings",
}
NAME_ELEMENTS = """names => {
  const grids = {1: ["viewport"], 2: ["left viewport", "right viewport"],
    4: ["top left viewport", "top right viewport", "bottom left viewport", "bottom right viewport"]};
  const label = (element, name) => element.getAttribute("aria-label") || element.setAttribute("aria-label", name);
  setInterval(() => {
    for (const [selector, name] of Object.entries(names)) {
      document.querySelectorAll(selector).forEach(element => label(element, name));
    }
    document.querySelectorAll("[role=dialog] .flex-shrink-0:has(> svg[width='28px'])")
      .forEach((icon, n) => label(icon, ["1x1", "1x2", "2x2", "2x3"][n]));
    const panes = [...document.querySelectorAll("[data-cy=viewport-pane]")];
    panes.forEach((pane, n) => {
      const canvas = pane.querySelector("canvas");
      if (canvas && grids[panes.length]) canvas.setAttribute("aria-label", grids[panes.length][n]);
    });
  }, 100);
}"""


def name_elements(page: Page) -> None:
    """Let the page name what OHIF leaves nameless; changes no pixel."""
    page.add_init_script(f"({NAME_ELEMENTS})({json.dumps(NAMES)})")


def is_busy(page: Page) -> bool:
    """Tell whether OHIF shows a notice that goes away by itself."""
    return page.locator("[data-sonner-toast]").count() > 0


def wait_until_drawn(page: Page) -> None:
    """Wait until every viewport has its image and every thumbnail is there."""
    page.wait_for_function(ALL_DRAWN, timeout=30_000)


def filter_list(rec: Recorder, column: str, text: str) -> None:
    """Type into a filter of the study list and wait until only fitting studies are listed."""
    rec.text(rec.page.locator("input").nth(FILTER_INDEX[column]), column, text, "study list filtered")
    rec.page.wait_for_function(ROWS_FIT, arg=text)


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
    wait_until_drawn(rec.page)
    answer = rec.page.evaluate(IMAGE_TO_SCREEN, [VIEWPORTS[where], build_points(tool, box)])
    points, (left, top, right, bottom) = answer["screen"], answer["frame"]
    if not all(left + 4 < x < right - 4 and top + 4 < y < bottom - 4 for x, y in points):
        raise SuspectStep(f"{tool}: {points} leave {where} {answer['frame']}; choose a structure nearer to the middle")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    bbox = (min(xs) - 8, min(ys) - 8, max(xs) + 8, max(ys) + 8)
    rec.segment(
        bbox, tool, [tuple(point) for point in points], effect, clicks=tool in ("Angle", "Cobb Angle", "Probe")
    )


def build_points(tool: str, box: Box) -> list[tuple[float, float]]:
    """Say where the mouse goes, in fractions of the image, to draw `tool` on `box`."""
    left, top, right, bottom = box
    x, y, height = (left + right) / 2, (top + bottom) / 2, bottom - top
    shapes = {
        "Rectangle": [(left, top), (right, bottom)],
        "Ellipse": [(x, y), (right, bottom)],  # OHIF draws ellipses and circles from the centre
        "Circle": [(x, y), (right, y)],
        "Angle": [(left, bottom), (x, top), (right, bottom)],
        "Cobb Angle": [(left, top), (right, top + height / 4), (left, bottom), (right, bottom - height / 4)],
        "Annotation": [(x, y), (x + 0.1, y - 0.1)],
        "Freehand ROI": [(x, top), (right, y), (x, bottom), (left, y), (x, top)],
        "Probe": [(x, y)],
        "Bidirectional": [(left, top), (right, bottom)],
    }
    return shapes.get(tool, [(left, y), (right, y)])
