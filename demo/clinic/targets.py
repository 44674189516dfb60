"""Where on the page is what an action names? One answer for the recorder and for the environment."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from demo.clinic.screen import BBox, Point, compute_centre

LIST_ELEMENTS = Path(__file__).with_name("elements.js").read_text()
MAX_SHOWN = 60

Place = tuple[str, int, int]  # selector; how many elements must fit, 0 for any number; which of them


@dataclass(frozen=True)
class Names:
    """How one program's pages are named, where their own names do not say it.

    Attributes:
        rows: selector of list rows, each of which is named by any of its lines.
        places: for names of the recordings that the page lacks, or gives to several things: where they are.
        scrolled: the same for what is scrolled only.
    """

    rows: str = ""
    places: Mapping[str, Place] = field(default_factory=dict)
    scrolled: Mapping[str, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """One thing on the page: its visible box in pixels, and whether text can be typed into it."""

    bbox: BBox
    is_text: bool

    @property
    def centre(self) -> Point:
        return compute_centre(self.bbox)


class TargetError(LookupError):
    """A name that is not on the page, is there more than once, or is no place for the action."""

    def __init__(self, outcome: str, reason: str):
        super().__init__(reason)
        self.outcome = outcome


def find_target(page: Page, kind: str, name: str, names: Names) -> Target:
    """Find what an action of this kind means by a name; letter case, blanks and a final colon do not count.

    Nothing of the name reaches the page: the page lists what it shows, and names are compared here.

    Raises:
        TargetError: with the outcome "not_found", "ambiguous" or "impossible".
    """
    places = dict(names.places) | (dict(names.scrolled) if kind in ("SCROLL", "ZOOM") else {})
    wanted = _normalise(name)
    listed = page.evaluate(LIST_ELEMENTS, {"rows": names.rows, "places": places})
    fitting = [target for target in listed if wanted in map(_normalise, target["names"])]
    if not fitting:
        raise TargetError("not_found", f"nothing on the page is named {_shorten(name)}")
    fitting = _choose(fitting, lambda target: target["place"] is not None)
    if kind == "TEXT":
        if not any(target["isText"] for target in fitting):
            raise TargetError("impossible", f"no text can be typed into {_shorten(name)}")
        fitting = [target for target in fitting if target["isText"]]
    else:
        fitting = _choose(fitting, lambda target: target["isClickable"])
    groups = {target["group"] for target in fitting}
    if len(groups) > 1:
        raise TargetError("ambiguous", f"{len(groups)} things on the page are named {_shorten(name)}")
    return Target(tuple(fitting[0]["bbox"]), fitting[0]["isText"])


def find_field_at(page: Page, point: Point) -> bool:
    """Say whether text can be typed at a point."""
    return page.evaluate(
        """([x, y]) => {
            const hit = document.elementFromPoint(x, y);
            const label = hit && hit.closest("label");
            const field = hit && hit.closest("input, textarea, [contenteditable=true]") || (label && label.control);
            return !!field && !field.disabled && !field.readOnly
              && !["checkbox", "radio", "button", "submit", "file"].includes(field.type);
        }""",
        list(point),
    )


def _choose(targets: list[dict[str, Any]], is_better: Any) -> list[dict[str, Any]]:
    """Keep the better ones, where there are any."""
    return [target for target in targets if is_better(target)] or targets


def _normalise(name: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", name)).strip().rstrip(":").casefold()


def _shorten(name: str) -> str:
    return repr(name if len(name) <= MAX_SHOWN else name[: MAX_SHOWN - 3] + "...")


def list_elements(page: Page, limit: int) -> Iterable[dict[str, Any]]:
    """List what a person can use or read, as recordings keep it."""
    return page.evaluate(LIST_ELEMENTS, {"limit": limit})
