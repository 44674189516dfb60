"""Where do the errors come from: from what the model sees and knows, or from the memory that it wrote itself?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, get_args

from eval.scoring.bootstrap import Bootstrap, Rates
from eval.scoring.matching import MATCHERS, Verdict, Verdicts, normalize_text
from eval.step_result import NOT_RUN
from sft.data.memory_audit import MEMORY_PARTS, PLAN_KEY

Root = Literal["seeing_or_knowing", "memory", "no_answer"]
ROOTS: tuple[Root, ...] = get_args(Root)

# Why a part of `find_error_sources` is missing.
NO_TEACHER = "found no rollout of the same model, data and versions in mode teacher; --mode all makes both"
RECORDED_SHOWN = "mode teacher shows every step the recorded memory"
NO_MEMORY_SHOWN = "the prompts of this agent show no memory"
NO_PLAN_WRITTEN = "the model of this agent writes no long-term memory"
NO_PLAN_RECORDED = "no task of two steps or more has a recorded long-term memory after its first step"


def add_teacher(tasks: Verdicts, teacher: Verdicts) -> Verdicts:
    """Return the verdicts with the outcomes that the same steps have in mode teacher, so that errors have a root."""
    return {
        task_id: [
            replace(verdict, teacher_outcomes=other.outcomes)
            for verdict, other in zip(task, teacher[task_id], strict=True)
        ]
        for task_id, task in tasks.items()
    }


def find_root(verdict: Verdict, matcher: str) -> Root | None:
    """Return where an error comes from; None where the step is right or was not run, or mode teacher is unknown."""
    if verdict.teacher_outcomes is None or verdict.outcomes[matcher] in ("right", "not_run"):
        return None
    if "error" in (verdict.outcomes[matcher], verdict.teacher_outcomes[matcher]):
        return "no_answer"
    return "memory" if verdict.teacher_outcomes[matcher] == "right" else "seeing_or_knowing"


def find_error_sources(tasks: Verdicts, mode: str, agent: Mapping[str, Any], bootstrap: Bootstrap) -> dict[str, Any]:
    """Split accuracy by the memory shown and by the first plan, and errors by root (`find_root`).

    `agent` is the agent as `run.json` has it. A part that cannot be told is None; `absent` has the reason by its name.
    """
    parts = list_parts_in_prompts(agent)
    writes_plan = "long_term" in parts and agent.get("memory_writer", "model") == "model"
    sources: dict[str, Any] = {"by_memory": None, "first_plan": None, "roots": None}
    absent = {}
    if mode == "teacher":
        absent = dict.fromkeys(sources, RECORDED_SHOWN)
    else:
        if parts:
            sources["by_memory"] = _split_by_memory(tasks, parts, bootstrap)
        else:
            absent["by_memory"] = NO_MEMORY_SHOWN
        if writes_plan:
            sources["first_plan"] = _split_by_first_plan(tasks, bootstrap)
        if sources["first_plan"] is None:
            absent["first_plan"] = NO_PLAN_RECORDED if writes_plan else NO_PLAN_WRITTEN
        if next(iter(tasks.values()))[0].teacher_outcomes is not None:
            sources["roots"] = _count_roots(tasks, bootstrap)
        else:
            absent["roots"] = NO_TEACHER
    return {**sources, "absent": absent}


def list_parts_in_prompts(agent: Mapping[str, Any]) -> list[str]:
    """Return the parts of memory that the prompts of an agent show, whoever writes them."""
    return [part for part in MEMORY_PARTS if agent.get(f"use_{part}", True)]


def is_same_memory(shown: Any, recorded: Any) -> bool:
    """Say whether two memories, or parts of them, are equal: keys, order of lists and values, texts normalised."""
    if shown == recorded:
        return True
    if isinstance(shown, str) and isinstance(recorded, str):
        return normalize_text(shown) == normalize_text(recorded)
    if isinstance(shown, Mapping) and isinstance(recorded, Mapping):
        return shown.keys() == recorded.keys() and all(is_same_memory(shown[key], recorded[key]) for key in shown)
    if isinstance(shown, (list, tuple)) and isinstance(recorded, (list, tuple)):
        return len(shown) == len(recorded) and all(map(is_same_memory, shown, recorded))
    return False


def is_first_plan_right(task: Sequence[Verdict]) -> bool | None:
    """Say whether the plan that the model's first answer leaves is the recorded one; None where none is recorded.

    The plan is the list `remaining_subtasks` where the recorded memory has one, and all of the long-term memory where
    it has none. Of a task of one step, nothing is recorded after it.
    """
    recorded = task[1].step.gold_memory["long_term"] if len(task) > 1 else None
    if not recorded:
        return None
    written = task[0].step.memory_after["long_term"]
    if PLAN_KEY in recorded:
        return PLAN_KEY in written and is_same_memory(written[PLAN_KEY], recorded[PLAN_KEY])
    return is_same_memory(written, recorded)


def _split_by_memory(tasks: Verdicts, parts: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    """Rate the steps that were shown the recorded memory, in the parts a prompt shows, and those shown another."""

    def shows_recorded(verdict: Verdict) -> bool:
        shown, recorded = verdict.step.memory_before, verdict.step.gold_memory
        return all(is_same_memory(shown[part], recorded[part]) for part in parts)

    run = {id_: [v for v in task if v.step.parse_status != NOT_RUN] for id_, task in tasks.items()}
    is_recorded = {id_: list(map(shows_recorded, task)) for id_, task in run.items()}
    sides = {
        name: [[v for v, is_same in zip(run[id_], is_recorded[id_]) if is_same == wanted] for id_ in run]
        for name, wanted in (("recorded", True), ("other", False))
    }
    return {name: _rate_steps(side, bootstrap) for name, side in sides.items()}


def _split_by_first_plan(tasks: Verdicts, bootstrap: Bootstrap) -> dict[str, Any] | None:
    """Rate the tasks whose first plan is right and those whose is wrong; None where no plan is recorded."""
    are_right = {id_: is_right for id_, task in tasks.items() if (is_right := is_first_plan_right(task)) is not None}
    if not are_right:
        return None
    columns = {"right": list(map(int, are_right.values())), "tasks": [1] * len(are_right)}
    sides = {
        name: [tasks[id_] if is_right == wanted else [] for id_, is_right in are_right.items()]
        for name, wanted in (("right", True), ("wrong", False))
    }
    return {
        "n_tasks": len(are_right),
        "n_right": sum(are_right.values()),
        "rate": Rates(columns, bootstrap).compute_share("right", "tasks"),
        **{name: _rate_steps(side, bootstrap) for name, side in sides.items()},
    }


def _rate_steps(tasks: Sequence[Sequence[Verdict]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Count some steps of each task and rate them under each matcher; a rate of no step is None."""
    columns = {"steps": list(map(len, tasks))}
    columns |= {name: [sum(verdict.is_right(name) for verdict in task) for task in tasks] for name in MATCHERS}
    rates = Rates(columns, bootstrap)
    return {"n_steps": sum(columns["steps"]), "swa": {name: rates.compute(name, "steps") for name in MATCHERS}}


def _count_roots(tasks: Verdicts, bootstrap: Bootstrap) -> dict[str, Any]:
    """Count the errors by root under each matcher, and the steps that only the model's own memory has right.

    `share` is of the errors.
    """
    counted: dict[str, dict[str, Any]] = {}
    for name in MATCHERS:
        roots = [[root for verdict in task if (root := find_root(verdict, name))] for task in tasks.values()]
        columns: dict[str, list[int]] = {root: [found.count(root) for found in roots] for root in ROOTS}
        columns["wrong"] = list(map(len, roots))
        rates = Rates(columns, bootstrap)
        counted[name] = {
            "n_wrong": sum(columns["wrong"]),
            **{root: {"n": sum(columns[root]), "share": rates.compute(root, "wrong")} for root in ROOTS},
            "n_right_with_own_alone": sum(
                verdict.is_right(name) and (verdict.teacher_outcomes or {})[name] != "right"
                for verdict in chain(*tasks.values())
            ),
        }
    return counted
