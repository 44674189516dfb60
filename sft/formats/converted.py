"""Tasks on their way into the contract: what readers of foreign formats yield, and their memory. Opens no file."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.actions import DEFAULT_ACTIONS, parse_action
from sft.memory import EMPTY_MEMORY, Answer, Memory, update
from sft.prompts import AgentConfig

ACTION_KEYS = ("action", "target", "text", "direction", "scale")
_PLACEHOLDER = re.compile(r"(?:step\s*\d*|none|n/?a|null)?\W*", re.I)
_MAX_NOTE_CHARS = 200


@dataclass(frozen=True)
class ConvertedStep:
    """One step: the right action, the screenshot it is taken on, and what is known beside it.

    `memory` is the memory *after* the step where the source proves one; None has it rebuilt from the actions. `note`
    is what an annotator wrote about the step.
    """

    number: int
    action: dict[str, Any]
    image: bytes | Path
    note: str = ""
    bbox: Sequence[float] | None = None
    memory: Memory | None = None
    elements: str = ""


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


def pick_action(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of an action that has them, checked.

    Raises:
        ValueError: no known action, or an argument with a value it may not have.
    """
    picked = {key: fields[key] for key in ACTION_KEYS if fields.get(key) not in (None, "")}
    action = parse_action(picked, DEFAULT_ACTIONS)
    return {"action": action.kind, "target": action.target, **action.arguments}


def read_box(value: Any) -> list[float] | None:
    """Return a box that can be [x1, y1, x2, y2] in pixels, or None."""
    is_numbers = (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    )
    return list(value) if is_numbers and 0 <= value[0] <= value[2] < 1e6 and 0 <= value[1] <= value[3] < 1e6 else None


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
            memory = update(memory, Answer(parse_action(step.action)), "rule", budget)
            if not _PLACEHOLDER.fullmatch(step.note.strip()):
                observation = " ".join(step.note.split())[:_MAX_NOTE_CHARS]
                memory = Memory({**memory.short_term, "last_observation": observation}, memory.long_term)
        memories.append(memory)
    return memories
