"""When is a step right? Named matchers, and `judge`, which asks them once; everything else reads its verdicts."""

import math
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

from eval.step_result import NOT_RUN, StepResult
from sft.actions import POINT, Action, ActionType, carries_point, find_action_type
from sft.data.load import natural_key
from sft.errors import UserError

Outcome = Literal["right", "wrong", "unparsable", "truncated", "error", "not_run"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
HEADLINE = "action"

# What may stand around a label without being part of it. Signs (+ - < > * # %) stay: on a button they are the label.
_SURROUNDINGS = " \"'`´‘’‚“”„«»‹›()[]{}.,;:!?…。、，：；！？「」『』（）【】"


@dataclass(frozen=True)
class Matcher:
    """One definition of "right". A change to what `is_right` accepts raises `version`, so that scores name their rule.

    `is_right(gold, predicted)` is given the gold action as `Verdict.wanted` has it.
    """

    name: str
    version: str
    description: str
    is_right: Callable[[Action, Action], bool]


@dataclass(frozen=True)
class Verdict:
    """One step of a run, judged; `outcomes` has its one outcome under each matcher.

    `wanted` is the gold action as it is matched: without its target where it is final, which needs none. `also_wanted`
    are the answers that are right too; `right_by_other` names the matchers under which only one of these makes the
    step right. `takes_point` says whether an action of the gold one's type may carry a point. `teacher_outcomes` are
    those of the same step where it was shown the recorded memory, in mode teacher; None where that is not known.
    """

    step: StepResult
    wanted: Action
    takes_point: bool
    outcomes: Mapping[str, Outcome]
    also_wanted: tuple[Action, ...] = ()
    right_by_other: frozenset[str] = frozenset()
    teacher_outcomes: Mapping[str, Outcome] | None = None

    def is_right(self, matcher: str = HEADLINE) -> bool:
        return self.outcomes[matcher] == "right"

    @property
    def accepted(self) -> tuple[Action, ...]:
        """Every action that is right, the recorded one first."""
        return (self.wanted, *self.also_wanted)

    @property
    def answer(self) -> Action | None:
        """The predicted action, or None where the step is neither right nor wrong."""
        return self.step.predicted if self.outcomes[HEADLINE] in ("right", "wrong") else None


Verdicts = dict[str, list[Verdict]]  # by task


def judge(results: Iterable[StepResult], actions: Sequence[ActionType]) -> Verdicts:
    """Judge each step of a run: tasks in natural order (`t2` before `t10`), steps by index.

    `actions` is the agent's vocabulary; it says which actions are final.

    Raises:
        UserError: a step occurs twice, or a task lacks a step before its last one.
    """
    tasks: defaultdict[str, list[Verdict]] = defaultdict(list)
    for result in results:
        tasks[result.task_id].append(_judge_step(result, actions))
    for task_id, task in tasks.items():
        task.sort(key=lambda verdict: verdict.step.index)
        for expected, verdict in enumerate(task):
            if (index := verdict.step.index) != expected:
                fault = "twice" if index < expected else f"after {expected} of its steps"
                raise UserError(
                    f"task {task_id}: found step {index} {fault}; expected each of 0 to {task[-1].step.index} once"
                )
    return {task_id: tasks[task_id] for task_id in sorted(tasks, key=natural_key)}


def cut_at_first_error(verdicts: Verdicts) -> list[StepResult]:
    """Return the results of mode own_stop, a view of mode own: each task up to its first error, the rest not run."""
    results = []
    for task in verdicts.values():
        n_run = next((i + 1 for i, verdict in enumerate(task) if not verdict.is_right()), len(task))
        steps = [verdict.step for verdict in task]
        memory = steps[n_run - 1].memory_after
        results += [*steps[:n_run], *(step.as_not_run(memory) for step in steps[n_run:])]
    return results


def is_same_action(gold: Action, predicted: Action) -> bool:
    """Say whether both name the same action type."""
    return gold.kind == predicted.kind


def is_same_action_and_target(gold: Action, predicted: Action) -> bool:
    """Say whether action type, normalised target and every argument that the gold action has are the same.

    An argument that only the prediction has is ignored: the data does not say whether it is wrong. A `point` is judged
    by rules of its own (`eval/scoring/other_rules.py`): no two people click the same pixel.
    """
    return (
        is_same_action(gold, predicted)
        and is_same_target(gold, predicted)
        and all(
            _is_same_argument(value, predicted.arguments.get(name))
            for name, value in gold.arguments.items()
            if name != POINT and value is not None
        )
    )


def is_same_target(gold: Action, predicted: Action) -> bool:
    """Say whether the normalised targets are equal; a gold action without target needs none."""
    expected = normalize_target(gold.target)
    return not expected or normalize_target(predicted.target) == expected


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


def _judge_step(step: StepResult, actions: Sequence[ActionType]) -> Verdict:
    wanted, *also = (_drop_final_target(action, actions) for action in (step.gold, *step.also_right))
    outcomes = {name: _find_outcome(step, (wanted, *also), matcher) for name, matcher in MATCHERS.items()}
    by_other = {n for n, m in MATCHERS.items() if also and outcomes[n] != _find_outcome(step, [wanted], m)}
    takes_point = carries_point(step.gold.kind, actions)
    return Verdict(step, wanted, takes_point, outcomes, tuple(also), frozenset(by_other))


def _drop_final_target(action: Action, actions: Sequence[ActionType]) -> Action:
    """Return the action as it is matched: a final one needs no target."""
    action_type = find_action_type(action.kind, actions)
    return replace(action, target="") if action_type is not None and action_type.is_final else action


def _find_outcome(step: StepResult, accepted: Sequence[Action], matcher: Matcher) -> Outcome:
    """Return the one outcome of a step under a matcher: every step has exactly one, whatever went wrong."""
    if step.parse_status == NOT_RUN:
        return "not_run"
    if step.error is not None:
        return "error"
    if step.parse_status == "truncated":
        return "truncated"
    if step.predicted is None:
        return "unparsable"
    return "right" if any(matcher.is_right(wanted, step.predicted) for wanted in accepted) else "wrong"


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
