"""Orthanc Explorer's pages: where things are, and the small moves that many phases share. Knows nothing of goals."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from playwright.sync_api import Locator, Page

from demo.capture.recorder import Recorder, SuspectStep
from demo.clinic.browser import SCREEN
from demo.clinic.orthanc_page import ACTIVE, LIST_ROWS

DIALOG = ".ui-simpledialog-container "


@dataclass(frozen=True)
class Phase:
    """One plan item: its name in the memory and the steps that carry it out."""

    name: str
    play: Callable[[Recorder], None]


def find_link(page: Page, label: str) -> Locator:
    """Return the link or button of the shown page that carries exactly `label`."""
    return page.locator(ACTIVE + "a:visible, " + ACTIVE + "button:visible, " + ACTIVE + "label:visible").filter(
        has_text=re.compile(rf"^\s*{re.escape(label)}\s*$")
    )


def find_row(page: Page, text: str) -> Locator:
    """Return the row of the shown list whose heading or one of whose lines is exactly `text`."""
    line = page.locator("h1, h3, p").filter(has_text=re.compile(rf"^\s*{_flexible(text)}\s*$"))
    return page.locator(LIST_ROWS).locator("visible=true").filter(has=line).first


def _flexible(text: str) -> str:
    """Match runs of blanks as a browser shows them: as one."""
    return r"\s+".join(re.escape(word) for word in text.split())


def scroll_until_shown(rec: Recorder, find: Callable[[], Locator], limit: int = 2) -> None:
    """Scroll the page down, at least once, until the element is wholly on the screen."""
    if _is_on_screen(find()):
        raise SuspectStep(f"on the screen without scrolling: {find()}")
    for _ in range(limit):
        rec.scroll("page", "down", "page scrolled down")
        rec.page.wait_for_timeout(400)
        if _is_on_screen(find()):
            return
    raise SuspectStep(f"not on the screen after {limit} scrolls: {find()}")


def _is_on_screen(locator: Locator) -> bool:
    """Tell whether the whole element is in the viewport."""
    box = locator.bounding_box()
    return box is not None and box["y"] >= 0 and box["y"] + box["height"] <= SCREEN[1]


def open_row(rec: Recorder, text: str, observation: str) -> None:
    """Click the row named `text`, and wait until its page has taken over."""
    before = rec.page.url
    rec.click(text, observation)
    rec.page.wait_for_function("before => location.href !== before", arg=before)


def type_filter(rec: Recorder, text: str) -> None:
    """Type into the filter field of the shown list."""
    rec.text("Filter items...", text, "list filtered")


def click_in_dialog(rec: Recorder, label: str, observation: str) -> None:
    rec.click(label, observation)
    rec.page.locator(DIALOG).wait_for(state="hidden")
