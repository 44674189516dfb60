"""Which actions does a text of another agent name? Calls (`pyautogui.click(x=1, y=2)`) and JSON objects, read alike.

Calls are those of PyAutoGUI and of AgentNet's `computer.*`, of UI-TARS (`click(start_box='(1,2)')`) and plain ones
(`CLICK(1, 2)`, `CLICK('Save')`). Objects are tool calls as Qwen's agents write them (`computer_use`, `mobile_use`), of
the OpenAI protocol, `{"action_type": ...}` and ScreenAgent's. Nothing is run: a call is parsed, and its arguments have
to be literals.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sft.actions import MAX_NUMBER
from sft.convert.converted import Point
from sft.data.cells import Box
from sft.data.literals import read_literal
from sft.json_text import find_object

MAX_ANSWER_CHARS = 20_000
MAX_PRESSES = 100

# Arguments that are given without names, by PyAutoGUI's signatures
_SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "click": ("x", "y", "clicks", "interval", "button"),
    **dict.fromkeys(("doubleclick", "tripleclick"), ("x", "y", "interval", "button")),
    **dict.fromkeys(("leftclick", "rightclick", "middleclick"), ("x", "y", "interval")),
    "moveto": ("x", "y", "duration"),
    "dragto": ("x", "y", "duration", "tween", "button"),
    **dict.fromkeys(("scroll", "vscroll", "hscroll"), ("clicks", "x", "y")),
    **dict.fromkeys(("write", "typewrite"), ("message", "interval")),
    "press": ("keys", "presses"),
    "terminate": ("status",),
}
_MODULES = ("pyautogui", "computer")
_PLACES = ("coordinate", "point", "position", "mouse_position", "start_box", "start_coordinate", "start_point", "bbox")
_ENDS = ("coordinate2", "end_box", "end_coordinate", "end_point")
_ENDS_AT_PLACE = ("dragto", "leftclickdrag")  # what they name is where they end; they begin where the pointer is
_CLICKS = {1: "click", 2: "doubleClick", 3: "tripleClick"}
_BUTTONS: Mapping[str, str] = {
    **dict.fromkeys(("1", "left", "primary"), "left"),
    **dict.fromkeys(("2", "middle"), "middle"),
    **dict.fromkeys(("3", "right", "secondary"), "right"),
}
_TYPES = ("type", "write", "typewrite", "inputtext", "text")
# Actions that are one word, as OSWorld's agents write them; the others are calls
WORDS: Mapping[str, str] = {"WAIT": "wait", "DONE": "terminate", "FAIL": "terminate_failure"}
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.S)
_FENCE = re.compile(r"```(?:\w*\n)?(.*?)```", re.S)
_SAID = re.compile(r"^[#\s]*Action\s*:\s*(.*)", re.M | re.S | re.I)
_CODE_HEAD = re.compile(r"^[#\s]*Code\s*:", re.M | re.I)
_CALL = re.compile(r"[A-Za-z_][\w.]*\s*\(")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_NO_PLACE = re.compile(r"[^\s\d.,;()\[\]-]")  # words or units: their digits are no place


@dataclass(frozen=True)
class ForeignAction:
    """One action as its source names it; places are in the source's units.

    `has_cursor` says that it takes place where the pointer was left, unless it says where. `is_idle` says that it does
    nothing: a scroll by 0, an empty text.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    point: Point | None = None
    end: Point | None = None
    box: Box | None = None
    has_cursor: bool = False
    is_idle: bool = False


@dataclass(frozen=True)
class Turn:
    """What an agent says in one turn: its actions, or objects that may be answers of ours, and a sentence on them."""

    actions: Sequence[ForeignAction | Mapping[str, Any]]
    description: str = ""


def read_turn(text: str) -> Turn:
    """Read the actions of an agent's answer.

    Raises:
        ValueError: it names none, or one that cannot be read.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise ValueError(f"found an answer of {len(text)} characters; expected at most {MAX_ANSWER_CHARS}")
    said = _SAID.search(text)
    description = _CODE_HEAD.split(said[1])[0] if said else ""
    description = description.strip().partition("\n")[0]
    if _CALL.match(description) or description.startswith(("{", "<", "`")):
        description = ""
    if objects := list(_find_objects(text)):
        return Turn(objects, description)
    return Turn(list(read_calls(_find_code(text))), description)


def read_object(fields: Mapping[str, Any]) -> ForeignAction:
    """Read one action from an object.

    Raises:
        ValueError: it names none.
    """
    if isinstance(fields.get("action_type"), str) and fields["action_type"].endswith("Action"):
        return read_screenagent_action(fields)
    call = fields.get("function")
    call = call if isinstance(call, Mapping) else fields
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        arguments = read_literal(arguments)
    if isinstance(call.get("name"), str) and isinstance(arguments, Mapping):
        name = arguments.get("action", call["name"])
    else:
        arguments = fields
        name = fields.get("action", fields.get("action_type"))
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"found the keys {', '.join(map(str, fields))[:80]}; expected an action's name among them")
    rest = {str(k): v for k, v in arguments.items() if k not in ("action", "action_type")}
    return build_action(name, rest, has_cursor=call.get("name") == "computer_use")


def read_screenagent_action(fields: Mapping[str, Any]) -> ForeignAction:
    """Read an action as ScreenAgent's sessions hold it (its README.md and `client/action.py`).

    Raises:
        ValueError: it names no kind of action.
    """
    kind = str(fields.get("action_type"))
    if kind == "MouseAction":
        name, button = fields.get("mouse_action_type"), fields.get("mouse_button")
        if name in ("click", "double_click", "drag") and button in ("right", "middle"):
            name = f"{button}_{name}"
        point = read_place(fields.get("mouse_position"))[0]
        box = _read_area(fields.get("clickable_area"))
        if isinstance(name, str):
            is_drag = name.endswith("drag")
            return ForeignAction(name, fields, None if is_drag else point, point if is_drag else None, box, True)
    if kind == "KeyboardAction":
        name = fields.get("keyboard_action_type") or ("text" if fields.get("keyboard_text") is not None else "press")
        if isinstance(name, str):
            return ForeignAction({"input": "text"}.get(name, name), _join_keys(fields, "+"), has_cursor=True)
    simple = {"WaitAction": "wait", "PlanAction": "plan"}
    if kind in simple:
        return ForeignAction(simple[kind], fields)
    if kind == "EvaluateSubTaskAction" and isinstance(fields.get("situation"), str):
        return ForeignAction(fields["situation"], fields)
    raise ValueError(f"found {str(dict(fields))[:80]}; expected an action of ScreenAgent")


def read_calls(code: str) -> Iterator[ForeignAction]:
    """Read actions that are written as calls, one after the other; imports between them count for nothing.

    Raises:
        ValueError: the text is no such code.
    """
    if len(code) > MAX_ANSWER_CHARS:
        raise ValueError(f"found code of {len(code)} characters; expected at most {MAX_ANSWER_CHARS}")
    try:
        statements = ast.parse(code.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"found no action in {code.strip()[:60]!r}; expected JSON or calls: {_EXAMPLE}") from error
    if not statements:
        raise ValueError(f"found no action; expected JSON or calls: {_EXAMPLE}")
    lines = code.strip().splitlines()
    actions: list[ForeignAction] = []
    for statement in statements:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            continue
        call = statement.value if isinstance(statement, ast.Expr) else None
        action = _read_call(call) if isinstance(call, ast.Call) else None
        if isinstance(call, ast.Name) and call.id in WORDS:
            action = ForeignAction(WORDS[call.id])
        if action is None:
            shown = lines[statement.lineno - 1][:60]
            raise ValueError(f"found {shown!r}; expected a call with literal arguments: {_EXAMPLE}")
        actions.append(action)
    yield from _join_held_keys(actions)


_EXAMPLE = "pyautogui.click(x=0.5, y=0.5)"


def build_action(name: str, arguments: Mapping[str, Any], has_cursor: bool = False) -> ForeignAction:
    """Return an action whose places, keys and direction are read from its arguments, under whatever name they have.

    Raises:
        ValueError: a place that is none.
    """
    simple = simplify_name(name)
    known = _join_keys(arguments, " " if simple == "press" else "+")
    if simple == "hotkey":
        known |= {k: _join_keystroke(known[k]) for k in ("keys", "key") if isinstance(known.get(k), str)}
    name = _find_meant_name(name, simple, known)
    amount = next((known[k] for k in ("clicks", "pixels", "amount") if _is_number(known.get(k))), None)
    is_idle = "scroll" in simple and amount == 0 and not known.get("direction")
    is_idle |= simple in _TYPES and any(known.get(k) == "" for k in ("text", "content", "value", "message", "1"))
    if "scroll" in simple and amount and "direction" not in known:
        sideways = simple == "hscroll"
        known["direction"] = ("left", "right")[amount > 0] if sideways else ("down", "up")[amount > 0]
    if isinstance(known.get("direction"), str):
        known["direction"] = known["direction"].strip().lower()
    place = next((known[k] for k in _PLACES if known.get(k) not in (None, "", [])), None)
    if place is None and "x" in known and "y" in known:
        place = [known["x"], known["y"]]
    point, box = read_place(place)
    end = read_place(next((known[k] for k in _ENDS if known.get(k) not in (None, "", [])), None))[0]
    if simple in _ENDS_AT_PLACE and end is None:
        start = read_place(known.get("start_coordinate"))[0]
        at = read_place(known.get("coordinate"))[0] if start else point
        point, end, box = start, at, None
    return ForeignAction(name, known, point, end, box, has_cursor, is_idle)


def simplify_name(name: str) -> str:
    """Return an action's name as names are compared: letter case, `_`, `-` and spaces do not count."""
    return re.sub(r"[\s_-]", "", name).casefold()


def read_place(value: Any) -> tuple[Point | None, Box | None]:
    """Return a point, and the box whose middle it is where the value is one.

    It is [x, y], [x1, y1, x2, y2], one of them in a list of its own, `{"x", "y"}`, ScreenAgent's `{"width", "height"}`
    (from the upper left corner), or a text that holds the numbers: `(12,30)`, `<|box_start|>(12,30)<|box_end|>`.

    Raises:
        ValueError: it is something else.
    """
    if value in (None, "", []):
        return None, None
    numbers: Any = value
    if isinstance(value, str) and _NO_PLACE.search(text := re.sub(r"<[^<>]{0,40}>", " ", value)) is None:
        numbers = [float(n) for n in _NUMBER.findall(text)]
        numbers = [int(n) if n.is_integer() and "." not in value else n for n in numbers]
    elif isinstance(value, Mapping):
        keys = ("x", "y") if "x" in value else ("width", "height")
        numbers = [value.get(key) for key in keys]
    elif isinstance(value, (list, tuple)) and len(value) == 1:
        numbers = value[0]
    if isinstance(numbers, (list, tuple)) and all(map(_is_number, numbers)):
        if len(numbers) == 2:
            return (numbers[0], numbers[1]), None
        if len(numbers) == 4 and numbers[0] <= numbers[2] and numbers[1] <= numbers[3]:
            x1, y1, x2, y2 = numbers
            return ((x1 + x2) / 2, (y1 + y2) / 2), ((x1, y1, x2, y2) if x1 < x2 or y1 < y2 else None)
    raise ValueError(f"found the place {str(value)[:60]}; expected [x, y] or [x1, y1, x2, y2]")


def _find_objects(text: str) -> Iterator[ForeignAction | Mapping[str, Any]]:
    """Yield the objects of an answer that name an action: of each tool call, of a list, or the first one."""
    if calls := _TOOL_CALL.findall(text):
        for call in calls:
            found = find_object(call)
            if found.fields is None:
                raise ValueError(f"found a tool call that cannot be read: {found.problem}")
            yield found.fields
        return
    fenced = _FENCE.search(text)
    inner = (fenced[1] if fenced else text).strip()
    if inner.startswith("[") and isinstance(listed := _read_list(inner), list):
        yield from listed
        return
    found = find_object(text)
    if found.fields is not None and found.fields.keys() & {"action", "action_type", "name", "function"}:
        yield found.fields


def _read_list(text: str) -> list[Mapping[str, Any]] | None:
    try:
        value = read_literal(text)
    except ValueError:
        return None
    is_list = isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value)
    return value if is_list else None


def _find_code(text: str) -> str:
    """Return the part of an answer that is its calls: the fenced blocks, else what follows the last `Action:`.

    Of several blocks, those before the last may be no calls: an agent quotes in its thoughts.
    """
    if fenced := _FENCE.findall(text):
        return "\n".join([*(block.strip() for block in fenced[:-1] if _is_code(block)), fenced[-1].strip()])
    heads = list(re.finditer(r"(?:Action|Code)\s*:", text, re.I))
    return text[heads[-1].end() :] if heads else text


def _is_code(block: str) -> bool:
    try:
        return any(True for _ in read_calls(block))
    except ValueError:
        return False


def _read_call(call: ast.Call) -> ForeignAction | None:
    """Read one call; None where it is not of a plain name, or an argument is no literal."""
    module, function = "", call.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        module, name = function.value.id, function.attr
    elif isinstance(function, ast.Name):
        name = function.id
    else:
        return None
    try:
        values = [ast.literal_eval(value) for value in call.args]
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    arguments = {**_name_arguments(simplify_name(name), values), **{str(k): v for k, v in named.items()}}
    return build_action("wait" if name == "sleep" else name, arguments, module in _MODULES)


def _name_arguments(simple: str, values: Sequence[Any]) -> dict[str, Any]:
    """Return arguments without names under those that they have by PyAutoGUI's signatures, else by their position."""
    if simple == "hotkey" and values:
        return {"keys": values[0] if isinstance(values[0], (list, tuple)) else list(values)}
    names = _SIGNATURES.get(simple, ())
    starts_with_place = len(values) >= 2 and all(map(_is_number, values[:2]))
    if names[:1] == ("x",) and values and not starts_with_place:
        names = ()
    if not names and starts_with_place:
        names = ("x", "y")
        if len(values) == 4 and all(map(_is_number, values)):
            return {"point": values[:2], "end_point": values[2:]}
    if not names and values and isinstance(values[0], (list, tuple)):
        return {"point": values[0], "1": values[1] if len(values) > 1 else None}
    return {names[i] if i < len(names) else str(i + 1): value for i, value in enumerate(values)}


def _find_meant_name(name: str, simple: str, known: Mapping[str, Any]) -> str:
    """Return the name of what is done where an argument says it: a button, a number of clicks, a task that failed.

    What has no name of its own gets one that no table has until a user adds it: `right_doubleClick`, `click_4_times`.
    """
    if simple == "terminate" and str(known.get("status", "success")).lower() not in ("success", "succeeded"):
        return "terminate_failure"
    if "click" not in simple and simple not in (*_ENDS_AT_PLACE, "drag", "tap"):
        return name
    given = next((known[k] for k in ("button", "mouse_button", "button_type") if known.get(k) not in (None, "")), None)
    said = "" if given is None else str(given).strip().lower()
    button = _BUTTONS.get(said, said)
    n_clicks = next((known[k] for k in ("clicks", "num_clicks") if _is_number(known.get(k))), None)
    if simple in ("click", "leftclick", "tap") and n_clicks is not None:
        name = _CLICKS.get(n_clicks, f"{name}_{n_clicks}_times")
    if button in ("", "left") or simplify_name(name).startswith(button):
        return name
    return f"{button}Click" if simplify_name(name) == "click" else f"{button}_{name}"


def _join_keystroke(keys: str) -> str:
    """Return keys that are pressed together, which UI-TARS separates by blanks, as one keystroke: `ctrl+c`."""
    parts = keys.split()
    return "+".join(part for i, part in enumerate(parts) if part != "+" or i in (0, len(parts) - 1))


def _join_held_keys(actions: Sequence[ForeignAction]) -> Sequence[ForeignAction]:
    """Return `keyDown('ctrl')`, `press('c')`, `keyUp('ctrl')` as the one keystroke that they are, and others as given.

    Keys that are held while anything else is done have no action here.
    """
    names = [simplify_name(action.name) for action in actions]
    keys = [action.arguments.get("keys", action.arguments.get("key", action.arguments.get("1"))) for action in actions]
    n_down = next((i for i, name in enumerate(names) if name != "keydown"), len(names))
    n_up = next((i for i, name in enumerate(reversed(names)) if name != "keyup"), len(names))
    held, pressed, released = keys[:n_down], keys[n_down : len(keys) - n_up], keys[len(keys) - n_up :]
    is_keystroke = (
        0 < n_down == n_up
        and set(names[n_down : len(names) - n_up]) <= {"press"}
        and len(pressed) <= 1
        and all(isinstance(key, str) for key in keys)
        and sorted(map(str, held)) == sorted(map(str, released))
        and not any(" " in str(key).strip() for key in pressed)
    )
    if not is_keystroke:
        return actions
    return [ForeignAction("hotkey", {"keys": "+".join(map(str, [*held, *pressed]))}, has_cursor=True)]


def _join_keys(arguments: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """Return arguments with lists of keys as one text: `ctrl+c` where they are pressed together."""
    known = {str(name): value for name, value in arguments.items()}
    for name in ("keys", "key", "keyboard_key"):
        keys = known.get(name)
        if isinstance(keys, (list, tuple)) and keys and all(isinstance(key, str) for key in keys):
            known[name] = mark.join(keys)
    presses = known.get("presses")
    if isinstance(presses, int) and 1 < presses <= MAX_PRESSES and isinstance(known.get("keys"), str):
        known["keys"] = " ".join([known["keys"]] * presses)
    return known


def _read_area(area: Any) -> Box | None:
    if not isinstance(area, Mapping):
        return None
    corners = [read_place(area.get(name))[0] for name in ("upper_left_position", "lower_right_position")]
    if corners[0] is None or corners[1] is None:
        return None
    return read_place([*corners[0], *corners[1]])[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
