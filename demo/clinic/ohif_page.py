"""OHIF's pages: their names, when they are at rest, where a task begins, how its tools draw. Knows no tasks."""

import json

from playwright.sync_api import Page

from demo.clinic.ohif_studies import Box
from demo.clinic.screen import BBox, Point, click_each, compute_centre, drag, zoom
from demo.clinic.stack import Stack
from demo.clinic.targets import Names

_PANE = "[data-cy=viewport-pane]"
_GRIDS = {
    1: ["viewport"],
    2: ["left viewport", "right viewport"],
    4: ["top left viewport", "top right viewport", "bottom left viewport", "bottom right viewport"],
}
VIEWPORTS = {name: index for grid in _GRIDS.values() for index, name in enumerate(grid)}
NAMES = Names(
    places={name: (_PANE, n, index) for n, grid in _GRIDS.items() for index, name in enumerate(grid)}
    | {
        # The toolbar has a tool of this name; the recordings mean the menu in the corner of the image.
        "Window Level": ("[data-cy=windowLevelMenu-btn]", 0, 0),
        "Add segmentation": ("[data-cy=addSegmentation]", 0, 0),
    },
    scrolled={"DICOM Tag Browser": ("[role=dialog]", 1, 0)},
)
TOOLS = (
    "Length", "Bidirectional", "Annotation", "Ellipse", "Rectangle", "Circle", "Freehand ROI", "Angle", "Cobb Angle",
    "Probe", "Brush", "Eraser",
)  # fmt: skip
CLICKED_TOOLS = ("Angle", "Cobb Angle", "Probe")
ZOOM_DRAG = 0.09  # of the viewport's height: half as large again

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

# Counts what the page has asked its server for and not been given yet. On a busy machine an answer takes long enough
# for two equal screenshots of the list as it was before.
COUNT_REQUESTS = """(() => {
  window.requestsUnderWay = 0;
  const send = XMLHttpRequest.prototype.send, ask = window.fetch;
  XMLHttpRequest.prototype.send = function (...given) {
    window.requestsUnderWay += 1;
    this.addEventListener("loadend", () => { window.requestsUnderWay -= 1; }, {once: true});
    return send.apply(this, given);
  };
  window.fetch = (...given) => {
    window.requestsUnderWay += 1;
    return ask(...given).finally(() => { window.requestsUnderWay -= 1; });
  };
})()"""
# At rest: nothing is asked for, no notice that goes away by itself, every viewport and thumbnail drawn, the study list
# filtered as typed.
IS_BUSY = """() => {
  if (window.requestsUnderWay || document.querySelector("[data-sonner-toast]")) return true;
  const panes = [...document.querySelectorAll("[data-cy=viewport-pane]")];
  if (panes.length) {
    const viewports = (window.cornerstone?.getRenderingEngines() || []).flatMap(engine => engine.getViewports())
      .filter(viewport => viewport.element.isConnected);
    return viewports.length === 0 || !viewports.every(viewport => viewport.getImageData())
      || ![...document.querySelectorAll("[data-cy=study-browser-thumbnail] img")].every(img => img.complete);
  }
  if (location.pathname !== "/") return true;
  const asked = [...new URLSearchParams(location.search).values()].join(" ").toLowerCase();
  const typed = [...document.querySelectorAll("input[type=text]")].map(input => input.value.trim().toLowerCase());
  const isListed = document.querySelector("tbody tr") || document.body.innerText.includes("No studies");
  return !isListed || !typed.every(text => asked.includes(text));
}"""
NO_TOUR = """localStorage.setItem("shownTours", '["basicViewerTour"]')"""

# OHIF gives these no accessible name; the recorded lists of elements should call them what the steps call them.
ACCESSIBLE_NAMES = {
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
    page.add_init_script(f"({NAME_ELEMENTS})({json.dumps(ACCESSIBLE_NAMES)})")


def open_start(page: Page, stack: Stack) -> None:
    """Show the study list with every study."""
    page.add_init_script(NO_TOUR)
    page.add_init_script(COUNT_REQUESTS)
    name_elements(page)
    page.goto(stack.ohif_url)
    page.locator("tbody tr").nth(10).wait_for(timeout=30_000)


def count_ticks(page: Page, point: Point) -> int:
    """Say how far one SCROLL turns the wheel: a slice of a stack, or a part of a list."""
    return 1 if find_viewport_at(page, point) and not page.locator("[role=dialog]").count() else 6


def is_busy(page: Page) -> bool:
    return page.evaluate(IS_BUSY)


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


def find_viewport_at(page: Page, point: Point) -> tuple[int, BBox] | None:
    """Return the viewport that shows a point, by number and box, or None."""
    x, y = point
    for number, box in enumerate(_list_viewports(page)):
        if box[0] <= x <= box[2] and box[1] <= y <= box[3]:
            return number, box
    return None


def find_viewport(page: Page, name: str | None) -> tuple[int, BBox] | None:
    """Return the viewport of a name, or the first one, by number and box; None where there is none."""
    boxes = _list_viewports(page)
    if name is None:
        return (0, boxes[0]) if boxes else None
    grid = _GRIDS.get(len(boxes), [])
    return (grid.index(name), boxes[grid.index(name)]) if name in grid else None


def zoom_image(page: Page, point: Point, viewport: BBox, direction: str) -> None:
    """Zoom the image of a viewport by half."""
    zoom(page, point, direction, round((viewport[3] - viewport[1]) * ZOOM_DRAG))


def move_drawing(points: list[Point], centre: Point, viewport: BBox) -> list[Point]:
    """Move a drawing so that the middle of its extent is at a point, and keep it in the viewport."""
    x, y = compute_centre(compute_extent(points))
    left, top, right, bottom = viewport
    moved = [(px + centre[0] - x, py + centre[1] - y) for px, py in points]
    return [(min(max(px, left + 2), right - 2), min(max(py, top + 2), bottom - 2)) for px, py in moved]


def locate_drawing(page: Page, tool: str, box: Box, viewport: int) -> list[Point]:
    """Say where on the screen the mouse goes to draw a tool's shape on a box of the image (fractions)."""
    answer = page.evaluate(IMAGE_TO_SCREEN, [viewport, build_points(tool, box)])
    return [(x, y) for x, y in answer["screen"]]


def draw(page: Page, tool: str, points: list[Point]) -> None:
    """Draw with the active tool, as one uses it: by one drag, or by a click on each point."""
    (click_each if tool in CLICKED_TOOLS else drag)(page, points)


def compute_extent(points: list[Point]) -> BBox:
    """Return the box around points, a little wider than they are."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return (min(xs) - 8, min(ys) - 8, max(xs) + 8, max(ys) + 8)


def _list_viewports(page: Page) -> list[BBox]:
    boxes = page.evaluate(
        """selector => [...document.querySelectorAll(selector)].map(pane => pane.getBoundingClientRect())
            .map(box => [box.left, box.top, box.right, box.bottom])""",
        _PANE,
    )
    return [tuple(box) for box in boxes]
