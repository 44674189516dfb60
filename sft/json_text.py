"""The first JSON object in a text that may hold anything else. Knows nothing of what the object means."""

import json
import re
from dataclasses import dataclass
from typing import Any

# NaN and infinity are read, so that whoever uses the object can leave out that one value; so are line breaks in texts.
_DECODER = json.JSONDecoder(strict=False)
_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_CUT_NUMBER = re.compile(r"\.|[eE][+-]?")
_CUT_ESCAPE = re.compile(r"[\\u]*[0-9a-fA-F]{0,4}")


@dataclass(frozen=True)
class FoundObject:
    """`fields` is None where the text holds no whole object: `problem` then says why, in words.

    `is_open` says that an object begins which the text's end cuts: more text could still complete it.
    """

    fields: dict[str, Any] | None
    problem: str = ""
    is_open: bool = False


def find_object(text: str) -> FoundObject:
    """Return the first JSON object of a text, whatever stands around it.

    Braces that begin no JSON (`{a,b}`) are passed over. An object that the text's end cuts ends the search: what is
    nested in it is not the answer. Hence more text never changes an object that was found.
    """
    problem, start = "", text.find("{")
    while start >= 0:
        try:
            return FoundObject(_DECODER.raw_decode(text, start)[0])
        except json.JSONDecodeError as error:
            problem = problem or f"broken JSON: {error.msg} (character {error.pos + 1})"
            if _is_cut(text, error):
                return FoundObject(None, problem, is_open=True)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, endless nesting
            return FoundObject(None, problem or f"broken JSON: {error}")
        start = text.find("{", start + 1)
    return FoundObject(None, problem or "no JSON object in the answer")


def _is_cut(text: str, error: json.JSONDecodeError) -> bool:
    """Say whether decoding failed because the text ended, not because of what stands in it."""
    rest = text[error.pos :]
    if not rest.strip() or error.msg.startswith("Unterminated string"):
        return True
    if error.msg.startswith("Invalid \\uXXXX"):
        return _CUT_ESCAPE.fullmatch(rest) is not None
    return any(word.startswith(rest) for word in _LITERALS) or _CUT_NUMBER.fullmatch(rest) is not None
