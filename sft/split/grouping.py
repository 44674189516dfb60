"""Which tasks must stay together in a split, and which part each group goes to. Writes nothing."""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from sft.data.load import TaskSet
from sft.data.overlap import normalise_goal
from sft.data.steps import Trajectory

GROUPINGS = ("none", "screenshot", "goal")
_BLOCK = 512  # goals compared at once: memory stays small for ten thousand of them


def group_tasks(tasks: TaskSet, group_by: str, goal_similarity: float) -> list[list[Trajectory]]:
    """Return groups of tasks that must stay together; groups and members are in the order of the data.

    Tasks with the same goal are one group under every grouping. Being together is passed on: where a is like b and b
    like c, all three are one group.
    """
    trajectories = tasks.trajectories
    goals = [normalise_goal(t.instruction) for t in trajectories]
    links = _link_shared([[goal] for goal in goals])
    if group_by == "goal":
        links += _link_similar(goals, goal_similarity)
    if group_by == "screenshot":
        links += _link_shared([[tasks.screenshots[s.image_path].sha256 for s in t.steps] for t in trajectories])
    parent = list(range(len(trajectories)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in links:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    groups: dict[int, list[Trajectory]] = defaultdict(list)
    for i, trajectory in enumerate(trajectories):
        groups[find(i)].append(trajectory)
    return list(groups.values())


def hold_out_groups(
    groups: Sequence[Sequence[Trajectory]], applications: Collection[str]
) -> tuple[list[Sequence[Trajectory]], list[Sequence[Trajectory]]]:
    """Return the groups without a task that uses one of these applications, and those with one.

    A task uses every application that it or one of its steps names, so that no screen of one is in the first.
    """
    held_out = [any(not t.applications.isdisjoint(applications) for t in group) for group in groups]
    return (
        [group for group, is_held_out in zip(groups, held_out) if not is_held_out],
        [group for group, is_held_out in zip(groups, held_out) if is_held_out],
    )


def assign_groups(groups: Sequence[Sequence[Trajectory]], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Return the part of every task: the same share of each application as far as whole groups allow.

    The result depends on the tasks, the shares and the seed only. Large groups are placed first, each where most is
    missing; ties go to the part named first.
    """
    by_application: dict[str, list[Sequence[Trajectory]]] = defaultdict(list)
    for group in groups:
        application = Counter(t.application for t in group).most_common(1)[0][0]
        by_application[application].append(group)
    part_of: dict[str, str] = {}
    for application, members in sorted(by_application.items()):
        random.Random(f"{seed}/{application}").shuffle(members)
        n_tasks = sum(map(len, members))
        missing = {name: share * n_tasks for name, share in shares.items()}
        for group in sorted(members, key=len, reverse=True):
            name = max(missing, key=lambda part: missing[part])
            missing[name] -= len(group)
            part_of.update((t.task_id, name) for t in group)
    return part_of


def _link_shared(keys_of: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Link every position to the first one that has a key in common."""
    first: dict[str, int] = {}
    return [(first.setdefault(key, i), i) for i, keys in enumerate(keys_of) for key in keys]


def _link_similar(goals: Sequence[str], similarity: float) -> list[tuple[int, int]]:
    """Link goals whose words, whatever their order, are alike by at least `similarity` percent."""
    from rapidfuzz import fuzz, process

    links: list[tuple[int, int]] = []
    for start in range(0, len(goals), _BLOCK):
        block = goals[start : start + _BLOCK]
        scores = process.cdist(
            block, goals, scorer=fuzz.token_sort_ratio, score_cutoff=similarity, dtype=np.float32, workers=-1
        )
        links += [(start + int(i), int(j)) for i, j in np.argwhere(scores >= similarity) if start + i < j]
    return links
