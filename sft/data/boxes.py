"""A target's box and the screen it lies on: read strictly, and doubted where they cannot be right. Opens no file."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from sft.data.literals import is_missing

Box = tuple[float, float, float, float]
Size = tuple[int, int]
Doubt = Literal["shares", "no area", "outside", "shape"]

_MAX_PIXELS = 1e6
_ROUNDING = 1  # pixels by which a box may stand over the edge of its screen
_MAX_DISTORTION = 0.02  # of width to height: a window's border more or less is no other screen


def read_box(value: Any) -> Box | None:
    """Return [x1, y1, x2, y2] in pixels, or None for a box that is empty: null, [], "", or a list of nulls.

    Raises:
        ValueError: what was found and what was expected.
    """
    if is_empty(value):
        return None
    if not _is_numbers(value, 4) or value[0] > value[2] or value[1] > value[3]:
        raise ValueError(
            f"found bbox {str(value)[:60]}; expected [x1, y1, x2, y2] in pixels with x1 <= x2 and y1 <= y2"
        )
    return value[0], value[1], value[2], value[3]


def read_screen(value: Any) -> Size | None:
    """Return [width, height] in pixels, or None where the value is empty.

    Raises:
        ValueError: what was found and what was expected.
    """
    if is_empty(value):
        return None
    if not _is_numbers(value, 2) or min(value) < 1:
        raise ValueError(f"found screen {str(value)[:60]}; expected [width, height] in pixels")
    return int(value[0]), int(value[1])


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


def is_empty(value: Any) -> bool:
    """Return whether a value stands for nothing: null, NaN, a missing value's name, or a list of such values."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, str):
        return is_missing(value)
    return isinstance(value, (list, tuple, Mapping)) and all(map(is_empty, value))


def _is_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == count
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < _MAX_PIXELS for v in value)
    )
