"""A cell's text to the value it spells: JSON, or the same value as Python or numpy print it. Opens no file.

A table that pandas or `str()` wrote holds `{'a': None}` where JSON has `{"a": null}`, and numpy's `['a' 'b']`, which
Python would take for one text. Each is read where it can mean one thing only; the rest is refused by its name.
"""

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

from sft.json_text import MAX_JSON_DEPTH

_MISSING = ("", "null", "none", "nan", "<na>", "nat")
_NAMES = {
    **{"None": None, "null": None, "True": True, "true": True, "False": False, "false": False},
    **{name: float("nan") for name in ("nan", "NaN", "NaT", "<NA>")},
    **{"inf": float("inf"), "-inf": float("-inf")},
}
_NUMPY = re.compile(r"(?:np|numpy)\.")
_ARRAYS = ("array", "list", "tuple")
_SCALARS = re.compile(r"(?:float|u?int|str|bool|longlong|ulonglong|longdouble)_?\d*")
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>[A-Za-z]{0,2}(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))
    | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<name>-?[A-Za-z_][\w.]*|<NA>)
    | (?P<mark>\.\.\.|[][(){},:=])
    | (?P<end>\Z))""",
    re.X | re.S,
)
_ODD_ESCAPE = re.compile(r"""(?<!\\)(?:\\\\)*\\[^\\'"abfnrtvxuUN0-7]""")
_PYTHON_START = re.compile(r"\s*[\[({]\s*(?:[\[({]\s*)*[A-Za-z]?'")
WAY_OUT = "write the cell with json.dumps"
_MAX_LEVELS = 100  # of JSON: far below where Python's own recursion ends


def is_missing(text: str) -> bool:
    """Return whether a cell is empty, or holds only how a missing value is written: null, None, NaN, NaT, <NA>."""
    return text.strip().lower() in _MISSING


def read_literal(text: str) -> Any:
    """Return the value that a text spells: text, number, True, False, None, a list or an object with texts as keys.

    Raises:
        ValueError: what was found; where Python or numpy wrote it, with the way out.
    """
    try:
        value = json.loads(text, object_pairs_hook=_refuse_doubled)
    except RecursionError as error:
        raise ValueError(f"found broken JSON ({error}); expected fewer levels") from error
    except ValueError as error:
        fault = error
    else:
        return _refuse_deep(value)
    try:
        return _Reader(text).read()
    except _SyntaxFault:
        way_out = f"JSON: {WAY_OUT}" if _PYTHON_START.match(text) else "valid JSON"
        raise ValueError(f"found broken JSON ({fault}) in {text.strip()[:60]!r}; expected {way_out}") from fault


def _refuse_deep(value: Any) -> Any:
    """Return a value that whoever walks through it can walk through whole."""
    level = [value]
    for _ in range(_MAX_LEVELS):
        nested = (item for item in level if isinstance(item, (dict, list)))
        level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return value
    raise ValueError(f"found more than {_MAX_LEVELS} levels of JSON; expected fewer")


class _SyntaxFault(Exception):
    """The text is no Python literal either: what JSON's reader said is told."""


def _refuse_doubled(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, but not one that names a key twice: JSON readers differ on which of the two counts."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"found the key {doubled[:40]!r} twice in one object; expected it once")
    return fields


@dataclass(frozen=True)
class _Token:
    kind: str  # text, number, name, mark or end
    text: str


class _Reader:
    """Reads one text as Python or numpy print a value; in time that grows with its length, to a bounded depth."""

    def __init__(self, text: str):
        self._text, self._position = text, 0
        self._next = self._scan()

    def read(self) -> Any:
        value = self._read_value(depth=0, is_numpy=True)
        if self._next.kind != "end":
            raise _SyntaxFault
        return value

    def _scan(self) -> _Token:
        match = _TOKEN.match(self._text, self._position)
        if match is None or match.lastgroup is None:
            raise _SyntaxFault
        self._position = match.end()
        return _Token(match.lastgroup, match[match.lastgroup])

    def _take(self) -> _Token:
        token, self._next = self._next, self._scan()
        return token

    def _take_mark(self, mark: str) -> bool:
        """Skip a mark where it comes next, and say whether it did."""
        is_next = self._next == _Token("mark", mark)
        if is_next:
            self._take()
        return is_next

    def _expect(self, mark: str) -> None:
        if not self._take_mark(mark):
            raise _SyntaxFault

    def _read_value(self, depth: int, is_numpy: bool) -> Any:
        """`is_numpy` says that a list here may be numpy's own print, its items separated by white space alone."""
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"found more than {MAX_JSON_DEPTH} levels of JSON; expected fewer")
        token = self._take()
        if token.kind == "text":
            return _read_text(token.text)
        if token.kind == "number":
            return _read_number(token.text)
        if token.kind == "name":
            return self._read_name(token.text, depth)
        if token.text == "[":
            return self._read_items("]", depth, is_numpy)
        if token.text == "(":
            return self._read_items(")", depth, is_numpy=False)
        if token.text == "{":
            return self._read_fields(depth)
        raise _SyntaxFault

    def _read_items(self, end: str, depth: int, is_numpy: bool) -> list[Any]:
        items: list[Any] = []
        has_commas = has_gaps = False
        while not self._take_mark(end):
            if self._take_mark("..."):
                raise ValueError(f"found a list that was shortened with '...'; expected all of it: {WAY_OUT}")
            items.append(self._read_value(depth + 1, is_numpy))
            if self._take_mark(","):
                has_commas = True
            elif self._next != _Token("mark", end):
                has_gaps = True
        if has_gaps and (has_commas or not is_numpy):
            raise ValueError(f"found a list with a comma missing between two items; expected JSON: {WAY_OUT}")
        if end == ")" and len(items) == 1 and not has_commas:
            raise _SyntaxFault  # parentheses around one value make no tuple
        return items

    def _read_fields(self, depth: int) -> dict[str, Any]:
        pairs: list[tuple[str, Any]] = []
        while not self._take_mark("}"):
            key = self._read_value(depth + 1, is_numpy=False)
            if self._next.kind == "mark" and self._next.text in ",}":
                raise ValueError(f"found a Python set, which has no order; expected a list: {WAY_OUT}")
            self._expect(":")
            if not isinstance(key, str):
                raise ValueError(f"found the key {str(key)[:40]}; expected text in quotes: {WAY_OUT}")
            pairs.append((key, self._read_value(depth + 1, is_numpy=False)))
            if not self._take_mark(",") and self._next != _Token("mark", "}"):
                raise _SyntaxFault
        return _refuse_doubled(pairs)

    def _read_name(self, name: str, depth: int) -> Any:
        bare = _NUMPY.sub("", name)
        if self._next != _Token("mark", "("):
            plain = bare.rstrip("_") if bare != name else bare  # np.True_
            if plain in _NAMES:
                return _NAMES[plain]
            raise _SyntaxFault
        self._take()
        is_array, is_scalar = bare in _ARRAYS, bare != name and _SCALARS.fullmatch(bare) is not None
        if not is_array and not is_scalar:
            raise ValueError(f"found Python's {name[:40]}(...), which JSON has no word for; expected JSON: {WAY_OUT}")
        value = self._read_value(depth + 1, is_numpy=False)
        while self._take_mark(","):  # dtype=object
            if self._take().kind != "name" or not self._take_mark("="):
                raise _SyntaxFault
            if self._next.kind == "name":
                self._take()
            else:
                self._read_value(depth + 1, is_numpy=False)
        self._expect(")")
        if is_array != isinstance(value, list):
            raise _SyntaxFault
        return value


def _read_text(token: str) -> str:
    if token[0] in "bB":
        raise ValueError(f"found Python's bytes {token[:40]}; expected JSON: {WAY_OUT}")
    if token[0] not in "uU'\"" or _ODD_ESCAPE.search(token):
        raise _SyntaxFault
    try:
        return str(ast.literal_eval(token))
    except (ValueError, SyntaxError) as error:
        raise _SyntaxFault from error


def _read_number(token: str) -> int | float:
    try:
        return int(token)
    except ValueError:
        return float(token)
