"""Named matchers: is a predicted action right? Pure functions on action objects; knows no files or statistics."""

import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from eval.step_result import NOT_RUN, StepResult
from sft.actions import DEFAULT_ACTIONS, find_action_type

Outcome = Literal["right", "wrong", "unparsable", "truncated", "error", "not_run"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_JUDGED_APART = ("action", "target", "point")
# What may stand around a label without being part of it. Signs (+ - < > * # %) stay: on a button they are the label.
_SURROUNDINGS = " \"'`´‘’‚“”„«»‹›()[]{}.,;:!?…。、，：；！？「」『』（）【】"


@dataclass(frozen=True)
class Matcher:
    """One definition of "right". A change to what `is_right` accepts raises `version`, so that scores name their rule.

    `is_right(gold, predicted)` takes two compact action objects (`{"action", "target", ...arguments}`).
    """

    name: str
    version: str
    description: str
    is_right: Callable[[Mapping[str, Any], Mapping[str, Any]], bool]


def is_same_action(gold: Mapping[str, Any], predicted: Mapping[str, Any]) -> bool:
    """Say whether both name the same action type."""
    return bool(gold["action"] == predicted["action"])


def is_same_action_and_target(gold: Mapping[str, Any], predicted: Mapping[str, Any]) -> bool:
    """Say whether action type, normalised target and every argument that the gold action has are the same.

    An argument that only the prediction has is ignored: the data does not say whether it is wrong. A `point` is judged
    by rules of its own (`eval/scoring/match_rules.py`): no two people click the same pixel.
    """
    if not is_same_action(gold, predicted):
        return False
    if not is_same_target(gold, predicted):
        return False
    arguments = {name: value for name, value in gold.items() if name not in _JUDGED_APART and value is not None}
    return all(_is_same_argument(value, predicted.get(name)) for name, value in arguments.items())


def is_same_target(gold: Mapping[str, Any], predicted: Mapping[str, Any]) -> bool:
    """Say whether the normalised targets are equal; a final action and a gold action without target need none."""
    action_type = find_action_type(gold["action"], DEFAULT_ACTIONS)
    expected = normalize_target(gold.get("target") or "")
    if not expected or (action_type is not None and action_type.is_final):
        return True
    return normalize_target(predicted.get("target") or "") == expected


@lru_cache(maxsize=65_536)
def normalize_target(text: str) -> str:
    """Return a label without what does not distinguish elements: form (NFKC), letter case, white space, surroundings.

    A label made of surroundings only (`...`, `?`) is kept as it is.
    """
    folded = normalize_text(text)
    return folded.strip(_SURROUNDINGS) or folded


def normalize_text(text: str) -> str:
    """Return a text in NFKC, without letter case, white space collapsed; its punctuation is content and stays."""
    # NFKC once more after folding: casefold can leave its result unnormalised (Unicode, definition D146).
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def judge_step(result: StepResult, matcher: Matcher) -> Outcome:
    """Return the one outcome of a step under a matcher: every step has exactly one, whatever went wrong."""
    if result.parse_status == NOT_RUN:
        return "not_run"
    if result.error is not None:
        return "error"
    if result.parse_status == "truncated":
        return "truncated"
    if result.predicted is None:
        return "unparsable"
    return "right" if matcher.is_right(result.gold, result.predicted) else "wrong"


def _is_same_argument(gold: Any, predicted: Any) -> bool:
    if predicted is None:
        return False
    if isinstance(gold, (int, float)):
        try:
            return math.isclose(float(gold), float(predicted), rel_tol=1e-9)
        except (ValueError, OverflowError):
            return False
    written = f"{predicted:.12g}" if isinstance(predicted, float) else str(predicted)
    return normalize_text(str(gold)) == normalize_text(written)


HEADLINE = "action"

MATCHERS: dict[str, Matcher] = {
    matcher.name: matcher
    for matcher in (
        Matcher("action", "1", "The action type is the same (the published definition).", is_same_action),
        Matcher(
            "action_target",
            "1",
            "The action type, the normalised target and every argument of the gold action (text, direction, scale) "
            "are the same; COMPLETE needs no target.",
            is_same_action_and_target,
        ),
    )
}
