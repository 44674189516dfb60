"""Row-shaped JSONL (one line per step, the columns of a trajectory CSV as keys) to converted tasks.

Memory is taken from `Output`, but for a task where it tells of the next step. Where `Output` has none, a published
memory column is used if the audit proves it lagged: what stands at step t + 1 is the memory after step t. In any other
case it is rebuilt from the actions.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.actions import DEFAULT_ACTIONS, ActionType
from sft.answers import Answer
from sft.convert.converted import ConvertedStep, ConvertedTask, Coordinates, DroppedTask, pick_own_memories
from sft.data.cells import Grounding, read_application, read_gold, read_grounding, read_object, read_text
from sft.data.image_paths import find_screenshot, suggest_names
from sft.data.literals import is_missing
from sft.data.load import find_table_kind, natural_key
from sft.data.memory_audit import MemoryAudit, MemoryCell, audit_memory
from sft.data.table import MEMORY_COLUMNS, build_cells, decode_text, read_line, read_list, split_lines
from sft.errors import UserError
from sft.file_kinds import JSON
from sft.memory import Memory, written


@dataclass(frozen=True)
class RecordFile:
    """The records of a file by task, each with its line number, and the audit of its memory columns."""

    path: Path
    by_task: dict[str, list[tuple[int, dict[str, str]]]] = field(repr=False)
    problems: dict[str, str]
    audits: tuple[MemoryAudit, ...]
    actions: Sequence[ActionType] = DEFAULT_ACTIONS

    @property
    def uses_columns(self) -> bool:
        """Whether the published memory columns are proven older than the step they stand at."""
        verdicts = {audit.verdict for audit in self.audits}
        return "lagged" in verdicts and verdicts <= {"lagged", "empty"}


def load_records(path: Path, actions: Sequence[ActionType] = DEFAULT_ACTIONS) -> RecordFile:
    """Read a JSONL file, or a list of the same objects, whole; one that cannot be read spoils the task it names.

    Raises:
        UserError: no such file, or a line of which not even the task can be told.
    """
    expected = "JSONL, one line per step"
    if (kind := find_table_kind(path, expected)) not in (None, JSON):
        raise UserError(f"{path}: found {kind.name}; expected {expected}")
    by_task: dict[str, list[tuple[int, dict[str, str]]]] = {}
    text = decode_text(path.read_bytes(), path)
    is_list = text.lstrip().startswith("[")
    lines: Iterable[tuple[int, Any]] = read_list(text, path) if is_list else enumerate(split_lines(text), start=1)
    for number, line in lines:
        if is_list or line.strip():
            cells = _read_cells(path, number, line)
            by_task.setdefault(read_text(cells["Task_id"]), []).append((number, cells))
    if not by_task:
        raise UserError(f"{path}: found no lines; expected one JSON object per step")
    problems: dict[str, str] = {}
    ordered = {}
    for task_id in sorted(by_task, key=natural_key):
        try:
            ordered[task_id] = _order(by_task[task_id])
        except ValueError as error:
            problems[task_id], ordered[task_id] = str(error), by_task[task_id]
    return RecordFile(path, ordered, problems, tuple(_audit(ordered, actions)), actions)


def read_records(
    records: RecordFile, images_dir: Path | None = None, coordinates: Coordinates = "pixels"
) -> Iterator[ConvertedTask | DroppedTask]:
    """Yield every task of a file, or as dropped with the reason."""
    for task_id, lines in records.by_task.items():
        place = f"{records.path.name}: line {lines[0][0]}"
        try:
            if task_id in records.problems:
                raise ValueError(records.problems[task_id])
            yield _read_task(task_id, place, lines, records, images_dir or records.path.parent, coordinates)
        except ValueError as error:
            yield DroppedTask(task_id, place, len(lines), str(error))


def _read_task(
    task_id: str,
    place: str,
    lines: Sequence[tuple[int, dict[str, str]]],
    records: RecordFile,
    images_dir: Path,
    coordinates: Coordinates,
) -> ConvertedTask:
    golds = []
    for number, cells in lines:
        try:
            golds.append(_read_answer(cells, records.actions))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    goals = {read_text(cells.get("Instruction", "")) for _, cells in lines}
    if len(goals) > 1:
        raise ValueError(f"found {len(goals)} different instructions; expected one for the whole task")
    memories, remark = _choose_memories(golds, lines, records)
    remarks = [remark] if remark else []
    steps = []
    for position, ((number, cells), gold, memory) in enumerate(zip(lines, golds, memories), start=1):
        name = cells.get("Image_id", "").strip()
        image = find_screenshot(name, [images_dir])
        if image is None:
            hint = suggest_names(name[:80], images_dir)
            raise ValueError(
                f"line {number}: found no screenshot {name[:80]!r} in {images_dir}; give --images_dir{hint}"
            )
        grounding = _read_evidence(cells.get("Grounding", ""), number, remarks)
        slide = int(cells.get("Slide_number", "").strip().partition(".")[0] or position)
        steps.append(
            ConvertedStep(
                slide,
                gold.action,
                image,
                "",
                grounding.bbox,
                grounding.screen_wh,
                memory,
                cells.get("Detected_Elements", ""),
                cells.get("Also_Right", ""),
                coordinates=coordinates,
                image_name=name,
            )
        )
    first = lines[0][1]
    application = first.get("Application", "").strip() or read_application(first.get("Grounding", ""))
    return ConvertedTask(
        task_id, place, goals.pop(), application, tuple(steps), first.get("Group", "").strip(), tuple(remarks)
    )


def _choose_memories(
    golds: Sequence[Answer], lines: Sequence[tuple[int, dict[str, str]]], records: RecordFile
) -> tuple[Sequence[Memory | None], str]:
    """Return the memory after each step, None where it is to be rebuilt, and a remark where it is not Output's own."""
    own = pick_own_memories(golds, lines[0][1].get("Instruction", ""))
    if own is not None:
        return own
    if not records.uses_columns:
        return [None] * len(golds), "memory was rebuilt from the actions"
    shown = [_read_columns(number, cells) for number, cells in lines]
    return written(shown), "memory was moved from the next step's columns"


def _read_columns(number: int, cells: Mapping[str, str]) -> Memory:
    parts = []
    for column in MEMORY_COLUMNS:
        text = cells.get(column, "")
        try:
            parts.append({} if is_missing(text) else read_object(text, "memory"))
        except ValueError as error:
            raise ValueError(f"line {number}: {column}: {error}") from error
    return Memory(*parts)


def _audit(
    by_task: Mapping[str, Sequence[tuple[int, dict[str, str]]]], actions: Sequence[ActionType]
) -> Iterator[MemoryAudit]:
    columns = [c for c in MEMORY_COLUMNS if any(c in cells for lines in by_task.values() for _, cells in lines)]
    found: dict[str, list[MemoryCell]] = {column: [] for column in columns}
    for lines in by_task.values():
        try:
            golds = [_read_answer(cells, actions).action for _, cells in lines]
        except ValueError:
            continue
        for i, (number, cells) in enumerate(lines):
            for column in columns:
                goal = cells.get("Instruction", "")
                found[column].append(MemoryCell(number, cells.get(column, ""), golds[i], tuple(golds[:i]), goal))
    return (audit_memory(column, cells) for column, cells in found.items())


def _read_answer(cells: Mapping[str, str], actions: Sequence[ActionType]) -> Answer:
    return read_gold(cells.get("Output", ""), cells.get("Grounding", ""), actions)


def _read_evidence(cell: str, number: int, remarks: list[str]) -> Grounding:
    """Read the box and the screen of a line; those that cannot be read are left out, and remarked on."""
    try:
        return read_grounding(cell)
    except ValueError as error:
        remarks.append(f"line {number}: left out the box and the screen: {error}")
        return Grounding()


def _read_cells(path: Path, number: int, line: str | dict[str, Any]) -> dict[str, str]:
    try:
        cells = build_cells(read_line(line) if isinstance(line, str) else line, ())
    except ValueError as error:
        raise UserError(f"{path}: line {number}: {error}") from error
    if is_missing(cells["Task_id"]):
        raise UserError(f"{path}: line {number}: found no Task_id; expected an object with the columns of a CSV")
    return cells


def _order(lines: list[tuple[int, dict[str, str]]]) -> list[tuple[int, dict[str, str]]]:
    """Sort by Slide_number where the lines have one."""
    texts = [cells.get("Slide_number", "").strip() for _, cells in lines]
    if not any(texts):
        return lines
    numbers = [int(t.partition(".")[0]) if re.fullmatch(r"[0-9]{1,6}(\.0)?", t) else 0 for t in texts]
    if len(set(numbers)) < len(numbers) or min(numbers) < 1:
        shown = ", ".join(texts)[:80]
        raise ValueError(f"found the step numbers {shown}; expected whole numbers from 1 on, each once")
    return [line for _, line in sorted(zip(numbers, lines), key=lambda entry: entry[0])]
