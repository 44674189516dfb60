"""Texts that a person should look at: hints of personal data, and characters that nobody sees. Refuses nothing."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sft.data.steps import Step
from sft.data.table import MEMORY_COLUMNS, Cells
from sft.json_text import dump_json

_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{2,63}")
_DICOM_NAME = re.compile(r"\b[^\W\d_][\w'-]{1,40}\^[^\W\d_][\w'-]{0,40}")
# Neither control nor formatting characters, and still drawn as nothing: joiners, fillers, variation selectors
BLANKS = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\U000e0000-\U000e0fff"
_CONTROLS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_HIDDEN = re.compile(f"[{_CONTROLS}{BLANKS}]")
_MAX_EXAMPLES = 5


def find_personal_data(steps: Sequence[Step], cells_of: Mapping[int, Cells]) -> list[dict[str, Any]]:
    """Return hints of personal data outside the targets: what kind, how often, and where first.

    What OCR read from a screenshot is text of its own in the data, and in prompts.
    """
    found: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for step in steps:
        cells = cells_of[step.row]
        texts = {
            "Instruction": cells["Instruction"] if step.index == 0 else "",
            "Output": dump_json([*step.gold.action.arguments.values(), step.gold.short_term, step.gold.long_term]),
            **{column: cells.get(column, "") for column in MEMORY_COLUMNS},
            "Also_Right": dump_json([list(action.arguments.values()) for action in step.also_right]),
            "Detected_Elements": "\n".join(str(element["name"]) for element in step.elements),
        }
        for column, text in texts.items():
            for kind, pattern in (("e-mail address", _EMAIL), ("DICOM-style name", _DICOM_NAME)):
                if "@" in text or "^" in text:
                    found[kind, column] += [(step.row, match) for match in pattern.findall(text)]
    return [
        {
            "kind": kind,
            "column": column,
            "n": len(hits),
            "n_distinct": len({text for _, text in hits}),
            "examples": [{"row": row, "text": text[:60]} for row, text in _first_distinct(hits)],
        }
        for (kind, column), hits in found.items()
        if hits
    ]


def find_hidden_characters(steps: Sequence[Step], cells_of: Mapping[int, Cells]) -> list[dict[str, Any]]:
    """Return rows whose id, goal, label or target holds what nobody sees: control, zero-width, text direction."""
    hits = []
    for step in steps:
        cells = cells_of[step.row]
        texts = {column: cells.get(column, "") for column in ("Task_id", "Instruction", "Application", "Group")}
        for column, text in {**texts, "Output": step.gold.action.target}.items():
            if column == "Output" or step.index == 0:
                hits += [
                    {"row": step.row, "column": column, "character": f"U+{ord(c):04X}"}
                    for c in sorted(set(_HIDDEN.findall(text)))
                ]
    return hits


def as_visible(text: str) -> str:
    """Write characters that nobody sees as \\u escapes, so that a file cannot steer the terminal that shows it."""
    return _HIDDEN.sub(lambda match: _escape(ord(match.group())), text)


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _first_distinct(hits: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    seen: dict[str, int] = {}
    for row, text in hits:
        seen.setdefault(text, row)
    return [(row, text) for text, row in seen.items()][:_MAX_EXAMPLES]
