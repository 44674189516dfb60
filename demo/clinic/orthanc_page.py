"""Orthanc Explorer's pages: their names, when they are at rest, where a task begins. Knows no tasks."""

from playwright.sync_api import Page

from demo.clinic.screen import Point
from demo.clinic.stack import Stack
from demo.clinic.targets import Names

ACTIVE = ".ui-page-active "
_LISTS = ("[data-role=content] .ui-block-b", "[data-role=content] > ul", "#lookup-result")
LIST_ROWS = ", ".join(f"{ACTIVE}{place} li" for place in _LISTS)
NAMES = Names(
    rows=LIST_ROWS,
    places={
        "Close": ("#lbCloseLink", 0, 0),
        "Retrieve all study": (f"{ACTIVE}a[title='Retrieve all study']", 0, 0),
    },
    scrolled={"page": ("html", 0, 0)},
)
# A page transition, a request, a blocked page, a preview that opens, or a job under way: whether the next page shows
# it as done must not depend on how fast the agent is. Raw JSON, which a link may open, is at rest.
IS_BUSY = """async () => {
  const isShown = (element) => !!element && element.offsetParent !== null;
  const jobs = window.jQuery ? await fetch("/jobs?expand").then(reply => reply.json(), () => []) : [];
  if (jobs.some(job => ["Pending", "Running", "Retry"].includes(job.State))) return true;
  return (window.jQuery && jQuery.active > 0)
    || !!document.querySelector(".ui-mobile-viewport-transitioning, .blockUI")
    || isShown(document.querySelector("#lbCenter.lbLoading"));
}"""


def is_busy(page: Page) -> bool:
    return page.evaluate(IS_BUSY)


def open_start(page: Page, stack: Stack) -> None:
    """Show the lookup page, where every task begins."""
    page.goto(f"{stack.orthanc_url}/app/explorer.html")
    page.locator("#lookup-submit").wait_for(state="visible")


def count_ticks(page: Page, point: Point) -> int:
    """Say how far one SCROLL turns the wheel."""
    return 6
