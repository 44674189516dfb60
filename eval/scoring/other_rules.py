"""How does a score move with the rule? Other definitions of "right", scored on the same tasks and draws.

Two kinds. A *step* rule judges every step, as the two main matchers do. A *part* rule judges one part of an action on
the steps whose gold has that part, whatever was answered: there an answer that lacks the part or cannot be read is
wrong, so that nothing leaves the denominator. It does not ask whether the action type is right.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

from eval.scoring.bootstrap import Bootstrap, Rates
from eval.scoring.matching import HEADLINE, MATCHERS, Verdict, Verdicts, normalize_target, normalize_text
from eval.scoring.matching import is_same_action_and_target as is_same_step
from eval.step_result import StepResult
from sft.actions import POINT, Action
from sft.errors import UserError
from sft.json_text import parse_json

FUZZY_RATIO, TOKEN_F1, ANLS = 90, 0.5, 0.5
RADII = (0.14, 0.04)

Synonyms = Mapping[str, str]
_TextRule = Callable[[str, str], bool]
_ActionRule = Callable[[Action, Action], bool]
_PointRule = Callable[[StepResult, float, float], bool]


@dataclass(frozen=True)
class Rule:
    """One rule. `applies(verdict)` looks at the gold alone; `is_right(verdict, answer)` is asked where it applies.

    It is asked again with each answer that is right too in the place of the verdict's `wanted`.
    """

    name: str
    version: str
    kind: str
    description: str
    threshold: float | None
    applies: Callable[[Verdict], bool]
    is_right: Callable[[Verdict, Action], bool]


def build_rules(synonyms: Synonyms | None = None) -> list[Rule]:
    """Return every rule. `synonyms` maps a normalised label to the one it stands for (`load_synonyms`)."""

    def main(name: str) -> Rule:
        version, text = MATCHERS[name].version, MATCHERS[name].description
        return Rule(name, version, "step", text, None, lambda _: True, lambda verdict, _: verdict.is_right(name))

    def step(name: str, description: str, is_right: _ActionRule, least: float | None = None) -> Rule:
        return Rule(name, "1", "step", description, least, lambda _: True, lambda v, p: is_right(v.wanted, p))

    def part(name: str, field: str, description: str, is_right: _TextRule, least: float | None = None) -> Rule:
        return Rule(
            name,
            "1",
            "part",
            description,
            least,
            lambda v: v.wanted.arguments.get(field) is not None,
            lambda v, p: _is_part_right(v.wanted, p, field, is_right),
        )

    def point(name: str, description: str, is_right: _PointRule, radius: float | None = None) -> Rule:
        return Rule(
            name,
            "1",
            "part",
            description,
            radius,
            _is_place_known,
            lambda v, p: POINT in p.arguments and is_right(v.step, *_normalize_point(p)),
        )

    rules = [
        main("action"),
        step("action_target_fuzzy", "As action_target, the targets similar: rapidfuzz ratio.", _is_fuzzy, FUZZY_RATIO),
        main("action_target"),
        step("action_target_exact", "As action_target, the targets the same characters.", _is_exact),
        part("text_exact", "text", "The typed text is the same after normalisation.", _is_same_text),
        part("text_token_f1", "text", "Token F1 of the typed text above the threshold.", _has_token_f1, TOKEN_F1),
        part("text_anls", "text", "Normalised Levenshtein similarity at or above the threshold.", _has_anls, ANLS),
        part("direction", "direction", "The direction of scrolling or zooming is the same.", _is_same_text),
        point("point_in_box", "The predicted point lies in the gold box.", _is_in_box),
    ]
    for radius in RADII:
        name = f"point_{radius:g}"
        text = "The predicted point is in the gold box, or this near its centre (share of the screen)."
        rules.append(point(name, text, partial(_is_near, radius), radius))
    if synonyms:
        text = "As action_target, after labels of the given table are replaced by what they stand for."
        same = step("action_target_synonyms", text, lambda gold, pred: _is_synonym(gold, pred, synonyms))
        rules.insert(2, same)
    return rules


def score_rules(tasks: Verdicts, rules: Sequence[Rule], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Score every rule on the same tasks and draws.

    `rate` is right steps over the `n` steps the rule applies to, and `ta` tasks right in all of those, both None where
    it applies to none; `over_action` is the paired difference to the published definition, for step rules only.
    """
    columns: dict[str, list[float]] = {}
    for rule in rules:
        judged = [[_is_right(verdict, rule) for verdict in task if rule.applies(verdict)] for task in tasks.values()]
        columns[f"{rule.name}.right"] = [sum(task) for task in judged]
        columns[f"{rule.name}.n"] = [len(task) for task in judged]
        columns[f"{rule.name}.tasks_right"] = [int(bool(task) and all(task)) for task in judged]
        columns[f"{rule.name}.tasks"] = [int(bool(task)) for task in judged]
    rates = Rates(columns, bootstrap)
    return [
        {
            "name": rule.name,
            "version": rule.version,
            "kind": rule.kind,
            "description": rule.description,
            "threshold": rule.threshold,
            "n": int(sum(columns[f"{rule.name}.n"])),
            "n_right": int(sum(columns[f"{rule.name}.right"])),
            "rate": rates.compute(f"{rule.name}.right", f"{rule.name}.n"),
            "ta": rates.compute_share(f"{rule.name}.tasks_right", f"{rule.name}.tasks"),
            "over_action": rates.compute(f"{rule.name}.right", f"{rule.name}.n", minus=f"{HEADLINE}.right")
            if rule.kind == "step"
            else None,
        }
        for rule in rules
    ]


def lands_in_box(verdict: Verdict) -> bool | None:
    """Say whether the predicted point is in the gold box; None where there is no point, or no box to judge it by."""
    predicted = verdict.answer
    if predicted is None or POINT not in predicted.arguments or not _is_place_known(verdict):
        return None
    return _is_in_box(verdict.step, *_normalize_point(predicted))


def load_synonyms(path: Path) -> dict[str, str]:
    """Read a table of labels that mean the same: a JSON object, label -> list of labels.

    Returns:
        Each normalised label of a row to the row's own.

    Raises:
        UserError: the file is no such object, or a label is in two rows.
    """
    try:
        table = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: found no readable JSON ({error}); expected label -> list of labels") from error
    if not isinstance(table, dict) or not all(isinstance(row, list) for row in table.values()):
        raise UserError(f"{path}: found no table of lists; expected label -> list of labels")
    synonyms: dict[str, str] = {}
    for label, row in table.items():
        for written in {normalize_target(str(text)) for text in (label, *row)}:
            if written in synonyms:
                raise UserError(f"{path}: found {written!r} in two rows; expected each label once")
            synonyms[written] = normalize_target(label)
    return synonyms


def _is_place_known(verdict: Verdict) -> bool:
    """Say whether a point is judged: the gold action carries one, and its box is the only place that is right."""
    step = verdict.step
    return verdict.takes_point and step.bbox is not None and step.screen is not None and not verdict.also_wanted


def _is_right(verdict: Verdict, rule: Rule) -> bool:
    predicted = verdict.answer
    if predicted is None:
        return False
    return rule.is_right(verdict, predicted) or any(
        rule.is_right(replace(verdict, wanted=wanted), predicted) for wanted in verdict.also_wanted
    )


def _is_part_right(gold: Action, predicted: Action, field: str, is_right: _TextRule) -> bool:
    """Judge one part; where an answer that is right too has no such part, it has to be that answer."""
    if gold.arguments.get(field) is None:
        return is_same_step(gold, predicted)
    return field in predicted.arguments and is_right(str(gold.arguments[field]), str(predicted.arguments[field]))


def _is_exact(gold: Action, predicted: Action) -> bool:
    needs_no_target = not normalize_target(gold.target)
    return is_same_step(gold, predicted) and (predicted.target == gold.target or needs_no_target)


def _is_fuzzy(gold: Action, predicted: Action) -> bool:
    is_near = fuzz.ratio(normalize_target(gold.target), normalize_target(predicted.target)) >= FUZZY_RATIO
    return is_same_step(gold, replace(predicted, target=gold.target) if is_near else predicted)


def _is_synonym(gold: Action, predicted: Action, synonyms: Synonyms) -> bool:
    def replace_label(action: Action) -> Action:
        label = normalize_target(action.target)
        return replace(action, target=synonyms.get(label, label))

    return is_same_step(replace_label(gold), replace_label(predicted))


def _is_same_text(gold: str, predicted: str) -> bool:
    return normalize_text(gold) == normalize_text(predicted)


def _has_token_f1(gold: str, predicted: str) -> bool:
    """Say whether the F1 of the texts' words, counted with repetition, is above the threshold (SQuAD's definition)."""
    wanted, found = (Counter(normalize_text(text).split()) for text in (gold, predicted))
    n_shared = (wanted & found).total()
    n_all = wanted.total() + found.total()
    return n_all == 0 or 2 * n_shared / n_all > TOKEN_F1


def _has_anls(gold: str, predicted: str) -> bool:
    return Levenshtein.normalized_similarity(normalize_text(gold), normalize_text(predicted)) >= ANLS


def _is_in_box(step: StepResult, x: float, y: float) -> bool:
    x1, y1, x2, y2 = _normalize_box(step)
    return x1 <= x <= x2 and y1 <= y <= y2


def _is_near(radius: float, step: StepResult, x: float, y: float) -> bool:
    x1, y1, x2, y2 = _normalize_box(step)
    distance = ((x - (x1 + x2) / 2) ** 2 + (y - (y1 + y2) / 2) ** 2) ** 0.5
    return distance <= radius or _is_in_box(step, x, y)


def _normalize_point(predicted: Action) -> tuple[float, float]:
    x, y = cast(list[float], predicted.arguments[POINT])
    return x / 1000, y / 1000


def _normalize_box(step: StepResult) -> tuple[float, float, float, float]:
    assert step.bbox is not None and step.screen is not None
    width, height = step.screen
    x1, y1, x2, y2 = step.bbox
    return x1 / width, y1 / height, x2 / width, y2 / height
