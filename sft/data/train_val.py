"""Which tasks train and which validate? Read by training alone. Knows nothing of prompts or models."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sft.agent import AgentConfig
from sft.data.boxes import count_points
from sft.data.elements_file import find_maker
from sft.data.load import TaskSet, load_task_set
from sft.data.memory_audit import list_shown_parts
from sft.data.overlap import find_overlap, hash_goal, refuse_shared_goals
from sft.data.problems import Problem, QuarantinedTask, TrajectoryError
from sft.data.split_file import find_split
from sft.data.steps import Trajectory
from sft.recipe.settings import DataSettings


@dataclass(frozen=True)
class TaskSplit:
    """The tasks of one run. No goal is in both parts (but by `allow_overlap`); `quarantined` tasks are in neither.

    `sha256_of` has the hash of the data behind each name that a recipe gives.
    """

    train: list[Trajectory]
    val: list[Trajectory]
    quarantined: tuple[QuarantinedTask, ...] = ()
    sha256_of: Mapping[str, str] = field(default_factory=dict)


def load_task_split(settings: DataSettings, agent: AgentConfig, seed: int, show_progress: bool = True) -> TaskSplit:
    """Read the training tasks and, by `val_csv` or `val_split`, the validation tasks.

    Raises:
        TrajectoryError: every problem of the files, or answers are to carry points and none has one.
        UserError: tasks of `val_csv` have a goal that is trained on, and `allow_overlap` is not set.
    """

    def load(path: str, **task_range: Any) -> TaskSet:
        return load_task_set(
            path,
            settings.image_root,
            actions=agent.actions,
            needs_elements=agent.use_grounding,
            memory_parts=list_shown_parts(agent),
            on_bad_rows=settings.on_bad_rows,
            show_progress=show_progress,
            **task_range,
        )

    train = load(settings.train_csv, task_start=settings.task_start, task_end=settings.task_end)
    if agent.points:
        refuse_without_points(train, agent)
    if settings.val_csv is None:
        parts = split_by_task(train.trajectories, settings.val_split, seed)
        return TaskSplit(*parts, train.quarantined, {settings.train_csv: train.sha256})
    val = load(settings.val_csv)
    refuse_shared_goals(find_overlap(val, train), settings.val_csv, settings.allow_overlap)
    hashes = {settings.train_csv: train.sha256, settings.val_csv: val.sha256}
    return TaskSplit(train.trajectories, val.trajectories, train.quarantined + val.quarantined, hashes)


def refuse_without_points(tasks: TaskSet, agent: AgentConfig) -> None:
    """Make sure that something teaches the points that answers are to carry.

    Raises:
        TrajectoryError: no answer has one.
    """
    n_pointing, rows = count_points((s for t in tasks.trajectories for s in t.steps), agent.actions)
    if len(rows) == n_pointing:
        message = "found no bbox for any action that has a target; expected some, or points: false in the recipe"
        raise TrajectoryError([Problem(tasks.path, None, "Grounding", message)])


def split_by_task(
    trajectories: Sequence[Trajectory], val_share: float, seed: int
) -> tuple[list[Trajectory], list[Trajectory]]:
    """Hold out a share of the tasks, the same share of every application, at least one task of each where it can.

    Tasks with one goal are one task, as everywhere: they stay together.
    """
    by_goal: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        by_goal[hash_goal(trajectory.instruction)].append(trajectory)
    by_application: dict[str, list[str]] = defaultdict(list)
    for goal, tasks in by_goal.items():
        by_application[tasks[0].application].append(goal)
    held_out: set[str] = set()
    for application, goals in sorted(by_application.items()):
        count = round(len(goals) * val_share)
        if val_share:
            count = min(max(count, 1), len(goals) - 1)
        held_out.update(random.Random(f"{seed}/{application}").sample(goals, count))
    val_ids = {t.task_id for goal in held_out for t in by_goal[goal]}
    train = [t for t in trajectories if t.task_id not in val_ids]
    return train, [t for t in trajectories if t.task_id in val_ids]


def describe_tasks(trajectories: Sequence[Trajectory], csv_path: str, sha256: str) -> dict[str, Any]:
    """Say which data a run saw: file, hash, the split it is a part of, counts, and every task with its goal's hash.

    `applications` counts the tasks that use each; a task that uses two counts for both, one that names none for "".
    """
    return {
        "csv": csv_path,
        "sha256": sha256,
        "split": find_split(csv_path),
        "elements": find_maker(csv_path),
        "n_tasks": len(trajectories),
        "n_steps": sum(len(t.steps) for t in trajectories),
        "applications": dict(sorted(Counter(name for t in trajectories for name in t.applications or {""}).items())),
        "n_screenshots": len({s.image_path for t in trajectories for s in t.steps}),
        "tasks": {t.task_id: hash_goal(t.instruction) for t in trajectories},
    }
