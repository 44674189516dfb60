"""One CSV cell to one value: gold answer, grounding, detected elements. Knows nothing of files, rows or tasks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.actions import ActionType
from sft.memory import Answer, clean_json
from sft.prompts import read_answer

MAX_CELL_CHARS = 50_000


@dataclass(frozen=True)
class Grounding:
    """Label-side evidence of a step: the target's box [x1, y1, x2, y2] and the screen's (width, height), in pixels."""

    bbox: tuple[float, float, float, float] | None = None
    screen_wh: tuple[int, int] | None = None


def read_gold(output: str, grounding: str, actions: Sequence[ActionType]) -> Answer:
    """Read the right answer from an `Output` cell in any of its three shapes.

    Compact `{"action", "target", ...}`; a record with `Predicted.predicted_action`, "Short Term" and "Long Term"; or
    `{"predicted_action": {...}}` / `{"predicted_next_action": {...}}`. In published files `Grounding` may hold
    `ground_truth.{action,target}`, which then is the gold action: the record beside it is what some model predicted.

    Raises:
        ValueError: what was found and what was expected.
    """
    fields = read_object(output, "an answer")
    action = _find_action(fields)
    truth = read_object(grounding, "an object").get("ground_truth") if grounding.strip() else None
    if isinstance(truth, Mapping) and truth.get("action"):
        action = {**(action if _is_same_kind(action.get("action"), truth["action"]) else {}), **truth}
    memory = {
        "short_term": fields.get("short_term", fields.get("Short Term")),
        "long_term": fields.get("long_term", fields.get("Long Term")),
    }
    return read_answer({**action, **memory}, actions)


def read_grounding(cell: str) -> Grounding:
    """Read a `Grounding` cell; empty is allowed.

    Raises:
        ValueError: what was found and what was expected.
    """
    if not cell.strip():
        return Grounding()
    fields = read_object(cell, "an object")
    bbox, screen = fields.get("bbox"), fields.get("screen")
    if bbox is not None and not (_is_numbers(bbox, 4) and bbox[0] <= bbox[2] and bbox[1] <= bbox[3]):
        raise ValueError(
            f"found bbox {str(bbox)[:60]}; expected [x1, y1, x2, y2] in pixels with x1 <= x2 and y1 <= y2"
        )
    if screen is not None and not (_is_numbers(screen, 2) and min(screen) >= 1):
        raise ValueError(f"found screen {str(screen)[:60]}; expected [width, height] in pixels")
    return Grounding(
        None if bbox is None else (bbox[0], bbox[1], bbox[2], bbox[3]),
        None if screen is None else (int(screen[0]), int(screen[1])),
    )


def read_elements(cell: str) -> tuple[Mapping[str, Any], ...]:
    """Read a `Detected_Elements` cell: a JSON list of `{"name", "bbox"}`; empty is allowed.

    Raises:
        ValueError: what was found and what was expected.
    """
    if not cell.strip():
        return ()
    elements = _load_json(cell)
    if not isinstance(elements, list) or not all(
        isinstance(e, dict) and isinstance(e.get("name"), str) for e in elements
    ):
        raise ValueError('found something else; expected a JSON list of {"name", "bbox"}')
    return tuple(elements)


def read_application(cell: str) -> str:
    """Return the application a `Grounding` cell names, or ""."""
    application = read_object(cell, "an object").get("application") if cell.strip() else None
    return application.strip() if isinstance(application, str) else ""


def read_object(cell: str, what: str) -> Mapping[str, Any]:
    value = _load_json(cell)
    if not isinstance(value, dict):
        raise ValueError(f"found {type(value).__name__} {cell.strip()[:60]!r}; expected {what} as a JSON object")
    return value


def _find_action(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    predicted = fields.get("Predicted")
    candidates = [
        fields if "action" in fields else None,
        predicted.get("predicted_action") if isinstance(predicted, Mapping) else None,
        fields.get("predicted_action"),
        fields.get("predicted_next_action"),
    ]
    for candidate in candidates:
        if isinstance(candidate, Mapping):
            return candidate
    raise ValueError(
        f"found keys {', '.join(map(str, fields))[:80] or 'none'}; "
        'expected "action", "Predicted", "predicted_action" or "predicted_next_action"'
    )


def _is_same_kind(one: Any, other: Any) -> bool:
    """Compare two action names as `sft.actions` does: letter case and white space around them do not count."""
    return isinstance(one, str) and isinstance(other, str) and one.strip().upper() == other.strip().upper()


def _load_json(cell: str) -> Any:
    if not cell.strip():
        raise ValueError("found an empty cell; expected JSON")
    if len(cell) > MAX_CELL_CHARS:
        raise ValueError(f"found {len(cell)} characters; expected at most {MAX_CELL_CHARS}")
    try:
        return clean_json(json.loads(cell, object_pairs_hook=_refuse_doubled))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"found broken JSON ({error}) in {cell.strip()[:60]!r}; expected a JSON object") from error


def _refuse_doubled(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, but not one that names a key twice: JSON readers differ on which of the two counts."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {doubled[:40]!r} stands there twice")
    return fields


def _is_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e6 for v in value)
    )
