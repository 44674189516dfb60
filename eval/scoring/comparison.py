"""Two rollouts of the same steps, paired by task: differences with intervals, and the sign of every task."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

import numpy as np

from eval.scoring.bootstrap import Bootstrap, Rates
from eval.scoring.breakdowns import describe_answers
from eval.scoring.matching import MATCHERS, Verdicts
from eval.step_result import StepResult
from sft.actions import POINT, Action
from sft.errors import UserError


def compare_runs(
    tasks_a: Verdicts,
    tasks_b: Verdicts,
    *,
    names: tuple[str, str] = ("A", "B"),
    seed: int = 0,
    n_resamples: int = 10_000,
) -> dict[str, Any]:
    """Compare run A with run B; a difference is A minus B, its interval from drawing the same tasks for both.

    `tasks` names for each task how many of its steps each run has right, and whether A is better, the same or worse.

    Raises:
        UserError: the runs are not of the same steps with the same gold actions.
    """
    _check_same_steps(tasks_a, tasks_b, names)
    bootstrap = Bootstrap(seed, n_resamples)
    columns = _count(tasks_a, tasks_b)
    rates = Rates(columns, bootstrap)
    return {
        "names": list(names),
        "n_tasks": len(tasks_a),
        "n_steps": sum(columns["steps"]),
        "bootstrap": asdict(bootstrap),
        "matchers": {
            name: {
                measure: {
                    "a": compute(f"{name}.{of}.a", of),
                    "b": compute(f"{name}.{of}.b", of),
                    "difference": rates.compute(f"{name}.{of}.a", of, minus=f"{name}.{of}.b"),
                }
                for measure, of, compute in (
                    ("swa", "steps", rates.compute),
                    ("ta", "tasks", rates.compute_share),
                )
            }
            for name in MATCHERS
        },
        "parse_rate": {
            side: describe_answers([verdict.step for verdict in chain(*tasks.values())])["parse_rate"]
            for side, tasks in (("a", tasks_a), ("b", tasks_b))
        },
        "tasks": {
            name: _describe_signs(tasks_a, columns[f"{name}.steps.a"], columns[f"{name}.steps.b"]) for name in MATCHERS
        },
    }


def compare_repeats(
    repeats_a: Sequence[Verdicts], repeats_b: Sequence[Verdicts], *, names: tuple[str, str] = ("A", "B")
) -> dict[str, Any]:
    """Compare the mean scores of runs of A with those of as many runs of B, paired by task: `compare_runs` of several.

    A task is drawn with all its runs, so an interval says what other tasks would change, not what other seeds would;
    `repeats` has A's score in each run for that.

    Returns:
        For each matcher "swa" and "ta", each {"a", "b", "difference", "repeats"}.

    Raises:
        UserError: the runs are not of the same steps with the same gold actions.
    """
    pairs = list(zip(repeats_a, repeats_b, strict=True))
    for run_a, run_b in pairs:
        _check_same_steps(run_a, run_b, names)
    counts = [_count(run_a, run_b) for run_a, run_b in pairs]
    rates = Rates({name: np.sum([count[name] for count in counts], axis=0) for name in counts[0]}, Bootstrap())
    return {
        name: {
            measure: {
                "a": rates.compute(f"{name}.{of}.a", of),
                "b": rates.compute(f"{name}.{of}.b", of),
                "difference": rates.compute(f"{name}.{of}.a", of, minus=f"{name}.{of}.b"),
                "repeats": [sum(count[f"{name}.{of}.a"]) / sum(count[of]) for count in counts],
            }
            for measure, of in (("swa", "steps"), ("ta", "tasks"))
        }
        for name in MATCHERS
    }


def _count(tasks_a: Verdicts, tasks_b: Verdicts) -> dict[str, list[int]]:
    """Count for each task of A its steps, and by matcher and side its right steps and whether they are all right."""
    lengths = [len(task) for task in tasks_a.values()]
    columns: dict[str, list[int]] = {"steps": lengths, "tasks": [1] * len(lengths)}
    for name in MATCHERS:
        for side, tasks in (("a", tasks_a), ("b", tasks_b)):
            right = [sum(verdict.is_right(name) for verdict in tasks[task_id]) for task_id in tasks_a]
            columns[f"{name}.steps.{side}"] = right
            columns[f"{name}.tasks.{side}"] = [int(n == length) for n, length in zip(right, lengths)]
    return columns


def _describe_signs(tasks: Verdicts, right_a: Sequence[int], right_b: Sequence[int]) -> dict[str, Any]:
    rows = [
        {
            "task_id": task_id,
            "n_steps": len(task),
            "right_a": a,
            "right_b": b,
            "sign": "same" if a == b else "better" if a > b else "worse",
        }
        for (task_id, task), a, b in zip(tasks.items(), right_a, right_b, strict=True)
    ]
    signs = Counter(row["sign"] for row in rows)
    return {**{sign: signs[sign] for sign in ("better", "same", "worse")}, "by_task": rows}


def _check_same_steps(tasks_a: Verdicts, tasks_b: Verdicts, names: tuple[str, str]) -> None:
    if missing := sorted(tasks_a.keys() ^ tasks_b.keys()):
        holder = names[0] if missing[0] in tasks_a else names[1]
        raise UserError(
            f"{names[0]} and {names[1]}: found {len(missing)} tasks in one of them only, such as {missing[0]} in "
            f"{holder}; expected rollouts of the same tasks"
        )
    for task_id, task in tasks_a.items():
        labels = [[_list_labels(v.step) for v in t] for t in (task, tasks_b[task_id])]
        if labels[0] != labels[1]:
            raise UserError(
                f"{names[0]} and {names[1]}: found other gold actions in task {task_id}; expected rollouts of the "
                "same data"
            )


def _list_labels(step: StepResult) -> list[Action]:
    """Return the right actions without their points: only a run whose answers carry points has those of the data."""
    actions = (step.gold, *step.also_right)
    return [replace(a, arguments={k: v for k, v in a.arguments.items() if k != POINT}) for a in actions]
