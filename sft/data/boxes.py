"""Where is a step's target, and what cannot be right about its box? Knows nothing of files or prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, cast

from sft.actions import POINT, ActionType, carries_point
from sft.answers import Answer
from sft.data.cells import Box, Grounding, Size
from sft.data.steps import Step

_ROUNDING = 1  # pixels by which a box may stand over the edge of its screen
_MAX_ROWS_SHOWN = 5
_MAX_DISTORTION = 0.02  # of width to height: a window's border more or less is no other screen

Doubt = Literal["shares", "no area", "outside", "shape"]

_NEEDS_OF_A_POINT = {
    "shares": "found bbox {box}, shares from 0 to 1; expected pixels",
    "outside": "found bbox {box} outside its screen of {width}x{height}; expected it inside",
    "shape": "found screen {width}x{height} of another shape than the screenshot, {picture[0]}x{picture[1]}; expected "
    "the size that the screenshot was taken at",
}


def find_doubts(box: Box | None, screen: Size | None, picture: Size) -> list[Doubt]:
    """Return what cannot be right about a box and its screen, beside a screenshot of `picture` pixels.

    Without a screen the box is one of the picture. A box of shares (0 to 1) is doubted for that alone.
    """
    doubts: list[Doubt] = []
    if box is not None:
        x1, y1, x2, y2 = box
        width, height = screen or picture
        if max(width, height) > 1 and min(box) >= 0 and 0 < max(box) <= 1:
            doubts.append("shares")
        else:
            if x1 == x2 or y1 == y2:
                doubts.append("no area")
            if min(x1, y1) < -_ROUNDING or x2 > width + _ROUNDING or y2 > height + _ROUNDING:
                doubts.append("outside")
    if screen is not None and max(screen) > 1:
        distortion = screen[0] * picture[1] / (screen[1] * picture[0])
        if abs(distortion - 1) > _MAX_DISTORTION:
            doubts.append("shape")
    return doubts


def compute_point(box: Box, screen: Size) -> list[float]:
    """Return the centre of a box as answers give it: [x, y], whole thousandths of the screen's width and height."""
    centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return [min(max(round(1000 * at / length), 0), 1000) for at, length in zip(centre, screen)]


def point_at_box(
    gold: Answer, grounding: Grounding, picture: Size, actions: Sequence[ActionType]
) -> tuple[Answer, Grounding]:
    """Give a right answer the point that it is to carry, and its box the screen that it is measured on.

    The point is the centre of the box; an answer that has one of its own keeps it. Without a screen the box is one of
    the screenshot, of `picture` pixels. What carries no point, or has no box, is returned as it is.

    Raises:
        ValueError: the box cannot be right, or the answer's own point is outside it.
    """
    action, box = gold.action, grounding.bbox
    if box is None or not carries_point(action.kind, actions):
        return gold, grounding
    width, height = screen = grounding.screen_wh or picture
    for doubt in find_doubts(box, grounding.screen_wh, picture):
        if doubt in _NEEDS_OF_A_POINT:
            found = _NEEDS_OF_A_POINT[doubt].format(box=list(box), width=width, height=height, picture=picture)
            raise ValueError(f"{found}: the point of the answer is the centre of the box")
    arguments = {POINT: compute_point(box, screen), **action.arguments}
    x, y = cast(list[float], arguments[POINT])
    if not (_is_between(x, box[0], box[2], width) and _is_between(y, box[1], box[3], height)):
        raise ValueError(
            f"found bbox {list(box)} on a screen of {width}x{height}, and point {[x, y]} of Output outside it; "
            "expected the point inside, in thousandths of the screen, or none in Output"
        )
    return replace(gold, action=replace(action, arguments=arguments)), replace(grounding, screen_wh=screen)


def count_points(steps: Iterable[Step], actions: Sequence[ActionType]) -> tuple[int, list[int]]:
    """Return how many steps have an action whose answers carry a point, and the rows of those without one."""
    pointing = [step for step in steps if carries_point(step.gold.action.kind, actions)]
    return len(pointing), sorted(step.row for step in pointing if POINT not in step.gold.action.arguments)


def describe_missing_points(n_pointing: int, n_without: int, rows: Sequence[int]) -> str:
    """Say how many answers have no point; `rows` are the first of their rows."""
    shown = ", ".join(map(str, rows[:_MAX_ROWS_SHOWN])) + (", ..." if n_without > _MAX_ROWS_SHOWN else "")
    noun = "row" if n_without == 1 else "rows"
    return f"points: no box in Grounding for {n_without} of {n_pointing} answers that take a point ({noun} {shown})"


def _is_between(thousandths: float, low: float, high: float, length: int) -> bool:
    """Say whether a coordinate of a point is between two edges in pixels; rounding may put it a thousandth beside."""
    return 1000 * low / length - 1 <= thousandths <= 1000 * high / length + 1
