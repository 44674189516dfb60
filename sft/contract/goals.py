"""Goal texts: when two of them name the same task. Knows nothing of files or steps."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sft.contract.steps import Trajectory


def normalise_goal(text: str) -> str:
    """Return a goal without the differences that make no other goal of it: letter case and spaces."""
    return " ".join(text.casefold().split())


def hash_goal(text: str) -> str:
    """Return a short hash of a goal; two goals with one hash are the same task in other spelling."""
    return hashlib.sha256(normalise_goal(text).encode("utf-8", "replace")).hexdigest()[:16]


def find_duplicate_goals(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Return goals that several tasks share, letter case and spaces ignored."""
    tasks_of: dict[str, list[str]] = defaultdict(list)
    for t in trajectories:
        tasks_of[normalise_goal(t.instruction)].append(t.task_id)
    return [{"goal": goal[:200], "tasks": ids} for goal, ids in tasks_of.items() if len(ids) > 1]
