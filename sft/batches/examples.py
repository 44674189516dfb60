"""Trajectories to training rows, and which tasks train and which validate. Knows nothing of models or collation."""

import os
import random
import shutil
import sys
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sft.batches.encoding import StepEncoder
from sft.batches.sampler import StepSize
from sft.data.goals import hash_goal
from sft.data.leaks import list_shown_parts
from sft.data.load import (
    Problem,
    QuarantinedTask,
    TaskSet,
    Trajectory,
    TrajectoryError,
    load_task_set,
)
from sft.data.overlap import find_overlap, refuse_shared_goals
from sft.data.screenshots import ScreenshotError
from sft.data.split_file import find_split
from sft.memory import lagged
from sft.prompts import AgentConfig, format_answer
from sft.recipe.settings import DataSettings

if TYPE_CHECKING:
    from datasets import Dataset, Features


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
        TrajectoryError: every problem of the files.
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
    if settings.val_csv is None:
        parts = split_by_task(train.trajectories, settings.val_split, seed)
        return TaskSplit(*parts, train.quarantined, {settings.train_csv: train.sha256})
    val = load(settings.val_csv)
    refuse_shared_goals(find_overlap(val, train), settings.val_csv, settings.allow_overlap)
    hashes = {settings.train_csv: train.sha256, settings.val_csv: val.sha256}
    return TaskSplit(train.trajectories, val.trajectories, train.quarantined + val.quarantined, hashes)


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


@dataclass(frozen=True)
class StepRows:
    """Training rows and what was noticed while they were made."""

    dataset: "Dataset"
    n_shortened: int


def build_step_rows(
    trajectories: Sequence[Trajectory],
    csv_path: str,
    encoder: StepEncoder,
    show_progress: bool = True,
) -> StepRows:
    """Build one row a step: prompt text under gold memory, the answer, the screenshot's path. Decodes no image.

    Rows go to a file in the system's folder for temporary ones as they are made and are read from there, so that
    memory does not grow with their number; the file goes with the dataset.

    Returns:
        A dataset with the columns `task_id, step, place` (file and row), `image, image_sha256, prompt, completion` and
        the token counts `n_prefix_tokens` (what steps on one screenshot share), `n_prompt_tokens`, `n_answer_tokens`.

    Raises:
        TrajectoryError: a step that cannot be trained on within the token limits, or whose answer lacks the memory
            that `memory_writer: model` is to learn.
    """
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    problems: list[Problem] = []
    folder = Path(tempfile.mkdtemp(prefix="step_rows_"))
    try:
        bar = tqdm(trajectories, desc="Building training rows", unit="task", disable=not show_progress)
        n_shortened = 0
        with ArrowWriter(features=_build_features(), path=str(folder / "rows.arrow")) as writer:
            for row, is_shortened in _generate_rows(bar, Path(csv_path), encoder, problems):
                writer.write(row)
                n_shortened += is_shortened
            writer.finalize()
        if problems:
            raise TrajectoryError(problems)
        dataset = Dataset.from_file(str(folder / "rows.arrow"))
    except BaseException:
        shutil.rmtree(folder)
        raise
    weakref.finalize(dataset, _remove_folder, folder, os.getpid())
    return StepRows(dataset, n_shortened)


def _build_features() -> "Features":
    from datasets import Features, Value

    texts = ("task_id", "place", "image", "image_sha256", "prompt", "completion")
    numbers = ("step", "n_prefix_tokens", "n_prompt_tokens", "n_answer_tokens")
    return Features({name: Value("string") for name in texts} | {name: Value("int64") for name in numbers})


def _generate_rows(
    trajectories: Iterable[Trajectory], csv_path: Path, encoder: StepEncoder, problems: list[Problem]
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield each step's row and whether its memory was shortened; what is wrong with a step goes to `problems`."""
    agent = encoder.agent
    for trajectory in trajectories:
        memories = lagged(trajectory.golds, agent.memory_writer, agent.memory_budget_chars)
        for step, memory in zip(trajectory.steps, memories):
            if message := _find_missing_memory(step.gold, agent):
                problems.append(Problem(csv_path, step.row, "Output", message))
            try:
                prompt = encoder.build_prompt(trajectory.instruction, memory, step.image_path, step.elements)
            except ScreenshotError as error:
                problems.append(Problem(csv_path, step.row, "Image_id", str(error)))
                continue
            except ValueError as error:
                problems.append(Problem(csv_path, step.row, "Instruction", str(error)))
                continue
            answer = format_answer(step.gold, agent)
            n_answer = len(encoder.encode_completion(answer))
            if n_answer > agent.max_answer_tokens:
                limit = f"max_answer_tokens={agent.max_answer_tokens}"
                message = f"found an answer of {n_answer} tokens; expected at most {limit}"
                problems.append(Problem(csv_path, step.row, "Output", message))
            row = {
                "task_id": trajectory.task_id,
                "step": step.index,
                "place": f"{csv_path}: row {step.row}",
                "image": str(step.image_path),
                "image_sha256": step.image_sha256,
                "prompt": prompt.text,
                "completion": answer,
                "n_prefix_tokens": encoder.count_prefix_tokens(step.image_path),
                "n_prompt_tokens": prompt.n_tokens,
                "n_answer_tokens": n_answer,
            }
            yield row, prompt.is_shortened


def _remove_folder(folder: Path, owner: int) -> None:
    """Remove the rows when their dataset is gone; a worker forked off must not, its parent still has it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def read_step_sizes(rows: "Dataset") -> list[StepSize]:
    """Return what each row of `build_step_rows` costs in tokens, for packing."""
    columns = ("image_sha256", "n_prefix_tokens", "n_prompt_tokens", "n_answer_tokens")
    return [
        StepSize(sys.intern(image), n_prefix, n_prompt + n_answer - n_prefix)  # a column holds each text anew
        for image, n_prefix, n_prompt, n_answer in zip(*(rows[c] for c in columns))
    ]


def describe_tasks(trajectories: Sequence[Trajectory], csv_path: str, sha256: str) -> dict[str, Any]:
    """Say which data a run saw: file, hash, the split it is a part of, counts, and every task with its goal's hash."""
    return {
        "csv": csv_path,
        "sha256": sha256,
        "split": find_split(csv_path),
        "n_tasks": len(trajectories),
        "n_steps": sum(len(t.steps) for t in trajectories),
        "n_screenshots": len({s.image_path for t in trajectories for s in t.steps}),
        "tasks": {t.task_id: hash_goal(t.instruction) for t in trajectories},
    }


def _find_missing_memory(answer: Any, agent: AgentConfig) -> str | None:
    if agent.memory_writer == "rule":
        return None
    wanted = [("short_term", agent.use_short_term), ("long_term", agent.use_long_term)]
    missing = [name for name, used in wanted if used and getattr(answer, name) is None]
    if not missing:
        return None
    return (
        f"found no {' and no '.join(missing)} in the answer; expected the memory the model is to write: "
        "add it, or set memory_writer: rule"
    )
