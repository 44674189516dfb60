"""The memory in `Output` as the next step's prompt shows it: audited, and refused where it tells the answer there."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sft.data.memory_audit import Evidence, MemoryAudit, MemoryCell, audit_memory, read_cell
from sft.data.steps import Trajectory
from sft.memory import Answer, dump_json

if TYPE_CHECKING:
    from sft.prompts import AgentConfig

COLUMN = "Output, shown one step later"
MEMORY_PARTS = ("short_term", "long_term")
PLAN_KEY = "remaining_subtasks"  # a plan rightly names what comes next


def list_shown_parts(agent: "AgentConfig") -> tuple[str, ...]:
    """Return the parts of recorded memory that an agent's prompts show; none where the memory is written by rule."""
    if agent.memory_writer == "rule":
        return ()
    used = (agent.use_short_term, agent.use_long_term)
    return tuple(part for part, is_used in zip(MEMORY_PARTS, used) if is_used)


def audit_shown_memory(trajectories: Iterable[Trajectory]) -> MemoryAudit:
    """Audit the recorded memory of all tasks; its verdict is `empty` where they have none."""
    cells = (cell for t in trajectories for _, cell in _read_task(t, MEMORY_PARTS))
    return audit_memory(COLUMN, cells, reads_targets=False)


def find_leaks(trajectory: Trajectory, parts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the row of every step whose memory tells the next step's action, and what is wrong with it."""
    for row, cell in _read_task(trajectory, parts):
        if told := _find_own_step(cell):
            yield (
                row,
                f"found memory that tells the answer of the next step (row {cell.row}), whose prompt would show it: "
                f"{told.reason}; expected what was known before that step: mend it, or set memory_writer: rule",
            )


def has_leak(golds: Sequence[Answer], goal: str) -> bool:
    """Return whether the memory of any right answer of a task tells the action of the answer after it."""
    cells = read_shown_memory(golds, range(len(golds)), goal, MEMORY_PARTS)
    return any(_find_own_step(cell) for _, cell in cells)


def read_shown_memory(
    golds: Sequence[Answer], rows: Sequence[int], goal: str, parts: Sequence[str]
) -> Iterator[tuple[int, MemoryCell]]:
    """Yield the row of each step but the last, and its memory as the step after it is shown it, without the plan."""
    actions = [gold.action for gold in golds]
    shown: dict[str, Mapping[str, Any]] = {}
    previous = ""
    for i, gold in enumerate(golds[:-1], start=1):
        shown |= {part: value for part in parts if (value := getattr(gold, part)) is not None}
        memory = {part: {k: v for k, v in fields.items() if k != PLAN_KEY} for part, fields in shown.items()}
        text = dump_json(memory) if any(memory.values()) else ""
        yield rows[i - 1], MemoryCell(rows[i], text, actions[i], actions[:i], goal, previous)
        previous = text


def _read_task(trajectory: Trajectory, parts: Sequence[str]) -> Iterator[tuple[int, MemoryCell]]:
    steps = list(trajectory.steps)
    golds, rows = [step.gold for step in steps], [step.row for step in steps]
    return read_shown_memory(golds, rows, trajectory.instruction, parts)


def _find_own_step(cell: MemoryCell) -> Evidence | None:
    told = read_cell(cell, reads_targets=False)
    return told if isinstance(told, Evidence) and told.tells == "own step" else None
