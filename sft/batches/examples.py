"""What is one step to train on: prompt, answer and counts? Used by training and `sft.check`. Knows no models."""

import itertools
import os
import shutil
import sys
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from sft.agent import AgentConfig
from sft.answers import Answer, format_answer
from sft.batches.encoder import StepEncoder
from sft.batches.packing import find_shared_parts
from sft.batches.sampler import StepSize
from sft.data.problems import Problem, TrajectoryError
from sft.data.screenshots import ScreenshotError
from sft.data.steps import Step, Trajectory
from sft.memory import Memory, lagged
from sft.prompts import Message, build_prompt

if TYPE_CHECKING:
    from datasets import Dataset, Features

_TEXTS = ("prompt", "completion")
_COUNTS = ("n_image_tokens", "n_prompt_tokens", "n_answer_tokens")


@dataclass(frozen=True)
class Example:
    """One step as it is trained on: what the model is given, what it is to answer, and what both cost in tokens.

    `prompt` is the text of `messages` and `n_prompt_tokens` counts image tokens in; `prompt_tail`: (n,) int32, the ids
    of the text behind the screenshot. Without a tokenizer there is no such text and no count; nor is there one of a
    prompt that cannot be made. `n_left_out` says how many elements the prompt lacks. `problems` says what keeps the
    step from being trained on.
    """

    task_id: str
    step: Step
    n_steps: int
    messages: Sequence[Message]
    completion: str
    prompt: str = ""
    prompt_tail: np.ndarray | None = None
    n_image_tokens: int | None = None
    n_prompt_tokens: int | None = None
    n_answer_tokens: int | None = None
    is_shortened: bool = False
    n_left_out: int = 0
    problems: tuple[Problem, ...] = ()

    def build_row(self, csv_path: str) -> dict[str, Any]:
        """Return the example as a row of the data set that training reads."""
        return {
            "task_id": self.task_id,
            "step": self.step.index,
            "place": f"{csv_path}: row {self.step.row}",
            "image": str(self.step.image_path),
            "image_sha256": self.step.image_sha256,
            **{name: getattr(self, name) for name in (*_TEXTS, "prompt_tail", *_COUNTS)},
        }


def build_examples(
    trajectories: Iterable[Trajectory], agent: AgentConfig, path: Path, encoder: StepEncoder | None
) -> Iterator[Example]:
    """Yield every step under gold memory; the only place where one is made, for training and `sft.check` alike.

    Decodes no image. `path` is the data's, for problems; `encoder` renders and counts.
    """
    for trajectory in trajectories:
        memories = lagged(trajectory.golds, agent.memory_writer, agent.memory_budget_chars)
        for step, memory in zip(trajectory.steps, memories):
            yield _build_example(trajectory, step, memory, agent, path, encoder)


def _build_example(
    trajectory: Trajectory, step: Step, memory: Memory, agent: AgentConfig, path: Path, encoder: StepEncoder | None
) -> Example:
    plain = Example(
        trajectory.task_id,
        step,
        len(trajectory.steps),
        build_prompt(trajectory.instruction, memory, agent, step.elements),
        format_answer(step.gold, agent),
    )
    if encoder is None:
        return plain
    problems: list[Problem] = []

    def report(column: str, message: str) -> None:
        problems.append(Problem(path, step.row, column, message, trajectory.task_id))

    given: dict[str, Any] = {}
    try:
        prompt = encoder.build_prompt(trajectory.instruction, memory, step.image_path, step.elements)
        given = {
            "messages": prompt.messages,
            "prompt": prompt.text,
            "prompt_tail": prompt.tail,
            "n_image_tokens": prompt.n_image_tokens,
            "n_prompt_tokens": prompt.n_tokens,
            "is_shortened": prompt.is_shortened,
            "n_left_out": prompt.elements.n_left_out,
        }
    except ValueError as error:
        report("Image_id" if isinstance(error, ScreenshotError) else "Instruction", str(error))
    n_answer = len(encoder.encode_completion(plain.completion))
    if n_answer > agent.max_answer_tokens:
        message = f"found an answer of {n_answer} tokens; expected at most {agent.max_answer_tokens}"
        report("Output", f"{message}: raise max_answer_tokens")
    return replace(plain, **given, n_answer_tokens=n_answer, problems=tuple(problems))


@dataclass(frozen=True)
class StepRows:
    """Training rows and what was noticed while they were made.

    `n_shortened` counts prompts whose memory was shortened; `n_with_left_out` those that lack elements, and
    `n_left_out` the elements that they lack.
    """

    dataset: "Dataset"
    n_shortened: int
    n_with_left_out: int
    n_left_out: int


def build_step_rows(
    trajectories: Sequence[Trajectory],
    csv_path: str,
    encoder: StepEncoder,
    show_progress: bool = True,
) -> StepRows:
    """Build one row per step: prompt text under gold memory, the answer, the screenshot's path. Decodes no image.

    Rows go to a file in the system's folder for temporary ones as they are made and are read from there, so that
    memory does not grow with their number; the file goes with the dataset.

    Returns:
        A dataset with the columns `task_id, step, place` (file and row), `image, image_sha256, prompt, completion`,
        `prompt_tail` (the ids of the prompt's text behind the screenshot) and the token counts `n_image_tokens`,
        `n_prompt_tokens`, `n_answer_tokens`.

    Raises:
        TrajectoryError: a step that cannot be trained on within the token limits, or whose answer lacks the memory
            that `memory_writer: model` is to learn.
    """
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    problems: list[Problem] = []
    n_shortened = n_with_left_out = n_left_out = 0
    folder = Path(tempfile.mkdtemp(prefix="step_rows_"))
    try:
        bar = tqdm(trajectories, desc="Building training rows", unit="task", disable=not show_progress)
        with ArrowWriter(features=_build_features(), path=str(folder / "rows.arrow")) as writer:
            for example in build_examples(bar, encoder.agent, Path(csv_path), encoder):
                if missing := find_missing_memory(example.step.gold, encoder.agent):
                    problems.append(Problem(Path(csv_path), example.step.row, "Output", missing, example.task_id))
                problems += example.problems
                writer.write(example.build_row(csv_path))
                n_shortened += example.is_shortened
                n_with_left_out += example.n_left_out > 0
                n_left_out += example.n_left_out
            writer.finalize()
        if problems:
            raise TrajectoryError(problems)
        dataset = Dataset.from_file(str(folder / "rows.arrow"))
    except BaseException:
        shutil.rmtree(folder)
        raise
    weakref.finalize(dataset, _remove_folder, folder, os.getpid())
    return StepRows(dataset, n_shortened, n_with_left_out, n_left_out)


def _build_features() -> "Features":
    from datasets import Features, List, Value

    texts = ("task_id", "place", "image", "image_sha256", *_TEXTS)
    counts = {name: Value("int64") for name in ("step", *_COUNTS)}
    return Features({name: Value("string") for name in texts} | counts | {"prompt_tail": List(Value("int32"))})


def _remove_folder(folder: Path, owner: int) -> None:
    """Remove the rows when their dataset is gone; a worker forked off must not, its parent still has it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def read_step_sizes(rows: "Dataset") -> list[StepSize]:
    """Return what each row of `build_step_rows` costs in tokens alone and together with others, for packing."""
    tails = _read_tails(rows)
    images = [sys.intern(image) for image in rows["image_sha256"]]  # a column holds each text anew
    by_image: dict[str, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        by_image[image].append(i)
    parts: list[tuple[tuple[int, int], ...]] = [()] * len(images)
    names = itertools.count()
    for indices in by_image.values():
        if len(indices) > 1:
            for i, shared in zip(indices, find_shared_parts([tails[i] for i in indices], names)):
                parts[i] = shared
    sizes = []
    for image, tail, shared, *counts in zip(images, tails, parts, *(rows[c] for c in _COUNTS)):
        n_image, n_prompt, n_answer = counts
        n_own = len(tail) + n_answer - sum(n for _, n in shared)
        sizes.append(StepSize(image, n_prompt - n_image - len(tail), n_image, n_own, shared))
    return sizes


def _read_tails(rows: "Dataset") -> list[np.ndarray]:
    """Return each row's `prompt_tail`, without a copy of what is on disk."""
    tails: list[np.ndarray] = []
    for chunk in rows.with_format("arrow")["prompt_tail"][:].chunks:
        ids, bounds = chunk.values.to_numpy(), chunk.offsets.to_numpy()
        tails += [ids[start:end] for start, end in zip(bounds, bounds[1:])]
    return tails


def find_tight_answer_limit(answers: Iterable[tuple[str, int]], agent: AgentConfig) -> str | None:
    """Say that `max_answer_tokens` would cut the memory that `memory_budget_chars` allows, or return None.

    `answers` are those of the data with their tokens: in Chinese, or in digits and ids, a character takes three times
    the tokens of English. Where no answer has a third of the budget's length, memory is not expected to reach it.
    """
    if agent.memory_writer != "model" or not (agent.use_short_term or agent.use_long_term):
        return None
    sizes = [(len(text), n_tokens) for text, n_tokens in answers]
    longest = max((n_chars for n_chars, _ in sizes), default=0)
    needed = round(agent.memory_budget_chars * max((n_tokens / n_chars for n_chars, n_tokens in sizes), default=0.0))
    if needed <= agent.max_answer_tokens or 3 * longest < agent.memory_budget_chars:
        return None
    return (
        f"memory_budget_chars={agent.memory_budget_chars} is up to {needed} tokens in texts like these, and "
        f"max_answer_tokens={agent.max_answer_tokens} would cut an answer with such a memory: raise max_answer_tokens "
        "or lower memory_budget_chars"
    )


def find_missing_memory(answer: Answer, agent: AgentConfig) -> str | None:
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
