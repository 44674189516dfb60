"""What do readers of foreign formats yield? Tasks on their way to a CSV, and their memory. Opens no file."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sft.actions import Action, ActionType, parse_action
from sft.agent import AgentConfig
from sft.answers import Answer
from sft.data.cells import Box, Size, read_box
from sft.data.memory_audit import has_leak
from sft.memory import EMPTY_MEMORY, Memory, update

Point = tuple[float, float]
# How a source counts places: as parts of the screen, as thousandths of it, or in its pixels.
Coordinates = Literal["fraction", "thousandths", "pixels"]

_PLACEHOLDER = re.compile(r"(?:step\s*\d*|none|n/?a|null)?\W*", re.I)
_MAX_NOTE_CHARS = 200


@dataclass(frozen=True)
class ConvertedStep:
    """One step: the right action, the screenshot it is taken on, and what is known beside it.

    `memory` is the memory *after* the step where the source proves one; None has it rebuilt from the actions. `note`
    is what an annotator wrote about the step; `screen` is what its box is measured on, None the screenshot itself.
    `image_name` is what the source calls the screenshot's file; "" where it is no file. `elements` and `also_right`
    are cells of `Detected_Elements` and `Also_Right`. `places` are arguments of the action that are points, by name;
    they and `bbox` are in the units that `coordinates` says. `spot` is where the action takes place, which stands in
    for a target that the source does not name.
    """

    number: int
    action: Action
    image: bytes | Path
    note: str = ""
    bbox: Box | None = None
    screen: Size | None = None
    memory: Memory | None = None
    elements: str = ""
    also_right: str = ""
    places: Mapping[str, Point] = field(default_factory=dict)
    spot: Point | None = None
    coordinates: Coordinates = "pixels"
    image_name: str = ""


@dataclass(frozen=True)
class ConvertedTask:
    """One task; `remarks` says what was changed or left out of it."""

    task_id: str
    source: str
    instruction: str
    application: str
    steps: tuple[ConvertedStep, ...] = field(repr=False)
    group: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class DroppedTask:
    """A task that could not be converted, and why."""

    task_id: str
    source: str
    n_steps: int
    reason: str


def pick_action(fields: Mapping[str, Any], actions: Sequence[ActionType]) -> Action:
    """Read the action of a step that may hold much else; an empty text is no argument.

    Raises:
        ValueError: no known action, or an argument with a value it may not have.
    """
    return parse_action({key: value for key, value in fields.items() if value not in (None, "")}, actions)


def pick_box(value: Any, number: int, remarks: list[str]) -> Box | None:
    """Read the box of a step; one that cannot be read is left out, and remarked on."""
    try:
        return read_box(value)
    except ValueError as error:
        remarks.append(f"step {number}: left out the box: {error}")
        return None


def pick_own_memories(golds: Sequence[Answer], instruction: str) -> tuple[list[Memory | None], str] | None:
    """Return the memory after each step as the answers of a task hold it, and a remark; None where one lacks it.

    Where it tells of a step to come, all of it is None, to be rebuilt.
    """
    if not all(gold.short_term is not None and gold.long_term is not None for gold in golds):
        return None
    if has_leak(golds, instruction):
        return [None] * len(golds), "memory in Output told of the next step; it was rebuilt from the actions"
    return [Memory(gold.short_term or {}, gold.long_term or {}) for gold in golds], ""


def rebuild_memories(steps: Iterable[ConvertedStep]) -> list[Memory]:
    """Return the memory after each step, made from the right actions up to it and never from a later one.

    The first prompt of a task has empty memory; the memory after step t is first shown at step t + 1. A step's note
    becomes `last_observation`, unless it is a placeholder such as "Step 3".
    """
    budget = AgentConfig().memory_budget_chars
    memories, memory = [], EMPTY_MEMORY
    for step in steps:
        if step.memory is not None:
            memory = step.memory
        else:
            memory = update(memory, Answer(step.action), "rule", budget)
            if not _PLACEHOLDER.fullmatch(step.note.strip()):
                observation = " ".join(step.note.split())[:_MAX_NOTE_CHARS]
                memory = Memory({**memory.short_term, "last_observation": observation}, memory.long_term)
        memories.append(memory)
    return memories
