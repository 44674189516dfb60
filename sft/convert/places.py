"""In which units does a source give its points and boxes? Turned into pixels for boxes, 0..1000 for points."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sft.actions import POINT, ActionType, find_action_type
from sft.convert.converted import ConvertedStep, Coordinates, Point
from sft.data.cells import Box, Size

_WHOLE: Mapping[Coordinates, float] = {"fraction": 1.0, "thousandths": 1000.0}


def place_step(step: ConvertedStep, image_size: Size, actions: Sequence[ActionType]) -> ConvertedStep:
    """Return a step whose box is in pixels of its screen and whose places are arguments of its action.

    A place `point` becomes `"point": [x, y]`, any other two numbers, `to_x` and `to_y`. Where the source names no
    element, the target is the place in words: `[543, 173]`.

    Raises:
        ValueError: a place outside of what its units allow, or a step with neither a name nor a place for its target.
    """
    size = step.screen or image_size
    try:
        bbox = scale_box(step.bbox, step.coordinates, size) if step.bbox else None
        arguments: dict[str, Any] = dict(step.action.arguments)
        for name, place in step.places.items():
            x, y = scale_point(place, step.coordinates, size)
            arguments |= {name: [x, y]} if name == POINT else {f"{name}_x": x, f"{name}_y": y}
        target = step.action.target
        kind = find_action_type(step.action.kind, actions)
        if not target and kind is not None and kind.takes_target and not kind.is_final:
            if step.spot is None:
                raise ValueError(f"found neither a name nor a place of what {kind.name} acts on; expected one")
            target = str(list(scale_point(step.spot, step.coordinates, size)))
    except ValueError as error:
        raise ValueError(f"step {step.number}: {error}") from error
    return replace(step, action=replace(step.action, target=target, arguments=arguments), bbox=bbox)


def scale_point(point: Point, coordinates: Coordinates, size: Size) -> tuple[int, int]:
    """Return a point in thousandths of the screen's width and height.

    Raises:
        ValueError: it does not lie on the screen.
    """
    whole = _find_whole(coordinates, size)
    if not all(0 <= value <= most for value, most in zip(point, whole)):
        raise ValueError(f"found the point {list(point)}; expected {_describe(coordinates, size)}")
    x, y = (round(1000 * value / most) for value, most in zip(point, whole))
    return x, y


def scale_box(box: Box, coordinates: Coordinates, size: Size) -> Box:
    """Return a box in pixels of the screen; one in pixels stays as it is, and `sft.check` says where it is odd.

    Raises:
        ValueError: it does not lie on the screen.
    """
    if coordinates == "pixels":
        return box
    whole = _find_whole(coordinates, size)
    if not all(0 <= value <= most for value, most in zip(box, whole * 2)):
        raise ValueError(f"found the box {list(box)}; expected {_describe(coordinates, size)}")
    x1, y1, x2, y2 = (
        _trim(value / most * length) for value, most, length in zip(box, whole * 2, (*size, *size), strict=True)
    )
    return x1, y1, x2, y2


def _find_whole(coordinates: Coordinates, size: Size) -> tuple[float, float]:
    """Return what the screen's right and lower edges are in these units."""
    if coordinates == "pixels":
        return float(size[0]), float(size[1])
    return _WHOLE[coordinates], _WHOLE[coordinates]


def _describe(coordinates: Coordinates, size: Size) -> str:
    most = f"the screen's {size[0]}x{size[1]}" if coordinates == "pixels" else f"{_WHOLE[coordinates]:g}"
    return f"values from 0 to {most}, since --coordinates is {coordinates}"


def _trim(value: float) -> float:
    """Round to a tenth of a pixel; a whole number is written as one."""
    value = round(value, 1)
    return int(value) if value.is_integer() else value
