"""Verdicts to numbers: SWA, TA, baselines, intervals, tables. Knows nothing of models or files.

Every rate is a fraction in 0..1. `docs/evaluation.md` defines each number by formula.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np

from eval.scoring.bootstrap import Bootstrap, Rates
from eval.scoring.breakdowns import (
    compute_confusion,
    compute_per_action,
    compute_per_step_index,
    compute_progress,
    describe_answers,
    describe_memory,
)
from eval.scoring.error_sources import find_error_sources
from eval.scoring.loops import compute_loops
from eval.scoring.matching import HEADLINE, MATCHERS, OUTCOMES, Verdict, Verdicts
from eval.scoring.other_rules import build_rules, score_rules
from sft.data.load import natural_key
from sft.errors import UserError
from sft.rates import Rate

METRICS_VERSION = "3"


def compute_metrics(
    tasks: Verdicts,
    *,
    mode: str,
    seed: int = 0,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    synonyms: Mapping[str, str] | None = None,
    agent: Mapping[str, Any] | None = None,
    unseen_applications: Collection[str] = (),
) -> dict[str, Any]:
    """Score a judged rollout; the content of `metrics.json`.

    `synonyms`: see `eval/scoring/other_rules.py`. `agent` is the agent as `run.json` has it. Tasks of
    `unseen_applications`, which the model never saw, are scored separately from the others too.

    Raises:
        UserError: no results, or settings of the bootstrap out of range.
    """
    bootstrap = Bootstrap(seed, n_resamples, confidence)

    def name_familiarity(task: Sequence[Verdict]) -> str:
        application = task[0].step.application
        return application and f"{'unseen' if application in unseen_applications else 'seen'} applications"

    if not tasks:
        raise UserError("found no step results; expected at least one")
    verdicts = list(chain(*tasks.values()))
    steps = [verdict.step for verdict in verdicts]
    metrics = {
        "metrics_version": METRICS_VERSION,
        "mode": mode,
        "bootstrap": asdict(bootstrap),
        **_score_tasks(tasks, bootstrap),
        "per_application": _score_parts(tasks, lambda task: task[0].step.application, bootstrap),
        "per_familiarity": _score_parts(tasks, name_familiarity, bootstrap) if unseen_applications else {},
        "per_group": _score_parts(tasks, lambda task: task[0].step.group, bootstrap),
        "per_task_length": _score_parts(tasks, lambda task: _name_length(len(task)), bootstrap),
        "per_action": compute_per_action(verdicts),
        "per_step_index": compute_per_step_index(verdicts),
        "confusion": compute_confusion(verdicts),
        "progress": compute_progress(tasks, bootstrap),
        "error_sources": find_error_sources(tasks, mode, agent or {}, bootstrap),
        "loops": compute_loops(tasks, mode, agent or {}, bootstrap),
        "also_right": _score_without_others(tasks, bootstrap),
        "variants": score_rules(tasks, build_rules(synonyms), bootstrap),
        "answers": describe_answers(steps),
        "memory": describe_memory(steps),
    }
    matchers = metrics["matchers"]
    for name, matcher in MATCHERS.items():
        matchers[name].update(version=matcher.version, description=matcher.description)
    matchers[HEADLINE]["macro_f1"] = float(np.mean([row["f1"] for row in metrics["per_action"].values()]))
    return metrics


def find_majority_action(verdicts: Iterable[Verdict]) -> str:
    """Return the action that is right at the most steps; of equally frequent ones the first by name."""
    counts = Counter(kind for verdict in verdicts for kind in {action.kind for action in verdict.accepted})
    return min(counts, key=lambda kind: (-counts[kind], kind))


def _score_tasks(tasks: Verdicts, bootstrap: Bootstrap) -> dict[str, Any]:
    """Score a set of tasks: rates under each matcher, outcomes, baselines; one bootstrap, hence all paired."""
    verdicts = list(chain(*tasks.values()))
    majority = find_majority_action(verdicts)
    columns = {
        "steps": [len(task) for task in tasks.values()],
        "tasks": [1] * len(tasks),
        "majority": [sum(_is_kind_right(verdict, majority) for verdict in task) for task in tasks.values()],
        "previous": [_count_repeats(task, majority) for task in tasks.values()],
    }
    for name in MATCHERS:
        columns[f"{name}.steps"] = [sum(verdict.is_right(name) for verdict in task) for task in tasks.values()]
        columns[f"{name}.tasks"] = [int(all(verdict.is_right(name) for verdict in task)) for task in tasks.values()]
    rates = Rates(columns, bootstrap)
    matchers = {
        name: {
            "swa": rates.compute(f"{name}.steps", "steps"),
            "ta": rates.compute_share(f"{name}.tasks", "tasks"),
            "outcomes": _count_outcomes(verdicts, name),
        }
        for name in MATCHERS
    }
    return {
        "n_tasks": len(tasks),
        "n_steps": len(verdicts),
        "matchers": matchers,
        "outcomes": matchers[HEADLINE]["outcomes"],
        "majority_baseline": {"action": majority, **_as_baseline(rates.compute("majority", "steps"))},
        "previous_action_baseline": _as_baseline(rates.compute("previous", "steps")),
        "over_majority": rates.compute(f"{HEADLINE}.steps", "steps", minus="majority"),
    }


def _score_without_others(tasks: Verdicts, bootstrap: Bootstrap) -> dict[str, Any] | None:
    """Score by the recorded answers alone, and count the steps that another makes right; None where data has none."""
    verdicts = list(chain(*tasks.values()))
    if not any(verdict.also_wanted for verdict in verdicts):
        return None
    columns: dict[str, list[int]] = {"steps": [len(task) for task in tasks.values()], "tasks": [1] * len(tasks)}
    for name in MATCHERS:
        right = [[v.is_right(name) and name not in v.right_by_other for v in task] for task in tasks.values()]
        columns[f"{name}.steps"] = list(map(sum, right))
        columns[f"{name}.tasks"] = [int(all(task)) for task in right]
    rates = Rates(columns, bootstrap)
    return {
        "n_steps": sum(bool(verdict.also_wanted) for verdict in verdicts),
        "matchers": {
            name: {
                "n_right_by_other": sum(name in verdict.right_by_other for verdict in verdicts),
                "swa_recorded": rates.compute(f"{name}.steps", "steps"),
                "ta_recorded": rates.compute_share(f"{name}.tasks", "tasks"),
            }
            for name in MATCHERS
        },
    }


def _score_parts(
    tasks: Verdicts, find_part: Callable[[Sequence[Verdict]], str], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """Score the tasks of each application, group or length separately; what has no label is scored as "(none)"."""
    parts: defaultdict[str, Verdicts] = defaultdict(dict)
    for task_id, task in tasks.items():
        parts[find_part(task) or "(none)"][task_id] = task
    return {part: _score_tasks(parts[part], bootstrap) for part in sorted(parts, key=natural_key)}


def _name_length(n_steps: int) -> str:
    """Return the length class of a task: 1-5, 6-10, 11-15 and so on."""
    first = (n_steps - 1) // 5 * 5 + 1
    return f"{first}-{first + 4}"


def _count_outcomes(verdicts: Sequence[Verdict], matcher: str) -> dict[str, int]:
    counts = Counter(verdict.outcomes[matcher] for verdict in verdicts)
    return {outcome: counts[outcome] for outcome in OUTCOMES if outcome != "not_run" or counts[outcome]}


def _count_repeats(task: Sequence[Verdict], first_guess: str) -> int:
    """Count the steps at which the gold action of the step before is right; the first is guessed as `first_guess`."""
    guesses = [first_guess, *(verdict.wanted.kind for verdict in task)]
    return sum(_is_kind_right(verdict, guess) for guess, verdict in zip(guesses, task))


def _is_kind_right(verdict: Verdict, kind: str) -> bool:
    return any(action.kind == kind for action in verdict.accepted)


def _as_baseline(rate: Rate | None) -> dict[str, float]:
    assert rate is not None  # every run has steps
    return {"swa": rate.value, "low": rate.low, "high": rate.high}
