"""How tasks go from step to step: prefix, recovery, drift of memory. Knows nothing of models or files; numpy only."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rapidfuzz import fuzz

from eval.scoring.bootstrap import Bootstrap, Rates
from eval.scoring.matching import HEADLINE, MATCHERS, judge_step
from eval.step_result import NOT_RUN, StepResult
from sft.json_text import dump_json

Tasks = Mapping[str, Sequence[StepResult]]


def compute_progress(tasks: Tasks, bootstrap: Bootstrap) -> dict[str, Any]:
    """Describe the walks under the headline matcher; steps that were not run are in every length, never in a pair.

    A rate whose denominator is empty is None.
    """
    rights = [[judge_step(step, MATCHERS[HEADLINE]) == "right" for step in task] for task in tasks.values()]
    runs = [sum(step.parse_status != NOT_RUN for step in task) for task in tasks.values()]
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
        "memory_drift": compute_memory_drift(step for task in tasks.values() for step in task),
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
