"""What cannot be right about a target's box? Knows nothing of files or tasks."""

from typing import Literal

from sft.data.cells import Box, Size

_ROUNDING = 1  # pixels by which a box may stand over the edge of its screen
_MAX_DISTORTION = 0.02  # of width to height: a window's border more or less is no other screen

Doubt = Literal["shares", "no area", "outside", "shape"]


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
