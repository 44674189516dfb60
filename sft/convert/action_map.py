"""How is a foreign action written in ours? One table per format, which a user can read and override.

A row maps an action's name in the source to `skip` (the step is left out), to the name of our action, or to an object:
`{action: TEXT, text: $text|$message}`. Its other keys are arguments: a constant, or `$name`, the source's argument of
that name, the first one there of several. In parentheses, `($direction)`, it may be missing; else the task is dropped.
`$1` is a first argument without a name, `$point` where the action takes place, `$end` where a drag ends, which is
written as two numbers (`to: $end` gives `to_x` and `to_y`). A row without `target` takes the source's `target` or
`element`, else what the source says about the step, and at last the place.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sft.actions import (
    DEFAULT_ACTIONS,
    MAX_TARGET_CHARS,
    POINT,
    ActionType,
    describe_action_type,
    find_action_type,
    read_action,
)
from sft.convert.converted import ConvertedStep, Coordinates, Point
from sft.convert.foreign_actions import ForeignAction, read_place, simplify_name
from sft.errors import UserError
from sft.recipe.recipe import load_yaml

SKIP = "skip"
# Actions that take place where the pointer was left, and their target where no place is known either
_AT_POINTER: Mapping[str, str] = {"TEXT": "the focused field", "SCROLL": "the screen"}
Row = str | Mapping[str, Any]

# What a desktop can be made to do, in the words of a recipe's `actions:`. A conversion writes those that occur.
DESKTOP_ACTIONS: tuple[ActionType, ...] = (
    ActionType("CLICK", "press the element", {POINT: ()}),
    ActionType("DOUBLE_CLICK", "press it twice", {POINT: ()}),
    ActionType("TRIPLE_CLICK", "press it three times", {POINT: ()}),
    ActionType("RIGHT_CLICK", "press it with the right button", {POINT: ()}),
    ActionType("MIDDLE_CLICK", "press it with the middle button", {POINT: ()}),
    ActionType("LONG_PRESS", "press and hold it", {POINT: ()}),
    ActionType("MOVE", "move the pointer onto it", {POINT: ()}),
    ActionType("DRAG", "drag it to a place", {POINT: (), "to_x": (), "to_y": ()}),
    ActionType("SCROLL", "scroll it", {"direction": ("up", "down", "left", "right"), POINT: ()}),
    ActionType("ZOOM", "zoom it", {"direction": ("in", "out"), "scale": ()}),
    ActionType("TEXT", "type text into it", {"text": ()}),
    ActionType("KEY", "press keys", {"keys": ()}, takes_target=False),
    ActionType("SEGMENT", "draw a region or measurement with it"),
    ActionType("WAIT", "wait for the screen to change", takes_target=False),
    ActionType("COMPLETE", "the goal is reached", is_final=True),
)

_DRAG = {"action": "DRAG", "point": "($point)", "to": "$end"}
_SCROLL = {"action": "SCROLL", "direction": "$direction", "point": "($point)"}
_KEYS = {"action": "KEY", "keys": "$keys|$key|$1"}
_POINTED: Mapping[str, str] = {
    "click": "CLICK",
    "doubleClick": "DOUBLE_CLICK",
    "tripleClick": "TRIPLE_CLICK",
    "rightClick": "RIGHT_CLICK",
    "middleClick": "MIDDLE_CLICK",
    "moveTo": "MOVE",
}
_AGENTNET: Mapping[str, Row] = {
    **{name: {"action": kind, "point": "($point)"} for name, kind in _POINTED.items()},
    "dragTo": _DRAG,
    "scroll": _SCROLL,
    "hscroll": _SCROLL,
    **dict.fromkeys(("write", "typewrite"), {"action": "TEXT", "text": "$message"}),
    "press": _KEYS,
    "hotkey": _KEYS,
    "wait": "WAIT",
    "terminate": "COMPLETE",
    "terminate_incomplete": SKIP,
}
_SCREENAGENT: Mapping[str, Row] = {
    "click": {"action": "CLICK", "point": "$point"},
    "double_click": {"action": "DOUBLE_CLICK", "point": "$point"},
    "right_click": {"action": "RIGHT_CLICK", "point": "$point"},
    "middle_click": {"action": "MIDDLE_CLICK", "point": "$point"},
    "move": {"action": "MOVE", "point": "$point"},
    "drag": {"action": "DRAG", "point": "($point)", "to": "$end"},
    "scroll_up": {"action": "SCROLL", "direction": "up", "point": "($point)"},
    "scroll_down": {"action": "SCROLL", "direction": "down", "point": "($point)"},
    "press": {"action": "KEY", "keys": "$keyboard_key"},
    "text": {"action": "TEXT", "text": "$keyboard_text"},
    "wait": "WAIT",
    "plan": SKIP,
    "sub_task_success": SKIP,
    "need_retry": SKIP,
    "need_reformulate": SKIP,
    "task_success": "COMPLETE",
}
# PyAutoGUI's, of Qwen's `computer_use` and `mobile_use`, of UI-TARS, and plain words. `CLICK('Save')` names no place.
_NAMED = {
    **_POINTED,
    "left_click": "CLICK",
    "left_single": "CLICK",
    "tap": "CLICK",
    "left_double": "DOUBLE_CLICK",
    "right_single": "RIGHT_CLICK",
    "long_press": "LONG_PRESS",
    "mouse_move": "MOVE",
    "hover": "MOVE",
}
_TYPE = {"action": "TEXT", "text": "$text|$content|$value|$message|$1"}
_MESSAGES: Mapping[str, Row] = {
    **{n: {"action": k, "point": "($point)", "target": "($target|$element|$1)"} for n, k in _NAMED.items()},
    **dict.fromkeys(("dragTo", "left_click_drag", "drag", "swipe"), _DRAG),
    **dict.fromkeys(("scroll", "hscroll"), _SCROLL),
    "zoom": {"action": "ZOOM", "direction": "($direction)", "target": "($target|$element|$1)"},
    "segment": {"action": "SEGMENT", "target": "($target|$element|$1)"},
    **dict.fromkeys(("type", "write", "typewrite", "input_text", "text"), _TYPE),
    **dict.fromkeys(("press", "hotkey"), _KEYS),
    "key": {"action": "KEY", "keys": "$keys|$key|$text|$1"},
    "system_button": {"action": "KEY", "keys": "$button"},
    "wait": "WAIT",
    "screenshot": SKIP,
    **dict.fromkeys(("terminate", "complete", "finished", "finish", "done"), "COMPLETE"),
}
DEFAULT_MAPS: Mapping[str, Mapping[str, Row]] = {
    "messages": _MESSAGES,
    "agentnet": _AGENTNET,
    "screenagent": _SCREENAGENT,
}
_REFERENCE = re.compile(r"\$\w+(?:\|\$\w+)*")
_WAY_OUT = "add a row for it with --action_map"


@dataclass(frozen=True)
class ActionMap:
    """The table of a conversion: rows by name, and the actions that they may lead to."""

    rows: Mapping[str, Row]
    actions: Sequence[ActionType] = DEFAULT_ACTIONS
    _by_name: Mapping[str, Row] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {simplify_name(name): row for name, row in self.rows.items()})

    def map_step(
        self,
        foreign: ForeignAction,
        number: int,
        image: bytes | Path,
        coordinates: Coordinates,
        description: str = "",
        cursor: Point | None = None,
        remarks: list[str] | None = None,
    ) -> ConvertedStep | None:
        """Return a source's action as a step; None where the table leaves it out.

        `description` is what the source says about the step: the target, where it names no element. `cursor` is where
        the pointer was left. `remarks` gets what was left out or filled in.

        Raises:
            ValueError: the table has no such action, or the source lacks what the row needs.
        """
        row = self._by_name.get(simplify_name(foreign.name))
        if row is None:
            raise ValueError(f"found the action {foreign.name[:60]!r}, which the action map does not have; {_WAY_OUT}")
        if row == SKIP:
            return None
        if foreign.is_idle:
            if remarks is not None:
                remarks.append(f"left out {foreign.name} before step {number}, which does nothing")
            return None
        fields = {"target": "($target|$element)", **({"action": row} if isinstance(row, str) else row)}
        kind = find_action_type(str(fields["action"]), self.actions)
        if kind is None:
            names = ", ".join(a.name for a in self.actions)
            raise ValueError(
                f"the action map turns {foreign.name!r} into {fields['action']}; expected one of {names}: define it "
                "under actions: in the recipe, or map it otherwise with --action_map"
            )
        cursor = cursor if foreign.has_cursor or kind.name in _AT_POINTER else None
        at = foreign.point or cursor
        known: dict[str, Any] = {**foreign.arguments, "point": at, "end": foreign.end}
        values = {name: _resolve(value, known, foreign.name) for name, value in fields.items() if name != "action"}
        target = values.pop("target", None) or ("" if kind.is_final else description)
        # A place is one in the source's units, also where the row names the source's own argument: `$coordinate`.
        spots = {n: v for n, v in values.items() if n == POINT or f"{n}_x" in kind.arguments or isinstance(v, tuple)}
        places = {name: place for name, value in spots.items() if (place := read_place(value)[0]) is not None}
        written = {name: value for name, value in values.items() if value is not None and name not in spots}
        target = " ".join(str(target).split())[:MAX_TARGET_CHARS] if kind.takes_target else ""
        action, left_out = read_action({"action": kind.name, "target": target, **written}, [kind])
        if not target:
            left_out.pop("target", None)  # it gets its place as one, once the screenshot's size is known
        if left_out:
            raise ValueError(next(iter(left_out.values())))
        spot = at or foreign.end
        if not target and spot is None and (target := _AT_POINTER.get(kind.name, "")):
            action = replace(action, target=target)
            if remarks is not None:
                remarks.append(f"step {number}: the source says no place; the target is {target!r}")
        return ConvertedStep(
            number, action, image, bbox=foreign.box, places=places, spot=spot, coordinates=coordinates
        )


def load_action_map(kind: str, path: Path | None, actions: Sequence[ActionType]) -> ActionMap:
    """Return the table of a format, with the rows of the user's file in place of its own; null takes a row out.

    Raises:
        UserError: the file cannot be read, or a row is none.
    """
    rows = dict(DEFAULT_MAPS[kind])
    own = load_yaml(path, "an action map in YAML: python -m sft.convert action-map writes one") if path else {}
    names = {simplify_name(name): name for name in rows}
    for name, row in own.items():
        try:
            _check_row(name, row, actions)
        except ValueError as error:
            raise UserError(f"{path}: {name}: {error}") from error
        rows.pop(names.get(simplify_name(name), name), None)
        if row is not None:
            rows[name] = row
    return ActionMap(rows, actions)


def format_action_map(kind: str) -> str:
    """Return the table of a format as YAML."""
    head = f"# The action map of `python -m sft.convert {kind}`: sft/convert/action_map.py says what a row means.\n"
    rows = {name: row if isinstance(row, str) else dict(row) for name, row in DEFAULT_MAPS[kind].items()}
    return head + yaml.safe_dump(rows, sort_keys=False, default_flow_style=None, width=200)


def format_actions(actions: Sequence[ActionType]) -> str:
    """Return actions as the lines of a recipe: `actions:`, and `points: true` where one of them has a place."""
    lines = []
    for action in actions:
        arguments = {name: list(values) for name, values in action.arguments.items() if name != POINT}
        described = {**describe_action_type(action), "arguments": arguments}
        fields = {k: v for k, v in described.items() if v or k == "takes_target"}
        line = yaml.safe_dump(fields, sort_keys=False, default_flow_style=True, width=1_000)
        lines.append(f"  - {line}")
    points = "points: true\n" if any(POINT in action.arguments for action in actions) else ""
    return f"{points}actions:\n{''.join(lines)}"


def _check_row(name: Any, row: Any, actions: Sequence[ActionType]) -> None:
    if not isinstance(name, str):
        raise ValueError(f"found {name!r}; expected the name of an action in the source")
    if row is None or row == SKIP:
        return
    fields = {"action": row} if isinstance(row, str) else row
    if not isinstance(fields, Mapping) or not isinstance(fields.get("action"), str):
        raise ValueError(f"found {str(row)[:60]!r}; expected skip, the name of an action, or {{action: NAME, ...}}")
    kind = find_action_type(fields["action"], actions)
    if kind is None:
        names = ", ".join(a.name for a in actions)
        raise ValueError(
            f"found the action {fields['action']!r}; expected one of {names}, or one that --recipe defines"
        )
    for key, value in fields.items():
        if not isinstance(key, str) or not isinstance(value, (str, int, float)):
            raise ValueError(f"found {key!r}: {str(value)[:40]!r}; expected a constant or $name")
    known = {"action", "target", POINT, *(name.removesuffix("_x") for name in kind.arguments), *kind.arguments}
    if unknown := [key for key in fields if key not in known]:
        raise ValueError(f"found {', '.join(unknown)}; expected arguments of {kind.name}: {', '.join(sorted(known))}")


def _resolve(value: Any, known: Mapping[str, Any], name: str) -> Any:
    """Return what a row gives to an argument: a constant, or what the source has under a name."""
    text = value if isinstance(value, str) else ""
    is_optional = text.startswith("(") and text.endswith(")")
    text = text[1:-1] if is_optional else text
    if not _REFERENCE.fullmatch(text):
        return value
    wanted = [part.removeprefix("$") for part in text.split("|")]
    found = next((known[part] for part in wanted if known.get(part) not in (None, "")), None)
    if found is None and not is_optional:
        raise ValueError(f"found no {' or '.join(wanted)} in {name}(...); expected one")
    return found
