"""One action in a page, and the screen when it stands still; for the recorder and for the environment."""

import time
from collections.abc import Callable, Sequence

from playwright.sync_api import Page

BBox = tuple[float, float, float, float]
Point = tuple[float, float]

PARKED_MOUSE = (1, 798)
FRAME_INTERVAL_S = 0.2
WHEEL_TICK_PX = 100  # one slice of a stack
TYPED_CHARS = 200  # a longer text is pasted: typing takes 12 ms a character
DIRECTIONS = {"down": (0, 1), "up": (0, -1), "right": (1, 0), "left": (-1, 0)}


class UnsettledError(RuntimeError):
    """The page did not stand still in time; `frame` is what it showed last."""

    def __init__(self, limit_s: float, frame: bytes):
        super().__init__(f"the page does not stand still after {limit_s:g} s")
        self.frame = frame


def take_stable_screenshot(
    page: Page, is_busy: Callable[[Page], bool], before: bytes | None, change_s: float, limit_s: float
) -> bytes:
    """Return the page (PNG) once two frames in a row are equal and the program was not busy at either.

    A frame equal to `before` is not taken for the answer to an action until `change_s` have passed.

    Raises:
        UnsettledError: the page did not stand still.
    """
    began = time.monotonic()
    last = b""
    was_busy = True
    while time.monotonic() - began < limit_s:
        frame = page.screenshot(animations="disabled", caret="hide")
        is_answer = frame != before or time.monotonic() - began > change_s
        is_busy_now = is_busy(page)
        if is_answer and frame == last and not (was_busy or is_busy_now):
            return frame
        last, was_busy = frame, is_busy_now
        time.sleep(FRAME_INTERVAL_S)
    raise UnsettledError(limit_s, last)


def click(page: Page, place: Point) -> None:
    page.mouse.click(*place)
    park(page)


def type_text(page: Page, place: Point, text: str) -> None:
    """Replace the content of a field; nothing is submitted: a line break in the text would be the key Enter."""
    page.mouse.click(*place)
    page.keyboard.press("Control+A")
    if len(text) > TYPED_CHARS or not text.isprintable():
        page.keyboard.insert_text(text)
    elif text:
        page.keyboard.type(text, delay=12)
    else:
        page.keyboard.press("Delete")
    park(page)


def turn_wheel(page: Page, place: Point, direction: str, ticks: int) -> None:
    """Turn the mouse wheel, in ticks of 100 px (one slice a tick in a stack)."""
    right, down = DIRECTIONS[direction]
    page.mouse.move(*place)
    for _ in range(ticks):
        page.mouse.wheel(right * WHEEL_TICK_PX, down * WHEEL_TICK_PX)
        time.sleep(0.03)
    park(page)


def zoom(page: Page, place: Point, direction: str, distance: float) -> None:
    """Zoom an image as OHIF does it: drag with the right button, downwards to zoom in."""
    x, y = place
    down = distance if direction == "in" else -distance
    drag(page, [(x, y - down / 2), (x, y + down / 2)], button="right")


def drag(page: Page, points: Sequence[Point], button: str = "left") -> None:
    """Draw one line through the points."""
    page.mouse.move(*points[0])
    page.mouse.down(button=button)
    for x, y in points[1:]:
        page.mouse.move(x, y, steps=10)
    time.sleep(0.1)
    page.mouse.up(button=button)
    park(page)


def click_each(page: Page, points: Sequence[Point]) -> None:
    """Draw by a click on each point."""
    for x, y in points:
        page.mouse.move(x, y, steps=6)
        page.mouse.click(x, y)
        time.sleep(0.35)  # faster clicks are taken for a double click
    park(page)


def park(page: Page) -> None:
    """Move the mouse away, so that no element looks pointed at."""
    page.mouse.move(*PARKED_MOUSE)


def compute_centre(bbox: BBox) -> Point:
    return (bbox[0] + bbox[2]) / 2, (bbox[1] + bbox[3]) / 2
