"""Per-field loss weights: which weight each token of an answer has. Knows nothing of models or batches."""

import json
from collections.abc import Mapping, Sequence
from typing import Literal

Field = Literal["action", "target", "memory"]

_FIELD_OF_KEY: Mapping[str, Field] = {"action": "action", "short_term": "memory", "long_term": "memory"}
_DECODER = json.JSONDecoder()


def find_field_spans(answer: str) -> list[tuple[int, int, Field]]:
    """Return (start, end, field) in characters for each key and value of an answer as `format_answer` writes it.

    `target` and the action's arguments count as "target". Braces and commas between fields belong to none.
    """
    spans: list[tuple[int, int, Field]] = []
    at = 1  # behind the opening brace
    while at < len(answer) - 1:
        start = at
        key, at = _DECODER.raw_decode(answer, at)
        _, at = _DECODER.raw_decode(answer, at + 1)  # behind the colon
        spans.append((start, at, _FIELD_OF_KEY.get(key, "target")))
        at += 1  # behind the comma
    return spans


def weigh_tokens(answer: str, offsets: Sequence[tuple[int, int]], weights: Mapping[str, float]) -> list[float]:
    """Return one weight a token: that of the field its first character is in, 1.0 outside every field.

    `offsets` are the tokens' (start, end) characters in `answer`. A field without a weight has 1.0.
    """
    result = []
    spans = find_field_spans(answer)
    for start, _ in offsets:
        field = next((f for s, e, f in spans if s <= start < e), None)
        result.append(1.0 if field is None else float(weights.get(field, 1.0)))
    return result
