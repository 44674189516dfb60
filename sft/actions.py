"""Action grammar: which actions exist and what one may carry. Knows nothing of models, prompts or files."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

MAX_TARGET_CHARS = 2_000
MAX_NUMBER = 1e15
POINT = "point"  # the argument that is a place: [x, y], each 0..1000 of the screenshot's width or height

ArgumentValue = str | float | list[float]


@dataclass(frozen=True)
class ActionType:
    """One kind of action an agent can take.

    `arguments` maps an optional argument's name to the values it may take; an empty tuple allows any text or number.
    The argument `point` is a place on the screenshot: [x, y], each 0..1000.
    `is_final` marks the action that ends a task and may stand on its last step only; its target may be left out.
    `takes_target` false is for an action on no element (BACK, WAIT): its target is always "".
    """

    name: str
    description: str
    arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_final: bool = False
    takes_target: bool = True

    __pydantic_config__ = {"extra": "forbid"}  # a misspelt key of a recipe's `actions:` is refused, not ignored


DEFAULT_ACTIONS: tuple[ActionType, ...] = (
    ActionType("CLICK", "press the element"),
    ActionType("SCROLL", "scroll it", {"direction": ("up", "down", "left", "right")}),
    ActionType("ZOOM", "zoom it", {"direction": ("in", "out"), "scale": ()}),
    ActionType("TEXT", "type text into it", {"text": ()}),
    ActionType("SEGMENT", "draw a region or measurement with it"),
    ActionType("COMPLETE", "the goal is reached", is_final=True),
)


class UnknownActionError(ValueError):
    """An action that the vocabulary does not have."""


@dataclass(frozen=True)
class Action:
    """One action: `kind` is an `ActionType.name`, `target` the element's label.

    The target is "" only where the action is final or takes none, or where a model's answer names none.
    """

    kind: str
    target: str
    arguments: Mapping[str, ArgumentValue] = field(default_factory=dict)


def find_action_type(kind: str, actions: Sequence[ActionType]) -> ActionType | None:
    """Return the action type of that name, letter case ignored, or None."""
    return next((a for a in actions if a.name.upper() == kind.strip().upper()), None)


def give_point(action_type: ActionType) -> ActionType:
    """Return an action type whose answers carry a point, directly behind the target that it is the place of.

    One that takes no target has no place, and one that ends the task needs none: both are returned as they are.
    """
    if action_type.is_final or not action_type.takes_target:
        return action_type
    return replace(action_type, arguments={POINT: (), **action_type.arguments})


def carries_point(kind: str, actions: Sequence[ActionType]) -> bool:
    """Say whether answers with this action carry a point."""
    action_type = find_action_type(kind, actions)
    return action_type is not None and POINT in action_type.arguments


def to_pixels(point: Sequence[float], width: int, height: int) -> tuple[int, int]:
    """Return the pixel (x, y) of a screenshot of that size in which an action's point lies."""
    x, y = point
    return min(int(x * width / 1000), width - 1), min(int(y * height / 1000), height - 1)


def describe_action_type(action_type: ActionType) -> dict[str, Any]:
    """Return an action type as files hold it: `takes_target` stands there only where it is false."""
    fields = asdict(action_type)
    return fields if not action_type.takes_target else {k: v for k, v in fields.items() if k != "takes_target"}


def read_action_type(fields: Mapping[str, Any]) -> ActionType:
    """Read what `describe_action_type` wrote: JSON has no tuples.

    Raises:
        KeyError, TypeError, AttributeError: the fields are not an action type's.
    """
    return ActionType(**{**fields, "arguments": {name: tuple(values) for name, values in fields["arguments"].items()}})


def parse_action(fields: Mapping[str, Any], actions: Sequence[ActionType] | None = DEFAULT_ACTIONS) -> Action:
    """Read an action from a JSON object `{"action", "target", ...arguments}`.

    Arguments may also stand in an object of their own, `"arguments"`. Fields that the action type does not name are
    left out. `actions` None takes an action of any name, without its arguments.

    Raises:
        ValueError: the object names no known action, lacks its target, or an argument has a value it may not have.
    """
    try:
        action, left_out = read_action(fields, actions)
    except UnknownActionError as error:
        raise ValueError(f"{error}, or a recipe that defines it under actions:") from error
    if left_out:
        raise ValueError(next(iter(left_out.values())))
    return action


def read_action(fields: Mapping[str, Any], actions: Sequence[ActionType] | None) -> tuple[Action, dict[str, str]]:
    """Read what can be read of an action: its kind must be known, a target or argument that is no such is left out.

    Returns:
        The action, its target "" where none could be read, and what was left out: name -> why.

    Raises:
        ValueError: the object names no known action.
    """
    action_type = _find_named_type(fields.get("action"), actions)
    left_out: dict[str, str] = {}
    try:
        target = _parse_target(fields.get("target"), action_type)
    except ValueError as error:
        target, left_out["target"] = "", str(error)
    nested = fields.get("arguments")
    written = {**(nested if isinstance(nested, Mapping) else {}), **{k: v for k, v in fields.items() if v is not None}}
    arguments = {}
    for name, allowed in action_type.arguments.items():
        try:
            if written.get(name) is not None:
                arguments[name] = _parse_argument(name, written[name], allowed)
        except ValueError as error:
            left_out[name] = str(error)
    return Action(action_type.name, target, arguments), left_out


def format_action(action: Action) -> dict[str, ArgumentValue]:
    """Return the JSON object that `parse_action` reads, action first."""
    return {"action": action.kind, "target": action.target, **action.arguments}


def as_plain_text(text: str) -> str:
    """Return a text as prompts, answers and results hold it.

    Half characters (lone surrogates), which JSON can name but UTF-8 cannot hold, become "?". Accents are composed
    (NFC), as Qwen's tokenizers do. Control tokens such as `<|image_pad|>`, which data or a model's own memory may
    spell out, are broken up.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    return unicodedata.normalize("NFC", text).replace("<|", "< |")


def _find_named_type(kind: Any, actions: Sequence[ActionType] | None) -> ActionType:
    known = "a text" if actions is None else "one of " + ", ".join(a.name for a in actions)
    if not isinstance(kind, str) or not kind.strip():
        raise ValueError(f'found no action name (got {_brief(kind)}); expected "action" to be {known}')
    if actions is None:
        return ActionType(kind.strip().upper(), "", is_final=True)  # its target may be left out
    action_type = find_action_type(kind, actions)
    if action_type is None:
        raise UnknownActionError(f"found action {_brief(kind)}; expected {known}")
    return action_type


def _parse_target(target: Any, action_type: ActionType) -> str:
    if target is None:
        target = ""
    if not isinstance(target, str):
        raise ValueError(f"found target {_brief(target)}; expected text")
    if not action_type.takes_target:
        if target.strip():
            raise ValueError(f"found target {_brief(target)} for {action_type.name}, which takes none; expected none")
        return ""
    if not target.strip() and not action_type.is_final:
        raise ValueError(
            f"found no target for {action_type.name}; expected the label of the element, or takes_target: false for "
            "this action in the recipe"
        )
    if len(target) > MAX_TARGET_CHARS:
        raise ValueError(f"found a target of {len(target)} characters; expected at most {MAX_TARGET_CHARS}")
    return target.strip()


def _parse_argument(name: str, value: Any, allowed: tuple[str, ...]) -> ArgumentValue:
    if name == POINT:
        return _parse_point(value)
    if allowed:
        folded = value.strip().casefold() if isinstance(value, str) else None
        spelled = next((word for word in allowed if word.casefold() == folded), None)
        if spelled is None:
            raise ValueError(f"found {name} {_brief(value)}; expected one of {', '.join(allowed)}")
        return spelled
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and not abs(value) <= MAX_NUMBER:  # NaN is neither above nor below
        raise ValueError(f"found {name} {_brief(value)}; expected a number of at most {MAX_NUMBER:.0e}")
    if not is_number and not isinstance(value, str):
        raise ValueError(f"found {name} {_brief(value)}; expected text or a number")
    return value


def _parse_point(value: Any) -> list[float]:
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    if not is_pair or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1000 for v in value
    ):
        raise ValueError(f"found {POINT} {_brief(value)}; expected [x, y], each 0..1000")
    return list(value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
