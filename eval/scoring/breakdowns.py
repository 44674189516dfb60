"""Counts of steps by action, position, parse status and memory. Knows nothing of tasks, intervals or files."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from eval.scoring.matching import HEADLINE, MATCHERS, judge_step
from eval.step_result import NOT_RUN, StepResult
from sft.json_text import dump_json

# Columns of the confusion table; no action type can have these names.
UNREADABLE, SKIPPED = "(unreadable)", "(not run)"


def compute_confusion(steps: Iterable[StepResult]) -> dict[str, dict[str, int]]:
    """Count steps by gold action and predicted action; an answer that gives no action counts as `UNREADABLE`.

    A step that was not run counts as `SKIPPED`.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for step in steps:
        absent = SKIPPED if step.parse_status == NOT_RUN else UNREADABLE
        counts[step.gold["action"]][find_predicted_kind(step) or absent] += 1
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


def compute_per_step_index(steps: Sequence[StepResult]) -> list[dict[str, Any]]:
    """Count the steps at each position of their task, those that were run, and those that are right."""
    by_index: defaultdict[int, list[StepResult]] = defaultdict(list)
    for step in steps:
        by_index[step.index].append(step)
    return [
        {
            "index": index,
            "n": len(by_index[index]),
            "n_run": sum(step.parse_status != NOT_RUN for step in by_index[index]),
            "right": {
                name: sum(judge_step(step, matcher) == "right" for step in by_index[index])
                for name, matcher in MATCHERS.items()
            },
        }
        for index in sorted(by_index)
    ]


def describe_answers(steps: Sequence[StepResult]) -> dict[str, Any]:
    """Count steps by parse status, by part left out of a read answer and by finish reason; sum up tokens and time."""
    run = [step for step in steps if step.parse_status != NOT_RUN]
    return {
        "n_run": len(run),
        "parse_rate": sum(step.parse_status == "ok" for step in run) / len(run),
        "parse_status": dict(sorted(Counter(step.parse_status for step in steps).items())),
        "left_out": dict(sorted(Counter(name for step in run for name in step.left_out).items())),
        "finish_reason": dict(sorted(Counter(step.finish_reason for step in run).items())),
        "n_prompt_tokens": sum(step.n_prompt_tokens for step in steps),
        "n_answer_tokens": sum(step.n_answer_tokens for step in steps),
        "latency_s": sum(step.latency_s for step in steps),
    }


def describe_memory(steps: Sequence[StepResult]) -> dict[str, Any]:
    """Count how memory moved: steps that changed it, steps whose answer could not be read, its size in characters."""
    sizes = [len(dump_json(step.memory_after)) for step in steps]
    return {
        "n_changed": sum(step.memory_after != step.memory_before for step in steps),
        "n_unreadable": sum(step.predicted is None and step.parse_status != NOT_RUN for step in steps),
        "mean_chars": float(np.mean(sizes)),
        "max_chars": max(sizes),
    }
