"""Does the model go round in circles: the same answer again, memory that stands still while the screen moves on?"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from eval.scoring.bootstrap import Bootstrap, Rates
from eval.scoring.error_sources import list_parts_in_prompts
from eval.scoring.matching import Verdict, Verdicts, normalize_target
from eval.step_result import NOT_RUN
from sft.actions import Action

LONG_RUN = 3


def compute_loops(tasks: Verdicts, mode: str, agent: Mapping[str, Any], bootstrap: Bootstrap) -> dict[str, Any]:
    """Rate repeated answers, runs of three and more, and memory unchanged on a new screenshot, over the steps run.

    What the recording repeats, rightly, stands beside it (`recorded_`). `memory_unchanged` is None in mode teacher,
    whose memory is not the model's, and where prompts show none. A rate without a case is None.
    """
    runs = [[verdict for verdict in task if verdict.step.parse_status != NOT_RUN] for task in tasks.values()]
    columns: dict[str, list[int]] = {"steps": list(map(len, runs)), "pairs": [max(0, len(run) - 1) for run in runs]}
    lengths = {
        "": [list(_measure_runs([verdict.answer for verdict in run])) for run in runs],
        "recorded_": [list(_measure_runs([verdict.wanted for verdict in run])) for run in runs],
    }
    for whose, found in lengths.items():
        columns[f"{whose}repeats"] = [sum(n - 1 for n in task) for task in found]
        columns[f"{whose}in_long_runs"] = [sum(n for n in task if n >= LONG_RUN) for task in found]
    is_moved = [[_is_moved(task, i) for i in range(len(run))] for task, run in zip(tasks.values(), runs)]
    columns["moved"] = list(map(sum, is_moved))
    columns["unchanged"] = [
        sum(moved and not _is_memory_changed(run, i) for i, moved in enumerate(task))
        for task, run in zip(is_moved, runs)
    ]
    rates = Rates(columns, bootstrap)
    has_memory = mode != "teacher" and list_parts_in_prompts(agent)
    return {
        **{f"{whose}repeats": rates.compute(f"{whose}repeats", "pairs") for whose in lengths},
        **{f"{whose}in_long_runs": rates.compute(f"{whose}in_long_runs", "steps") for whose in lengths},
        "n_long_runs": sum(n >= LONG_RUN for task in lengths[""] for n in task),
        "longest_run": max((n for task in lengths[""] for n in task), default=0),
        "memory_unchanged": rates.compute("unchanged", "moved") if has_memory else None,
    }


def _measure_runs(actions: Sequence[Action | None]) -> Iterator[int]:
    """Yield how long each run of the same action type on the same target is; an unreadable answer is in none."""
    for key, run in groupby(actions, lambda action: action and (action.kind, normalize_target(action.target))):
        if key is not None:
            yield len(list(run))


def _is_moved(task: Sequence[Verdict], index: int) -> bool:
    """Say whether the step after this one is on another screenshot, by its name."""
    return index + 1 < len(task) and task[index + 1].step.image_id != task[index].step.image_id


def _is_memory_changed(task: Sequence[Verdict], index: int) -> bool:
    """Say whether a step's answer left another memory; what a prompt showed of it may have been shortened."""
    step = task[index].step
    return step.memory_after != (task[index - 1].step.memory_after if index else step.memory_before)
