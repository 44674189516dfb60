"""Step results to numbers: SWA, TA, baselines, intervals, tables. Knows nothing of models or files; numpy only.

Every rate is a fraction in 0..1. `docs/evaluation.md` defines each number by formula.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
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
from eval.scoring.match_rules import build_variants, score_variants
from eval.scoring.matching import HEADLINE, MATCHERS, OUTCOMES, Outcome, judge_step
from eval.step_result import StepResult
from sft.data.load import natural_key
from sft.errors import UserError

METRICS_VERSION = "2"
Tasks = Mapping[str, Sequence[StepResult]]


def compute_metrics(
    results: Sequence[StepResult],
    *,
    mode: str,
    seed: int = 0,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    pointing_actions: frozenset[str] = frozenset(),
    synonyms: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Score a rollout; the content of `metrics.json`.

    `pointing_actions` and `synonyms`: see `eval/scoring/match_rules.py`. The order of `results` does not matter: the
    numbers depend on the set of steps alone.

    Raises:
        UserError: no results, a step twice, a task with a gap, or settings of the bootstrap out of range.
    """
    bootstrap = Bootstrap(seed, n_resamples, confidence)
    tasks = group_by_task(results)
    steps = [step for task in tasks.values() for step in task]
    metrics = {
        "metrics_version": METRICS_VERSION,
        "mode": mode,
        "bootstrap": asdict(bootstrap),
        **_score_tasks(tasks, bootstrap),
        "per_application": _score_parts(tasks, lambda task: task[0].application, bootstrap),
        "per_group": _score_parts(tasks, lambda task: task[0].group, bootstrap),
        "per_task_length": _score_parts(tasks, lambda task: _name_length(len(task)), bootstrap),
        "per_action": compute_per_action(steps),
        "per_step_index": compute_per_step_index(steps),
        "confusion": compute_confusion(steps),
        "progress": compute_progress(tasks, bootstrap),
        "variants": score_variants(tasks, build_variants(pointing_actions, synonyms), bootstrap),
        "answers": describe_answers(steps),
        "memory": describe_memory(steps),
    }
    matchers = metrics["matchers"]
    for name, matcher in MATCHERS.items():
        matchers[name].update(version=matcher.version, description=matcher.description)
    matchers[HEADLINE]["macro_f1"] = float(np.mean([row["f1"] for row in metrics["per_action"].values()]))
    return metrics


def group_by_task(results: Iterable[StepResult]) -> dict[str, list[StepResult]]:
    """Group steps by task: tasks in natural order (`t2` before `t10`), steps by index.

    Raises:
        UserError: no results, a step twice, or a task that lacks a step before its last one.
    """
    tasks: defaultdict[str, list[StepResult]] = defaultdict(list)
    for result in results:
        tasks[result.task_id].append(result)
    if not tasks:
        raise UserError("found no step results; expected at least one")
    for task_id, task in tasks.items():
        task.sort(key=lambda step: step.index)
        for expected, step in enumerate(task):
            if step.index != expected:
                fault = "twice" if step.index < expected else f"after {expected} of its steps"
                raise UserError(
                    f"task {task_id}: found step {step.index} {fault}; expected each of 0 to {task[-1].index} once"
                )
    return {task_id: tasks[task_id] for task_id in sorted(tasks, key=natural_key)}


def find_majority_action(steps: Iterable[StepResult]) -> str:
    """Return the most frequent gold action; of equally frequent ones the first by name."""
    counts = Counter(step.gold["action"] for step in steps)
    return min(counts, key=lambda kind: (-counts[kind], kind))


def _score_tasks(tasks: Tasks, bootstrap: Bootstrap) -> dict[str, Any]:
    """Score a set of tasks: rates under each matcher, outcomes, baselines; one bootstrap, hence all paired."""
    steps = [step for task in tasks.values() for step in task]
    outcomes = {
        name: {task_id: [judge_step(step, matcher) for step in task] for task_id, task in tasks.items()}
        for name, matcher in MATCHERS.items()
    }
    majority = find_majority_action(steps)
    columns = {
        "steps": [len(task) for task in tasks.values()],
        "tasks": [1] * len(tasks),
        "majority": [sum(step.gold["action"] == majority for step in task) for task in tasks.values()],
        "previous": [_count_repeats(task, majority) for task in tasks.values()],
    }
    for name, by_task in outcomes.items():
        columns[f"{name}.steps"] = [judged.count("right") for judged in by_task.values()]
        columns[f"{name}.tasks"] = [int(set(judged) == {"right"}) for judged in by_task.values()]
    rates = Rates(columns, bootstrap)
    matchers = {
        name: {
            "swa": rates.compute(f"{name}.steps", "steps"),
            "ta": rates.compute_share(f"{name}.tasks", "tasks"),
            "outcomes": _count_outcomes([o for judged in by_task.values() for o in judged], len(steps)),
        }
        for name, by_task in outcomes.items()
    }
    return {
        "n_tasks": len(tasks),
        "n_steps": len(steps),
        "matchers": matchers,
        "outcomes": matchers[HEADLINE]["outcomes"],
        "majority_baseline": {"action": majority, **_as_baseline(rates.compute("majority", "steps"))},
        "previous_action_baseline": _as_baseline(rates.compute("previous", "steps")),
        "over_majority": rates.compute(f"{HEADLINE}.steps", "steps", minus="majority"),
    }


def _score_parts(
    tasks: Tasks, find_part: Callable[[Sequence[StepResult]], str], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """Score the tasks of each application, group or length apart; what has no label is scored as "(none)"."""
    parts: defaultdict[str, dict[str, Sequence[StepResult]]] = defaultdict(dict)
    for task_id, task in tasks.items():
        parts[find_part(task) or "(none)"][task_id] = task
    return {part: _score_tasks(parts[part], bootstrap) for part in sorted(parts, key=natural_key)}


def _name_length(n_steps: int) -> str:
    """Return the length class of a task: 1-5, 6-10, 11-15 and so on."""
    first = (n_steps - 1) // 5 * 5 + 1
    return f"{first}-{first + 4}"


def _count_outcomes(judged: Sequence[Outcome], n_steps: int) -> dict[str, int]:
    counts = Counter(judged)
    by_outcome: dict[str, int] = {
        outcome: counts[outcome] for outcome in OUTCOMES if outcome != "not_run" or counts[outcome]
    }
    if sum(by_outcome.values()) != n_steps:
        raise AssertionError(f"outcomes {by_outcome} do not add up to {n_steps} steps")
    return by_outcome


def _count_repeats(task: Sequence[StepResult], first_guess: str) -> int:
    """Count the steps whose gold action is that of the step before; the first step is guessed as `first_guess`."""
    kinds = [step.gold["action"] for step in task]
    return sum(guess == kind for guess, kind in zip([first_guess, *kinds], kinds))


def _as_baseline(rate: Mapping[str, float]) -> dict[str, float]:
    return {"swa": rate["value"], "low": rate["low"], "high": rate["high"]}
