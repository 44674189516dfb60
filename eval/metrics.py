"""Step results to numbers: SWA, TA, baselines, intervals, tables. Knows nothing of models or files; numpy only.

Every rate is a fraction in 0..1. `docs/evaluation.md` defines each number by formula.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from eval.bootstrap import Bootstrap, compute_interval, resample_sums
from eval.matching import HEADLINE, MATCHERS, OUTCOMES, Outcome, judge_step
from eval.results import StepResult
from sft.memory import dump_json
from sft.trajectory import natural_key

METRICS_VERSION = "1"
UNREADABLE = "(unreadable)"  # column of the confusion table; no action type can have this name

Tasks = Mapping[str, Sequence[StepResult]]


def compute_metrics(
    results: Sequence[StepResult],
    *,
    mode: str,
    seed: int = 0,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Score a rollout; the content of `metrics.json`.

    The order of `results` does not matter: the numbers depend on the set of steps alone.

    Raises:
        ValueError: no results, a step twice, a task with a gap, or settings of the bootstrap out of range.
    """
    bootstrap = Bootstrap(seed, n_resamples, confidence)
    tasks = group_by_task(results)
    steps = [step for task in tasks.values() for step in task]
    metrics = {
        "metrics_version": METRICS_VERSION,
        "mode": mode,
        "bootstrap": asdict(bootstrap),
        **_score_tasks(tasks, bootstrap),
        "per_application": _score_parts(tasks, lambda step: step.application, bootstrap),
        "per_group": _score_parts(tasks, lambda step: step.group, bootstrap),
        "per_action": compute_per_action(steps),
        "per_step_index": _compute_per_step_index(steps),
        "confusion": compute_confusion(steps),
        "answers": _describe_answers(steps),
        "memory": _describe_memory(steps),
    }
    matchers = metrics["matchers"]
    for name, matcher in MATCHERS.items():
        matchers[name].update(version=matcher.version, description=matcher.description)
    matchers[HEADLINE]["macro_f1"] = float(np.mean([row["f1"] for row in metrics["per_action"].values()]))
    return metrics


def group_by_task(results: Iterable[StepResult]) -> dict[str, list[StepResult]]:
    """Group steps by task: tasks in natural order (`t2` before `t10`), steps by index.

    Raises:
        ValueError: no results, a step twice, or a task that lacks a step before its last one.
    """
    tasks: defaultdict[str, list[StepResult]] = defaultdict(list)
    for result in results:
        tasks[result.task_id].append(result)
    if not tasks:
        raise ValueError("found no step results; expected at least one")
    for task_id, task in tasks.items():
        task.sort(key=lambda step: step.index)
        for expected, step in enumerate(task):
            if step.index != expected:
                fault = "twice" if step.index < expected else f"after {expected} of its steps"
                raise ValueError(
                    f"task {task_id}: found step {step.index} {fault}; expected each of 0 to {task[-1].index} once"
                )
    return {task_id: tasks[task_id] for task_id in sorted(tasks, key=natural_key)}


def compute_confusion(steps: Iterable[StepResult]) -> dict[str, dict[str, int]]:
    """Count steps by gold action and predicted action; an answer that gives no action counts as `UNREADABLE`."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for step in steps:
        counts[step.gold["action"]][find_predicted_kind(step) or UNREADABLE] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def find_predicted_kind(step: StepResult) -> str | None:
    """Return the action type that counts as predicted, or None where the step's outcome is not right or wrong."""
    is_judged = judge_step(step, MATCHERS[HEADLINE]) in ("right", "wrong")
    return step.predicted["action"] if is_judged and step.predicted else None


def compute_per_action(steps: Sequence[StepResult]) -> dict[str, dict[str, Any]]:
    """Count and rate the steps of each gold action.

    Precision is None where the action was never predicted. F1 = 2 TP / (2 TP + FP + FN) is always defined: each action
    listed occurs in the gold.
    """
    gold = Counter(step.gold["action"] for step in steps)
    predicted = Counter(find_predicted_kind(step) for step in steps)
    right = {
        name: Counter(step.gold["action"] for step in steps if judge_step(step, matcher) == "right")
        for name, matcher in MATCHERS.items()
    }
    return {
        kind: {
            "n": gold[kind],
            "n_predicted": predicted[kind],
            "right": {name: counts[kind] for name, counts in right.items()},
            "precision": right[HEADLINE][kind] / predicted[kind] if predicted[kind] else None,
            "recall": right[HEADLINE][kind] / gold[kind],
            "f1": 2 * right[HEADLINE][kind] / (gold[kind] + predicted[kind]),
        }
        for kind in sorted(gold)
    }


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
    per_task = np.array(list(columns.values()), dtype=np.float64).T
    totals = dict(zip(columns, per_task.sum(axis=0)))
    draws = dict(zip(columns, resample_sums(per_task, bootstrap).T))

    def rate(right: str, of: str, minus: str | None = None) -> dict[str, float]:
        value, resampled = totals[right] / totals[of], draws[right] / draws[of]
        if minus is not None:
            value, resampled = value - totals[minus] / totals[of], resampled - draws[minus] / draws[of]
        return compute_interval(value, resampled, bootstrap.confidence)

    matchers = {
        name: {
            "swa": rate(f"{name}.steps", "steps"),
            "ta": rate(f"{name}.tasks", "tasks"),
            "outcomes": _count_outcomes([o for judged in by_task.values() for o in judged], len(steps)),
        }
        for name, by_task in outcomes.items()
    }
    return {
        "n_tasks": len(tasks),
        "n_steps": len(steps),
        "matchers": matchers,
        "outcomes": matchers[HEADLINE]["outcomes"],
        "majority_baseline": {"action": majority, **_as_baseline(rate("majority", "steps"))},
        "previous_action_baseline": _as_baseline(rate("previous", "steps")),
        "over_majority": rate(f"{HEADLINE}.steps", "steps", minus="majority"),
    }


def _score_parts(
    tasks: Tasks, find_part: Callable[[StepResult], str], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """Score the tasks of each application or group apart; what has no label is scored as "(none)"."""
    parts: defaultdict[str, dict[str, Sequence[StepResult]]] = defaultdict(dict)
    for task_id, task in tasks.items():
        parts[find_part(task[0]) or "(none)"][task_id] = task
    return {part: _score_tasks(parts[part], bootstrap) for part in sorted(parts, key=natural_key)}


def _count_outcomes(judged: Sequence[Outcome], n_steps: int) -> dict[str, int]:
    counts = Counter(judged)
    by_outcome: dict[str, int] = {outcome: counts[outcome] for outcome in OUTCOMES}
    if sum(by_outcome.values()) != n_steps:
        raise AssertionError(f"outcomes {by_outcome} do not add up to {n_steps} steps")
    return by_outcome


def _count_repeats(task: Sequence[StepResult], first_guess: str) -> int:
    """Count the steps whose gold action is that of the step before; the first step is guessed as `first_guess`."""
    kinds = [step.gold["action"] for step in task]
    return sum(guess == kind for guess, kind in zip([first_guess, *kinds], kinds))


def _as_baseline(rate: Mapping[str, float]) -> dict[str, float]:
    return {"swa": rate["value"], "low": rate["low"], "high": rate["high"]}


def _compute_per_step_index(steps: Sequence[StepResult]) -> list[dict[str, Any]]:
    by_index: defaultdict[int, list[StepResult]] = defaultdict(list)
    for step in steps:
        by_index[step.index].append(step)
    return [
        {
            "index": index,
            "n": len(by_index[index]),
            "right": {
                name: sum(judge_step(step, matcher) == "right" for step in by_index[index])
                for name, matcher in MATCHERS.items()
            },
        }
        for index in sorted(by_index)
    ]


def _describe_answers(steps: Sequence[StepResult]) -> dict[str, Any]:
    return {
        "parse_status": dict(sorted(Counter(step.parse_status for step in steps).items())),
        "finish_reason": dict(sorted(Counter(step.finish_reason for step in steps).items())),
        "n_prompt_tokens": sum(step.n_prompt_tokens for step in steps),
        "n_answer_tokens": sum(step.n_answer_tokens for step in steps),
        "latency_s": sum(step.latency_s for step in steps),
    }


def _describe_memory(steps: Sequence[StepResult]) -> dict[str, Any]:
    """Count how memory moved: steps that changed it, steps whose answer could not be read, its size in characters."""
    sizes = [len(dump_json(step.memory_after)) for step in steps]
    return {
        "n_changed": sum(step.memory_after != step.memory_before for step in steps),
        "n_unreadable": sum(step.predicted is None for step in steps),
        "mean_chars": float(np.mean(sizes)),
        "max_chars": max(sizes),
    }
