"""Two rollouts of the same steps, paired by task: differences with intervals, and the sign of every task."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, Literal

from eval.scoring.bootstrap import Bootstrap, Rates
from eval.scoring.breakdowns import describe_answers
from eval.scoring.matching import MATCHERS, Verdicts
from sft.errors import UserError

Sign = Literal["better", "same", "worse"]


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
    columns: dict[str, Sequence[float]] = {
        "steps": [len(task) for task in tasks_a.values()],
        "tasks": [1] * len(tasks_a),
    }
    for name in MATCHERS:
        for side, tasks in (("a", tasks_a), ("b", tasks_b)):
            right = _count_right(tasks, name)
            columns[f"{name}.steps.{side}"] = list(right.values())
            columns[f"{name}.tasks.{side}"] = [int(n == len(tasks[task_id])) for task_id, n in right.items()]
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
        "tasks": {name: _describe_signs(tasks_a, tasks_b, name) for name in MATCHERS},
    }


def _describe_signs(tasks_a: Verdicts, tasks_b: Verdicts, matcher: str) -> dict[str, Any]:
    right_a, right_b = _count_right(tasks_a, matcher), _count_right(tasks_b, matcher)
    rows = [
        {
            "task_id": task_id,
            "n_steps": len(task),
            "right_a": right_a[task_id],
            "right_b": right_b[task_id],
            "sign": _sign(right_a[task_id], right_b[task_id]),
        }
        for task_id, task in tasks_a.items()
    ]
    signs = [row["sign"] for row in rows]
    return {**{sign: signs.count(sign) for sign in ("better", "same", "worse")}, "by_task": rows}


def _sign(a: int, b: int) -> Sign:
    return "same" if a == b else "better" if a > b else "worse"


def _count_right(tasks: Verdicts, matcher: str) -> dict[str, int]:
    return {task_id: sum(verdict.is_right(matcher) for verdict in task) for task_id, task in tasks.items()}


def _check_same_steps(tasks_a: Verdicts, tasks_b: Verdicts, names: tuple[str, str]) -> None:
    if missing := sorted(tasks_a.keys() ^ tasks_b.keys()):
        holder = names[0] if missing[0] in tasks_a else names[1]
        raise UserError(
            f"{names[0]} and {names[1]}: found {len(missing)} tasks in one of them only, such as {missing[0]} in "
            f"{holder}; expected rollouts of the same tasks"
        )
    for task_id, task in tasks_a.items():
        golds = [[verdict.step.gold for verdict in t] for t in (task, tasks_b[task_id])]
        if golds[0] != golds[1]:
            raise UserError(
                f"{names[0]} and {names[1]}: found other gold actions in task {task_id}; expected rollouts of the "
                "same data"
            )
