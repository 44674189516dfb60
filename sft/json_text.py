"""JSON as prompts and answers hold it, and the object a text gives as its answer. Knows nothing of what it means."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from sft.actions import as_plain_text

MAX_JSON_DEPTH = 16

# NaN and infinity are read, so that whoever uses the object can leave out that one value; so are line breaks in texts.
_DECODER = json.JSONDecoder(strict=False)

# Tags of many models: <think>, <antThinking>, <seed:think>, <inner_monologue>, <reasoning_steps>.
_THOUGHT = (
    r"[\w:.-]{0,30}(?:think|thought|reason|rationale|reflect|analysis|scratchpad|monologue)[\w:.-]{0,30}|cot|plan"
)
_OPENS = rf"<\s*(?:{_THOUGHT})(?:\s[^<>]*)?>|\[THINK\]|◁think▷|<\|(?:begin_of_thought|start_thinking)\|>"
_CLOSES = rf"</\s*(?:{_THOUGHT})\s*>|\[/THINK\]|◁/think▷|<\|(?:end_of_thought|end_thinking)\|>"
_CLOSING = re.compile(_CLOSES, re.IGNORECASE)
# In gpt-oss's markup a channel ends where a message does, so its end closes nothing that no channel opened.
_CHANNEL = r"<\|channel\|>\s*analysis\b[^<]*<\|message\|>"
_ENDS_CHANNEL = re.compile(r"<\|(?:end|return|start)\|>|(?=<\|channel\|>)")
_MARK = re.compile(
    rf"(?P<channel>{_CHANNEL})|(?P<opens>{_OPENS})|(?P<closes>{_CLOSES})|(?P<fence>```)|(?P<brace>\{{)", re.IGNORECASE
)

_BEGINS_ANSWER = re.compile(r"\s*(?:```\w*\s*|<tool_call>\s*)?[\[{]")
_CALLS_EXAMPLE = re.compile(r"\b(?:examples?|for instance|schema|format (?:is|was))\b|\be\.g\.", re.IGNORECASE)

# An object has one of these before an object nested in it; a brace that has not (`{{`, `the set {a b`) begins none.
_BEFORE_NESTED = re.compile(r"""[:=,\[\\"']""")
_BRACE_OR_QUOTE = re.compile(r"""[{}"']""")
_QUOTE_IN_STRING = {quote: re.compile(rf"\\.|{quote}", re.DOTALL) for quote in "\"'"}
_ENDS_STRING = re.compile(r"""\s*(?:[,:}\]{\["'\d-]|\Z)""")


@dataclass(frozen=True)
class FoundObject:
    """`fields` is None where the text gives no whole object: `problem` then says why, in words.

    `end` is the position behind the object that was found.
    """

    fields: dict[str, Any] | None
    problem: str = ""
    end: int = 0


def find_object(text: str, is_whole: bool = True) -> FoundObject:
    """Return the first JSON object of a text that is no part of anything else.

    Passed over are thoughts (`<think>...</think>`, a channel of analysis) with all they hold, and an object that is no
    JSON with all that is nested in it; `problem` then is the outer one's. A thought or an object that the text's end
    cuts ends the search.

    In a whole text, a tag that closes a thought which no tag opened makes all before it a thought: the prompt opened
    it. A fenced block that the text before it calls an example is the answer only where no other object follows.
    With `is_whole` false more text never changes an object that was found.
    """
    found: FoundObject | None = None
    example: FoundObject | None = None
    problem, at, said_from, fenced_from, has_thought, is_open = "", 0, 0, -1, False, False
    while not is_open and (mark := _MARK.search(text, at)):
        at = mark.end()
        if mark["fence"]:
            fenced_from = mark.start() if fenced_from < 0 else -1
        elif mark["opens"] or mark["channel"]:
            closing = (_CLOSING if mark["opens"] else _ENDS_CHANNEL).search(text, at)
            problem = problem if closing else problem or f"the thought {mark[0]} does not end"
            is_open, has_thought, at = closing is None, True, closing.end() if closing else at
            said_from = at
        elif mark["closes"]:
            if is_whole and not has_thought:
                found, example, problem, has_thought, said_from, fenced_from = None, None, "", True, at, -1
        elif (whole := _decode(text, mark.start())).fields is not None:
            at = whole.end
            if fenced_from >= said_from and _is_called_example(text[said_from:fenced_from]):
                example = example or whole
            else:
                found = found or whole
            if found and (has_thought or not is_whole):
                break  # nothing that follows changes it
        else:
            problem = problem or whole.problem
            nested_at = text.find("{", at)
            if nested_at >= 0 and not _BEFORE_NESTED.search(text, at, nested_at):
                continue
            end = _find_end(text, mark.start())
            closing = None if has_thought or not is_whole else _CLOSING.search(text, at, end or len(text))
            if closing and _BEGINS_ANSWER.match(text, closing.end()):
                at = closing.start()  # what is broken is a part of a thought that the prompt opened
            else:
                is_open, at = end is None, end or at
    answer = found or (example if is_whole and not is_open else None)
    return answer or FoundObject(None, problem or "no JSON object in the answer")


def find_open_thought(prompt: str) -> str | None:
    """Return the tag by which the end of a prompt opens a thought that the answer would begin in, or None."""
    said = prompt.rstrip()
    marks = list(_MARK.finditer(said))
    return marks[-1]["opens"] if marks and marks[-1].end() == len(said) else None


def dump_json(value: Any) -> str:
    """Write JSON on one line without spaces, the only form in which prompts and answers hold it.

    Half characters (lone surrogates), which JSON can name but UTF-8 cannot hold, become "?".
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of a file that somebody else may have written.

    Raises:
        ValueError: no JSON, no text, or more levels than Python can go down.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"more levels than can be read: {error}") from error


def clean_json(value: Any, depth: int = 0) -> Any:
    """Return a JSON value whose texts are plain (`as_plain_text`), so that prompt, result and gold hold the same.

    Raises:
        ValueError: a number that JSON lacks (NaN, 1e999), or more than `MAX_JSON_DEPTH` levels.
    """
    if isinstance(value, str):
        return as_plain_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"found the number {value}; expected a finite one, or null")
    if not isinstance(value, (dict, list)):
        return value
    if depth == MAX_JSON_DEPTH:
        raise ValueError(f"found more than {MAX_JSON_DEPTH} levels of JSON; expected fewer")
    if isinstance(value, list):
        return [clean_json(item, depth + 1) for item in value]
    return {as_plain_text(key): clean_json(item, depth + 1) for key, item in value.items()}


def _is_called_example(before: str) -> bool:
    """Say whether the line before a fenced block calls it an example."""
    return _CALLS_EXAMPLE.search(before.rstrip().rpartition("\n")[2]) is not None


def _decode(text: str, start: int) -> FoundObject:
    """Read the JSON object that begins at `start`."""
    try:
        fields, end = _DECODER.raw_decode(text, start)
        return FoundObject(fields, end=end)
    except json.JSONDecodeError as error:
        return FoundObject(None, f"broken JSON: {error.msg} (character {error.pos + 1})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, endless nesting
        return FoundObject(None, f"broken JSON: {error}")


def _find_end(text: str, start: int) -> int | None:
    """Return the position behind the brace that closes an object which is no JSON, or None where the text ends first.

    Where strings begin and end cannot be known in what is no JSON: braces are counted without those in strings, and
    with them, and the later end is taken.
    """
    ends = [_count_braces(text, start, has_strings) for has_strings in (True, False)]
    return None if None in ends else max(end for end in ends if end is not None)


def _count_braces(text: str, start: int, has_strings: bool) -> int | None:
    """Return the position behind the brace that closes the one at `start`, or None where the text ends first.

    A string, in either kind of quotes, begins where a key or value may and ends where one may, so that a quote which
    should have been escaped ends none.
    """
    depth, at = 0, start
    while mark := _BRACE_OR_QUOTE.search(text, at):
        at = mark.end()
        if mark[0] in "{}":
            depth += 1 if mark[0] == "{" else -1
            if depth == 0:
                return at
        elif has_strings and _read_before(text, mark.start()) in "{[,:":
            ends = (quote.end() for quote in _QUOTE_IN_STRING[mark[0]].finditer(text, at) if quote[0] == mark[0])
            end = next((end for end in ends if _ENDS_STRING.match(text, end)), None)
            if end is None:
                return None
            at = end
    return None


def _read_before(text: str, position: int) -> str:
    """Return the last character before a position that is no white space."""
    position -= 1
    while text[position].isspace():
        position -= 1
    return text[position]
