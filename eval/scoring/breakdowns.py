"""Counts by action, position, parse status and memory, and how tasks go from step to step. Knows nothing of files."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from rapidfuzz import fuzz

from eval.scoring.bootstrap import Bootstrap, Rates
from eval.scoring.matching import HEADLINE, MATCHERS, Verdict, Verdicts
from eval.step_result import NOT_RUN, StepResult
from sft.json_text import dump_json

# Columns of the confusion table; no action type can have these names.
UNREADABLE, SKIPPED = "(unreadable)", "(not run)"


def compute_confusion(verdicts: Iterable[Verdict]) -> dict[str, dict[str, int]]:
    """Count steps by gold action and predicted action; an answer that gives no action counts as `UNREADABLE`.

    A step that was not run counts as `SKIPPED`.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        absent = SKIPPED if verdict.step.parse_status == NOT_RUN else UNREADABLE
        counts[verdict.wanted.kind][verdict.answer.kind if verdict.answer else absent] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def compute_per_action(verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """Count and rate the steps of each gold action.

    Precision is None where the action was never predicted. F1 = 2 TP / (2 TP + FP + FN) is always defined: each action
    listed occurs in the gold. A step that another answer than the recorded one makes right counts as found for the
    recorded action, and as rightly predicted for the predicted one.
    """
    gold = Counter(verdict.wanted.kind for verdict in verdicts)
    predicted = Counter(verdict.answer.kind for verdict in verdicts if verdict.answer)
    right = {name: Counter(v.wanted.kind for v in verdicts if v.is_right(name)) for name in MATCHERS}
    found = right[HEADLINE]
    rightly_predicted = Counter(v.answer.kind for v in verdicts if v.answer and v.is_right())
    return {
        kind: {
            "n": gold[kind],
            "n_predicted": predicted[kind],
            "right": {name: counts[kind] for name, counts in right.items()},
            "precision": rightly_predicted[kind] / predicted[kind] if predicted[kind] else None,
            "recall": found[kind] / gold[kind],
            "f1": (found[kind] + rightly_predicted[kind]) / (gold[kind] + predicted[kind]),
        }
        for kind in sorted(gold)
    }


def compute_per_step_index(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Count the steps at each position of their task, those that were run, and those that are right."""
    by_index: defaultdict[int, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_index[verdict.step.index].append(verdict)
    return [
        {
            "index": index,
            "n": len(there),
            "n_run": sum(verdict.step.parse_status != NOT_RUN for verdict in there),
            "right": {name: sum(verdict.is_right(name) for verdict in there) for name in MATCHERS},
        }
        for index, there in sorted(by_index.items())
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


def compute_progress(tasks: Verdicts, bootstrap: Bootstrap) -> dict[str, Any]:
    """Describe the walks under the headline matcher; steps that were not run are in every length, never in a pair.

    A rate whose denominator is empty is None.
    """
    rights = [[verdict.is_right() for verdict in task] for task in tasks.values()]
    runs = [sum(verdict.step.parse_status != NOT_RUN for verdict in task) for task in tasks.values()]
    lengths = [len(right) for right in rights]
    prefixes = [right.index(False) if False in right else len(right) for right in rights]
    pairs = [list(zip(right[: n - 1], right[1:n])) for right, n in zip(rights, runs)]
    episodes = [list(_find_error_episodes(right[:n])) for right, n in zip(rights, runs)]
    columns: dict[str, Sequence[float]] = {
        "tasks": [1] * len(rights),
        "progress": [prefix / length for prefix, length in zip(prefixes, lengths)],
        "after_right": [sum(before for before, _ in pair) for pair in pairs],
        "right_after_right": [sum(before and now for before, now in pair) for pair in pairs],
        "after_wrong": [sum(not before for before, _ in pair) for pair in pairs],
        "right_after_wrong": [sum(not before and now for before, now in pair) for pair in pairs],
        "episodes": [len(found) for found in episodes],
        "recovered": [sum(found) for found in episodes],
    }
    rates = Rates(columns, bootstrap)
    n_steps, n_right = sum(lengths), sum(map(sum, rights))
    return {
        "goal_progress": rates.compute("progress", "tasks"),
        "right_after_right": rates.compute("right_after_right", "after_right"),
        "right_after_wrong": rates.compute("right_after_wrong", "after_wrong"),
        "recovery": rates.compute("recovered", "episodes"),
        "prefix_survival": [
            {
                "index": index,
                "n": sum(length > index for length in lengths),
                "n_alive": sum(prefix > index for prefix in prefixes),
            }
            for index in range(max(lengths))
        ],
        "first_error": {
            "none": sum(prefix == length for prefix, length in zip(prefixes, lengths)),
            "by_index": dict(sorted(Counter(p for p, n in zip(prefixes, lengths) if p < n).items())),
        },
        "independence": {
            "ta": sum(prefix == length for prefix, length in zip(prefixes, lengths)) / len(lengths),
            "expected_ta": sum((n_right / n_steps) ** length for length in lengths) / len(lengths),
        },
        "memory_drift": compute_memory_drift(verdict.step for verdict in chain(*tasks.values())),
    }


def compute_memory_drift(steps: Iterable[StepResult]) -> list[dict[str, Any]]:
    """Compare the memory each step's prompt showed with the gold memory, by position in the task.

    `similarity` is rapidfuzz's ratio of the two as JSON, `key_overlap` the shared keys over all keys (Jaccard); both
    are means in 0..1 over the steps that were run.
    """
    by_index: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for step in steps:
        if step.parse_status != NOT_RUN:
            similarity = fuzz.ratio(dump_json(step.memory_before), dump_json(step.gold_memory)) / 100
            shown, gold = _list_keys(step.memory_before), _list_keys(step.gold_memory)
            by_index[step.index].append((similarity, len(shown & gold) / len(shown | gold) if shown | gold else 1.0))
    return [
        {
            "index": index,
            "n": len(values),
            "similarity": float(np.mean([similarity for similarity, _ in values])),
            "key_overlap": float(np.mean([overlap for _, overlap in values])),
        }
        for index, values in sorted(by_index.items())
    ]


def _find_error_episodes(right: Sequence[bool]) -> Iterator[bool]:
    """Yield for each stretch of wrong steps whether a right step ended it.

    One that begins with the last step yields nothing: no step was left to recover on.
    """
    start = None
    for index, is_right in enumerate(right):
        if is_right and start is not None:
            yield True
            start = None
        elif not is_right and start is None:
            start = index
    if start is not None and start < len(right) - 1:
        yield False


def _list_keys(memory: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(part, key) for part, entries in memory.items() for key in entries}
