"""How well does an agent operate a program, and does the offline score tell? Knows no files and no program."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np

from eval.environments.episode import RESULTS, STEP_OUTCOMES, Episode, LiveStep
from eval.scoring.bootstrap import (
    Bootstrap,
    FloatArray,
    Rates,
    compute_exact_interval,
    compute_interval,
    resample_sums,
)
from eval.scoring.loops import LONG_RUN
from eval.scoring.matching import MATCHERS, Verdicts, normalize_target
from sft.data.load import natural_key
from sft.errors import UserError
from sft.rates import Rate

LIVE_METRICS_VERSION = "1"  # goes up when a number gets another meaning


def compute_live_metrics(episodes: Sequence[Episode], *, seed: int = 0, n_resamples: int = 10_000) -> dict[str, Any]:
    """Return what metrics.json holds of a live run.

    A task that ended in an error stands in the denominator of `success`, as none: what crashes the program must not
    raise a score. `success_without_errors` leaves it out. Tasks that were left out are in no number but their own.

    Raises:
        UserError: no task was tried.
    """
    bootstrap = Bootstrap(seed, n_resamples)
    tried = [episode for episode in episodes if episode.result is not None]
    left_out = [episode for episode in episodes if episode.result is None]
    if not tried:
        told = f"; all {len(left_out)} were left out; the first: {left_out[0].reason}" if left_out else ""
        raise UserError(f"found no task that can be carried out{told}; expected at least one")
    steps = [step for episode in tried for step in episode.steps]
    outcomes = Counter(step.outcome for step in steps)
    return {
        "live_metrics_version": LIVE_METRICS_VERSION,
        "mode": "live",
        "bootstrap": asdict(bootstrap),
        **_score(tried, bootstrap),
        "n_steps": len(steps),
        "step_outcomes": {outcome: outcomes[outcome] for outcome in STEP_OUTCOMES},
        "left_again": sum(episode.is_left_again for episode in tried),
        "steps_against_recorded": _compare_lengths(tried, bootstrap),
        "loops": _compute_loops(tried, bootstrap),
        "n_tried_again": sum(episode.n_tries > 1 for episode in tried),
        "per_group": _score_parts(tried, lambda episode: episode.group, bootstrap),
        "per_application": _score_parts(tried, lambda episode: episode.application, bootstrap),
        "by_task": {episode.task_id: _describe_task(episode) for episode in tried},
        "left_out": {episode.task_id: episode.reason for episode in left_out},
        "agreement": None,
    }


def compute_agreement(
    episodes: Sequence[Episode], offline: Verdicts, *, seed: int = 0, n_resamples: int = 10_000
) -> dict[str, Any]:
    """Compare, task by task, whether the offline rollout with its own memory was right and the live run succeeded.

    Tasks that ended in an error or were left out have no live verdict and are not compared. `kappa` is Cohen's, None
    where both are always of one kind; its interval is that of drawn tasks (percentiles), without the `n_undefined`
    draws in which it is not defined. `wrong_steps` are the steps that the offline score calls wrong, in tasks that
    succeeded live.
    """
    bootstrap = Bootstrap(seed, n_resamples)
    compared = [episode for episode in episodes if episode.result not in (None, "error")]
    tasks = [(episode, offline[episode.task_id]) for episode in compared]
    return {
        "bootstrap": asdict(bootstrap),
        "n_tasks": len(tasks),
        "matchers": {name: _compare_under(name, tasks, bootstrap) for name in MATCHERS} if tasks else {},
        "by_task": {
            episode.task_id: {
                "live": episode.result == "success",
                "n_steps": len(task),
                "n_right_offline": {name: sum(verdict.is_right(name) for verdict in task) for name in MATCHERS},
            }
            for episode, task in tasks
        },
    }


def compute_kappa(counts: FloatArray) -> FloatArray:
    """Return Cohen's (1960) kappa of each row of counts: both, first only, second only, neither; NaN if undefined.

    (observed - expected) / (1 - expected) agreement, where expected is that of two independent judges, each saying yes
    as often as it did. Undefined where that is 1: both said the same of every task.
    """
    both, first, second, neither = np.asarray(counts, dtype=np.float64).T
    n = both + first + second + neither
    observed = (both + neither) / n
    expected = ((both + first) * (both + second) + (second + neither) * (first + neither)) / n**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def _compare_under(name: str, tasks: Sequence[tuple[Episode, Any]], bootstrap: Bootstrap) -> dict[str, Any]:
    pairs = [(all(verdict.is_right(name) for verdict in task), episode.result == "success") for episode, task in tasks]
    cells = {
        "both": (True, True),
        "offline_only": (True, False),
        "live_only": (False, True),
        "neither": (False, False),
    }
    per_task = np.array([[pair == cell for cell in cells.values()] for pair in pairs], dtype=np.float64)
    totals = per_task.sum(axis=0)
    value = compute_kappa(totals[None])[0]
    draws = compute_kappa(resample_sums(per_task, bootstrap))
    is_defined = ~np.isnan(draws)
    has_kappa = not np.isnan(value) and bool(is_defined.any())
    wrong = [
        (sum(not verdict.is_right(name) for verdict in task), len(task)) if is_success else (0, 0)
        for (_, task), (_, is_success) in zip(tasks, pairs)
    ]
    rates = Rates({"wrong": [n for n, _ in wrong], "steps": [n for _, n in wrong]}, bootstrap)
    agreed = int(totals[0] + totals[3])
    return {
        "counts": dict(zip(cells, map(int, totals))),
        "agreed": Rate(agreed / len(tasks), *compute_exact_interval(agreed, len(tasks), bootstrap.confidence)),
        "kappa": compute_interval(value, draws[is_defined], bootstrap.confidence) if has_kappa else None,
        "n_undefined": int((~is_defined).sum()),
        "wrong_steps": {
            "n": sum(n for n, _ in wrong),
            "of": sum(n for _, n in wrong),
            "share": rates.compute("wrong", "steps"),
        },
    }


def _describe_task(episode: Episode) -> dict[str, Any]:
    return {
        "result": episode.result,
        "n_steps": len(episode.steps),
        "n_recorded": episode.n_recorded,
        "reached_at": episode.reached_at,
        "reason": episode.reason,
    }


def _score(episodes: Sequence[Episode], bootstrap: Bootstrap) -> dict[str, Any]:
    """Count what tasks came to; shares of tasks with their exact interval."""
    results = Counter(episode.result for episode in episodes)
    n_tasks, n_errors = len(episodes), results["error"]

    def share(n: int, of: int) -> Rate | None:
        return Rate(n / of, *compute_exact_interval(n, of, bootstrap.confidence)) if of else None

    return {
        "n_tasks": n_tasks,
        "n_errors": n_errors,
        "results": {result: results[result] for result in RESULTS},
        "success": share(results["success"], n_tasks),
        "success_without_errors": share(results["success"], n_tasks - n_errors),
        "reached": share(sum(episode.reached_at is not None for episode in episodes), n_tasks),
    }


def _score_parts(
    episodes: Sequence[Episode], find_part: Callable[[Episode], str], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    parts: defaultdict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        parts[find_part(episode) or "(none)"].append(episode)
    return {part: _score(parts[part], bootstrap) for part in sorted(parts, key=natural_key)}


def _compare_lengths(episodes: Sequence[Episode], bootstrap: Bootstrap) -> dict[str, Any]:
    """Compare the steps of successful tasks with the recorded ones: a ratio of sums, 1.0 for as many.

    `n_to_goal` is after how many of them the goal was first reached: those after it were for noticing.
    """
    done = [episode for episode in episodes if episode.result == "success"]
    columns = {"steps": [len(e.steps) for e in done], "recorded": [e.n_recorded for e in done]}
    ratio = Rates(columns, bootstrap).compute("steps", "recorded") if done else None
    return {
        "n_steps": sum(columns["steps"]),
        "n_to_goal": sum(episode.reached_at or 0 for episode in done),
        "n_recorded": sum(columns["recorded"]),
        "ratio": ratio,
    }


def _compute_loops(episodes: Sequence[Episode], bootstrap: Bootstrap) -> dict[str, Any]:
    """Rate the steps in runs of `LONG_RUN` and more of one action on one unchanged screen, and count their tasks."""
    runs = [[n for n in _measure_runs(episode.steps) if n >= LONG_RUN] for episode in episodes]
    columns = {"looped": list(map(sum, runs)), "steps": [len(episode.steps) for episode in episodes]}
    return {"in_loops": Rates(columns, bootstrap).compute("looped", "steps"), "n_tasks": sum(map(bool, runs))}


def _measure_runs(steps: Sequence[LiveStep]) -> list[int]:
    """Return how long each run of the same action on the same screen is; an unreadable answer is in none."""

    def key(step: LiveStep) -> tuple[str, str, str, Mapping[str, Any]] | None:
        if (action := step.predicted) is None:
            return None
        return step.image_id, action.kind, normalize_target(action.target), action.arguments

    return [len(list(run)) for found, run in groupby(steps, key) if found is not None]
