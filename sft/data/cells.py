"""One table cell to one value: text, gold answer, grounding, detected elements. Knows nothing of files or tasks."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.actions import Action, ActionType, as_plain_text, parse_action
from sft.answers import Answer, read_answer
from sft.data.literals import is_missing, read_literal
from sft.json_text import clean_json

Box = tuple[float, float, float, float]
Size = tuple[int, int]

_MAX_PIXELS = 1e6
MAX_CELL_CHARS = 50_000


@dataclass(frozen=True)
class Grounding:
    """Label-side evidence of a step: the target's box [x1, y1, x2, y2] and the screen's (width, height), in pixels.

    `application` is the program that the step's row names, or "".
    """

    bbox: Box | None = None
    screen_wh: Size | None = None
    application: str = ""


def read_text(cell: str) -> str:
    """Return the text of a cell as prompts show it and as texts are compared: plain, without white space around it.

    Every text that names something (a task, its goal, an application) is read by this, so that one text in two
    Unicode forms is one text everywhere.
    """
    return as_plain_text(cell).strip()


def read_name(cell: str) -> str:
    """Read what a task or program is called, as `read_text` does: terminals and logs show it.

    Raises:
        ValueError: it holds a control character, which would steer them.
    """
    name = read_text(cell)
    if control := next((c for c in name if unicodedata.category(c) == "Cc"), None):
        found = f"found the control character U+{ord(control):04X} in {name[:40]!r}"
        raise ValueError(f"{found}; expected a name that can be shown")
    return name


def read_gold(output: str, grounding: str, actions: Sequence[ActionType] | None) -> Answer:
    """Read the right answer from an `Output` cell in any of its three shapes.

    Compact `{"action", "target", ...}`; a record with `Predicted.predicted_action`, "Short Term" and "Long Term"; or
    `{"predicted_action": {...}}` / `{"predicted_next_action": {...}}`. In published files `Grounding` may hold
    `ground_truth.{action,target}`, which then is the gold action: the record beside it is what some model predicted.
    `actions` None takes any action, its arguments left out.

    Raises:
        ValueError: what was found and what was expected.
    """
    fields = read_object(output, "an answer")
    action = _find_action(fields)
    truth = _read_evidence(grounding).get("ground_truth")
    if isinstance(truth, Mapping) and truth.get("action"):
        action = {**(action if _is_same_kind(action.get("action"), truth["action"]) else {}), **truth}
    memory = {
        "short_term": fields.get("short_term", fields.get("Short Term")),
        "long_term": fields.get("long_term", fields.get("Long Term")),
    }
    return read_answer({**action, **memory}, actions)


def read_grounding(cell: str) -> Grounding:
    """Read a `Grounding` cell; it may be empty, and so may its box and its screen.

    Raises:
        ValueError: what was found and what was expected.
    """
    evidence = _read_evidence(cell)
    return Grounding(read_box(evidence.get("bbox")), read_screen(evidence.get("screen")), _read_application(evidence))


def read_elements(cell: str) -> tuple[Mapping[str, Any], ...]:
    """Read a `Detected_Elements` cell: a JSON list of `{"name", "bbox"}`; empty is allowed.

    Raises:
        ValueError: what was found and what was expected.
    """
    if is_missing(cell):
        return ()
    elements = _read_json(cell)
    if isinstance(elements, dict) and all(isinstance(column, list) for column in elements.values()):
        elements = _turn_columns(elements)
    if not isinstance(elements, list) or not all(
        isinstance(e, dict) and isinstance(e.get("name"), str) for e in elements
    ):
        raise ValueError('found something else; expected a JSON list of {"name", "bbox"}')
    return tuple(elements)


def read_also_right(cell: str, actions: Sequence[ActionType] | None) -> tuple[Action, ...]:
    """Read an `Also_Right` cell: a JSON list of answers that are right too, each in any shape of `Output`.

    Empty is allowed. Memory that they hold is not read.

    Raises:
        ValueError: what was found and what was expected.
    """
    if is_missing(cell):
        return ()
    answers = _read_json(cell)
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise ValueError(f'found {cell.strip()[:60]!r}; expected a JSON list of answers: [{{"action", "target"}}]')
    found = []
    for number, answer in enumerate(answers, start=1):
        try:
            found.append(parse_action(_find_action(answer), actions))
        except ValueError as error:
            raise ValueError(f"answer {number}: {error}") from error
    return tuple(found)


def read_application(cell: str) -> str:
    """Return the application a `Grounding` cell names, or ""."""
    return _read_application(_read_evidence(cell))


def _read_application(evidence: Mapping[str, Any]) -> str:
    application = evidence.get("application")
    return read_name(application) if isinstance(application, str) else ""


def read_object(cell: str, what: str) -> Mapping[str, Any]:
    """Read a cell that holds a JSON object.

    Raises:
        ValueError: what was found and what was expected.
    """
    return _as_object(_read_json(cell), cell, what)


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


def is_empty(value: Any) -> bool:
    """Return whether a value stands for nothing: null, NaN, a missing value's name, or a list of such values."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, str):
        return is_missing(value)
    return isinstance(value, (list, tuple, Mapping)) and all(map(is_empty, value))


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


def _read_evidence(cell: str) -> Mapping[str, Any]:
    """Return what a `Grounding` cell holds; only the parts that are read as texts have to be clean JSON."""
    if is_missing(cell):
        return {}
    value = _read_bounded(cell)
    if is_empty(value):
        return {}
    fields = _as_object(value, cell, "an object")
    texts = ("application", "ground_truth")
    return {name: _clean(value, cell) if name in texts else value for name, value in fields.items()}


def _turn_columns(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]] | None:
    """Return a list of objects that `datasets` holds as an object of lists; None where the lists differ in length."""
    if len({len(column) for column in columns.values()}) != 1:
        return None
    rows = (dict(zip(columns, values)) for values in zip(*columns.values()))
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _as_object(value: Any, cell: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"found {type(value).__name__} {cell.strip()[:60]!r}; expected {what} as a JSON object")
    return value


def _read_json(cell: str) -> Any:
    if not cell.strip():
        raise ValueError("found an empty cell; expected JSON")
    value = _read_bounded(cell)
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"found {cell.strip()!r}, a missing value; expected JSON: fill the cell")
    return _clean(value, cell)


def _read_bounded(cell: str) -> Any:
    if len(cell) > MAX_CELL_CHARS:
        raise ValueError(f"found {len(cell)} characters; expected at most {MAX_CELL_CHARS}")
    return read_literal(cell)


def _clean(value: Any, cell: str) -> Any:
    try:
        return clean_json(value)
    except ValueError as error:
        raise ValueError(f"found broken JSON ({error}) in {cell.strip()[:60]!r}; expected a JSON object") from error


def _is_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == count
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < _MAX_PIXELS for v in value)
    )
