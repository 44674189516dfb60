"""Trajectory data to chat data for other trainers: the prompts and answers that training sees, pictures as files.

`messages` is what TRL takes ("Dataset formats", conversational language modeling with `images`): content in parts,
one of them the picture. `sharegpt` is what LLaMA-Factory takes (`data/README.md`): from/value texts with `<image>`,
and the `dataset_info.json` that names the file. One row is one step.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from sft.agent import AgentConfig
from sft.batches.encoder import StepEncoder
from sft.batches.examples import Example, build_examples, find_missing_memory
from sft.data.load import TaskSet
from sft.data.problems import Problem, TrajectoryError
from sft.data.screenshots import read_as_shown
from sft.files import write_new
from sft.json_text import dump_json

MessageFormat = Literal["messages", "sharegpt"]
DATA_NAME = "data.jsonl"
INFO_NAME = "dataset_info.json"
DATASET_NAME = "clinical_gui"  # by which LLaMA-Factory's `dataset:` finds it
_SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
_SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


@dataclass(frozen=True)
class Export:
    """What was written."""

    n_tasks: int
    n_steps: int
    n_images: int


def write_messages(
    tasks: TaskSet, agent: AgentConfig, encoder: StepEncoder | None, output_dir: Path, message_format: MessageFormat
) -> Export:
    """Write every step of a data set as a row of chat data, and each distinct screenshot once.

    `encoder` shortens memory and elements as training does where a prompt would be too long; without one, no prompt is
    shortened. Screenshots are copied; one that programs open in different ways (turned by EXIF, transparent, 16 bits)
    is written as the PNG that the model sees.

    Raises:
        UserError: the folder holds something, or a step cannot be trained on.
    """
    examples = build_examples(tasks.trajectories, agent, tasks.path, encoder)
    n_steps = sum(len(t.steps) for t in tasks.trajectories)
    bar = tqdm(examples, total=n_steps, desc="Writing", unit="step", disable=None)
    with write_new(output_dir) as folder:
        images = _write_rows(bar, folder, agent, tasks.path, message_format)
        if message_format == "sharegpt":
            info = json.dumps({DATASET_NAME: build_dataset_info()}, indent=2)
            (folder / INFO_NAME).write_text(f"{info}\n", encoding="utf-8")
    return Export(len(tasks.trajectories), n_steps, len(images))


def _write_rows(
    examples: Iterable[Example], folder: Path, agent: AgentConfig, path: Path, message_format: MessageFormat
) -> set[str]:
    names: dict[str, str] = {}
    problems: list[Problem] = []
    (folder / "images").mkdir()
    with (folder / DATA_NAME).open("w", encoding="utf-8") as file:
        for example in examples:
            problems += example.problems
            if missing := find_missing_memory(example.step.gold, agent):
                problems.append(Problem(path, example.step.row, "Output", missing, example.task_id))
            key = example.step.image_sha256
            if key not in names:
                names[key] = _write_image(example.step.image_path, folder)
            build = build_sharegpt_row if message_format == "sharegpt" else build_messages_row
            file.write(dump_json(build(example, names[key])) + "\n")
    if problems:
        raise TrajectoryError(problems)
    return set(names.values())


def _write_image(path: Path, folder: Path) -> str:
    """Copy a screenshot as any program opens it; return its name in the folder."""
    media_type, data = read_as_shown(path)
    name = f"images/{hashlib.sha256(data).hexdigest()[:16]}.{_SUFFIXES[media_type]}"
    (folder / name).write_bytes(data)
    return name


def build_messages_row(example: Example, image: str) -> dict[str, Any]:
    """Return a step as TRL takes it. Every part has the same keys, since a column of objects has those of all."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": example.completion}]}
    return {**_name_step(example), "messages": [*example.messages, answer], "images": [image]}


def build_sharegpt_row(example: Example, image: str) -> dict[str, Any]:
    """Return a step as LLaMA-Factory takes it: its template writes the picture where `<image>` stands.

    A goal or memory that spells `<image>` out would be taken for a picture: it is written `< image>`.
    """
    turns = [(m["role"], "".join(_write_part(part) for part in m["content"])) for m in example.messages]
    turns.append(("assistant", _spell(example.completion)))
    conversations = [{"from": _SHAREGPT_ROLES[role], "value": text} for role, text in turns]
    return {**_name_step(example), "conversations": conversations, "images": [image]}


def build_dataset_info() -> dict[str, Any]:
    """Return the entry of LLaMA-Factory's `dataset_info.json`: all of its tags are the default ones."""
    return {
        "file_name": DATA_NAME,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images"},
    }


def _name_step(example: Example) -> dict[str, Any]:
    return {"task_id": example.task_id, "step": example.step.index}


def _write_part(part: dict[str, Any]) -> str:
    return "<image>" if part["type"] == "image" else _spell(part["text"])


def _spell(text: str) -> str:
    """Break up what LLaMA-Factory replaces by a picture, a video or sound."""
    for name in ("image", "video", "audio"):
        text = text.replace(f"<{name}>", f"< {name}>")
    return text
