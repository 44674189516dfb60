"""Questions and answers about recorded screens, made from the pages' own elements. Knows no goal and no action."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sft.prompts import Message

SCREEN_WH = (1280, 800)
POINT_STEP = 50  # points are given in thousandths of the screen, as Qwen3-VL gives them, rounded to this
MAX_LISTED = 8
_KIND_OF_ROLE = {"textbox": "TEXT", "image": "ZOOM"}
INTERACTIVE_ROLES = ("button", "link", "tab", "menuitem", "checkbox", "textbox", "combobox", "switch", "option")


@dataclass(frozen=True)
class Element:
    """Something visible on a screen: its role, its label, and its box [x1, y1, x2, y2] in pixels."""

    role: str
    name: str
    bbox: tuple[float, float, float, float]

    @property
    def point(self) -> list[int]:
        """Its middle as [x, y] in thousandths of the screen, rounded to `POINT_STEP`."""
        middle = ((self.bbox[0] + self.bbox[2]) / 2, (self.bbox[1] + self.bbox[3]) / 2)
        return [round(1000 * v / side / POINT_STEP) * POINT_STEP for v, side in zip(middle, SCREEN_WH)]


@dataclass(frozen=True)
class Screen:
    """One screenshot and what is on it."""

    image: Path
    application: str
    elements: tuple[Element, ...]


def name_usable_elements(screen: Screen, max_chars: int) -> dict[str, str]:
    """Return what can be acted on, label to kind of action; labels that are long or stand there twice are left out."""
    names = [e.name for e in screen.elements]
    return {
        e.name.rstrip(":"): _KIND_OF_ROLE.get(e.role, "CLICK")
        for e in screen.elements
        if len(e.name) <= max_chars and names.count(e.name) == 1
    }


def build_chat(rng: random.Random, screen: Screen, labels: Sequence[str], n_questions: int) -> list[Message]:
    """Return a conversation about one screen: user turns ask, assistant turns answer; the screenshot comes first.

    `labels` are element labels of all screens, for questions about what is not there.
    """
    messages: list[Message] = []
    for number in range(n_questions):
        question, answer = rng.choice(_KINDS)(rng, screen, labels)
        picture = [{"type": "image"}] if number == 0 else []
        messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def _ask_where(rng: random.Random, screen: Screen, labels: Sequence[str]) -> tuple[str, str]:
    names = [e.name for e in screen.elements]
    element = rng.choice([e for e in screen.elements if names.count(e.name) == 1] or screen.elements)
    return f"Point at {element.name}.", json.dumps({"point_2d": element.point, "label": element.name})


def _ask_what(rng: random.Random, screen: Screen, labels: Sequence[str]) -> tuple[str, str]:
    element = rng.choice(screen.elements)
    x, y = element.point
    at_point = [e.name for e in screen.elements if e.point == element.point]
    return f"What is at [{x}, {y}]?", "; ".join(dict.fromkeys(at_point[:MAX_LISTED]))


def _ask_visible(rng: random.Random, screen: Screen, labels: Sequence[str]) -> tuple[str, str]:
    shown = {e.name for e in screen.elements}
    name = rng.choice(sorted(shown)) if rng.random() < 0.5 else rng.choice(labels)
    return f"Is {name} on the screen?", "yes" if name in shown else "no"


def _ask_page(rng: random.Random, screen: Screen, labels: Sequence[str]) -> tuple[str, str]:
    headings = [e.name for e in screen.elements if e.role == "heading"][:2]
    return "Which page is this?", "; ".join([screen.application, *headings])


def _ask_list(rng: random.Random, screen: Screen, labels: Sequence[str]) -> tuple[str, str]:
    half = rng.choice(("upper", "lower", "left", "right"))
    axis, is_high = (1, half == "lower") if half in ("upper", "lower") else (0, half == "right")
    chosen = [e.name for e in screen.elements if (e.point[axis] >= 500) == is_high and e.role in INTERACTIVE_ROLES]
    return f"What can be used in the {half} half?", "; ".join(list(dict.fromkeys(chosen))[:MAX_LISTED]) or "nothing"


_Kind = Callable[[random.Random, Screen, Sequence[str]], tuple[str, str]]
_KINDS: tuple[_Kind, ...] = (_ask_where, _ask_what, _ask_visible, _ask_page, _ask_list)
