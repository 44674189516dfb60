"""Chat data with pictures, as TRL, LLaMA-Factory and ms-swift take it, to converted tasks.

A row's messages are read by `sft.convert.chat`. An assistant's turn is one step; what it does is read by
`sft.convert.foreign_actions` and mapped by a table. Prompts are made anew from the goal: a system message, the history
and whatever else a user's turn says are not taken over.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sft.actions import POINT, ActionType, find_action_type
from sft.answers import Answer, read_answer
from sft.convert.action_map import ActionMap
from sft.convert.chat import Message, read_conversation, strip_placeholders
from sft.convert.converted import ConvertedStep, ConvertedTask, Coordinates, DroppedTask, Point, pick_own_memories
from sft.convert.foreign_actions import ForeignAction, read_object, read_place, read_turn
from sft.convert.options import ReadingOptions
from sft.convert.pictures import find_picture, name_picture
from sft.convert.source_rows import Row, list_folders, read_rows, read_texts
from sft.errors import UserError

EXPECTED = "rows of messages: JSON, JSON Lines, Parquet, what `datasets` saved, or a Hub data set"
GOAL_COLUMNS = ("goal", "instruction", "task")
ID_COLUMNS = ("id", "task_id", "episode_id")
_GOAL_LINE = re.compile(r"^\s*(?:#+\s*)?(?:Goal|Task|Instruction|Task Instruction)\s*:\s*(\S.*)$", re.M | re.I)
# A goal of several lines, as prompts of this package have it: up to their memory
_OWN_GOAL = re.compile(r"^Goal: (.*?)\n(?:Short|Long)-term memory: \{", re.M | re.S)


class _UnknownUnits(Exception):
    """A place in an answer, and nothing that says its units: of the whole source, and so not a task's fault."""


@dataclass(frozen=True)
class _ReadStep:
    """A step, and the answer that it was in the source where that is one of ours."""

    step: ConvertedStep
    own: Answer | None = None


def read_messages(source: str, options: ReadingOptions) -> Iterator[ConvertedTask | DroppedTask]:
    """Yield every task: a row, or the rows of one value in `task_column`, in their order; or as dropped, with why.

    Raises:
        UserError: the source cannot be read, lacks the column, or holds places whose units nobody said.
    """
    folders = list_folders(source, options.images_dir)
    try:
        for task_id, rows in _group_rows(source, options.task_column):
            yield _read_task(task_id, rows, folders, options)
    except _UnknownUnits as error:
        raise UserError(f"{source}: {error}") from error


def _group_rows(source: str, task_column: str) -> Iterator[tuple[str, list[tuple[int, Row | ValueError]]]]:
    """Yield each task's id and rows, with their numbers; one task at a time, since pictures may be in them.

    Raises:
        UserError: the source has no such column, or a task's rows are not together: then their order is not known.
    """
    if not task_column:
        for number, row in read_rows(source, EXPECTED):
            yield _find_id(row, ID_COLUMNS) or f"row{number}", [(number, row)]
        return
    seen: set[str] = set()
    for task_id, group in groupby(read_rows(source, EXPECTED), key=lambda entry: _find_id(entry[1], [task_column])):
        rows = list(group)
        number, row = rows[0]
        if isinstance(row, Mapping) and task_column not in row:
            columns = ", ".join(map(str, row))[:200]
            raise UserError(f"{source}: row {number}: found the columns {columns}; expected {task_column} among them")
        if task_id in seen:
            raise UserError(
                f"{source}: row {number}: found {task_column} {task_id[:60]!r} again, behind rows of another task; "
                "expected the steps of a task one after the other: sort the rows"
            )
        seen |= {task_id} - {""}
        yield task_id or f"row{number}", rows


def _find_id(row: Row | ValueError, columns: Sequence[str]) -> str:
    return read_texts(row, *columns) if isinstance(row, Mapping) else ""


def _read_task(
    task_id: str, rows: Sequence[tuple[int, Row | ValueError]], folders: Sequence[Path], options: ReadingOptions
) -> ConvertedTask | DroppedTask:
    place = f"row {rows[0][0]}"
    read: list[_ReadStep] = []
    remarks: list[str] = []
    goals: list[str] = []
    cursor: Point | None = None
    try:
        for number, row in rows:
            try:
                if isinstance(row, ValueError):
                    raise row
                goal, steps, cursor = _read_row(row, len(read), folders, options, remarks, cursor)
            except ValueError as error:
                raise ValueError(f"row {number}: {error}" if len(rows) > 1 else str(error)) from error
            goals.append(goal)
            read += steps
        if len(set(goals)) > 1:
            raise ValueError(f"found {len(set(goals))} different goals; expected one for the whole task")
        if not read:
            raise ValueError("found no step; every action is left out by the action map")
    except ValueError as error:
        return DroppedTask(task_id, place, len(rows), str(error))
    remembered = _with_memory(read, goals[0], remarks)
    first = rows[0][1]
    application = read_texts(first, "application", "app") if isinstance(first, Mapping) else ""
    return ConvertedTask(
        task_id, place, goals[0], application or options.application, remembered, remarks=tuple(remarks)
    )


def _with_memory(read: Sequence[_ReadStep], goal: str, remarks: list[str]) -> tuple[ConvertedStep, ...]:
    """Return the steps with the memory that the answers hold, where all of them are ours and hold it."""
    golds = [one.own for one in read if one.own is not None]
    own = pick_own_memories(golds, goal) if len(golds) == len(read) else None
    if own is None:
        return tuple(one.step for one in read)
    memories, remark = own
    remarks += [remark] if remark else []
    return tuple(replace(one.step, memory=memory) for one, memory in zip(read, memories))


def _read_row(
    row: Row,
    n_before: int,
    folders: Sequence[Path],
    options: ReadingOptions,
    remarks: list[str],
    cursor: Point | None,
) -> tuple[str, list[_ReadStep], Point | None]:
    """Return a row's goal, its steps, and where it leaves the pointer.

    `n_before` steps of the task were in earlier rows, which left the pointer at `cursor`.
    """
    messages, coordinates = read_conversation(row, options.coordinates)
    n_turns = sum(m.role == "assistant" for m in messages)
    if n_turns == 0:
        raise ValueError("found no assistant's turn; expected at least one")
    if options.task_column and n_turns > 1:
        raise ValueError(f"found {n_turns} assistant's turns; expected one in each row of a task (--task_column)")
    steps: list[_ReadStep] = []
    image, seen = None, 0
    for message in messages:
        if message.role == "user" and message.images:
            image, seen = message.images[-1], seen + len(message.images)
        if message.role != "assistant":
            continue
        number = n_before + len(steps) + 1
        if image is None:
            raise ValueError(f"step {number}: found no picture before the answer; expected the screenshot")
        try:
            found = find_picture(image, folders)
            read, cursor = _read_answer(message.text, number, found, options.action_map, coordinates, cursor)
            name = name_picture(image)
            steps += [replace(one, step=replace(one.step, image_name=name)) for one in read]
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from error
    if seen > n_turns:
        remarks.append(f"{seen - n_turns} more pictures than answers: the last one before an answer is its screenshot")
    goal = read_texts(row, *GOAL_COLUMNS) or _find_goal(messages)
    if not goal:
        raise ValueError(f"found no goal; expected it in the first user's turn or a column {', '.join(GOAL_COLUMNS)}")
    return goal, steps, cursor


def _read_answer(
    text: str,
    number: int,
    image: bytes | Path,
    action_map: ActionMap,
    coordinates: Coordinates | None,
    cursor: Point | None,
) -> tuple[list[_ReadStep], Point | None]:
    """Return the steps of one answer, and where it leaves the pointer.

    A step is an answer of ours, or what the action map makes of an action that the answer names.
    """
    turn = read_turn(text)
    steps: list[_ReadStep] = []
    for item in turn.actions:
        at = number + len(steps)
        if isinstance(item, Mapping) and (own := _read_own(item, action_map.actions)) is not None:
            steps.append(_ReadStep(_build_own_step(own, item, at, image), own))
            continue
        action = item if isinstance(item, ForeignAction) else read_object(item)
        if coordinates is None and (action.point or action.end):
            raise _UnknownUnits(
                f"found a place in the answer {text.strip()[:80]!r}, and nothing says its units; expected "
                "--coordinates fraction (0 to 1), thousandths (0 to 1000) or pixels"
            )
        step = action_map.map_step(action, at, image, coordinates or "pixels", turn.description, cursor)
        steps += [] if step is None else [_ReadStep(step)]
        cursor = action.end or action.point or cursor
    return steps, cursor


def _read_own(fields: Mapping[str, Any], actions: Sequence[ActionType]) -> Answer | None:
    """Return an answer in the form of this package, or None: it has an action of ours, and says its target."""
    kind = find_action_type(fields["action"], actions) if isinstance(fields.get("action"), str) else None
    if kind is None or not isinstance(fields.get("target"), str) or "coordinate" in fields:
        return None
    return read_answer(fields, actions)


def _build_own_step(own: Answer, fields: Mapping[str, Any], number: int, image: bytes | Path) -> ConvertedStep:
    """Return a step of an answer of ours; its point is in thousandths, whether the action has such an argument."""
    point = read_place(fields.get(POINT))[0]
    places = {POINT: point} if point else {}
    return ConvertedStep(number, own.action, image, places=places, spot=point, coordinates="thousandths")


def _find_goal(messages: Sequence[Message]) -> str:
    """Return what the first user's turn asks for: its line `Goal:`, `Task:` or `Instruction:`, else all of it."""
    text = next((m.text for m in messages if m.role == "user" and strip_placeholders(m.text)), "")
    text = strip_placeholders(text)
    line = _OWN_GOAL.search(text) or _GOAL_LINE.search(text)
    return line[1].strip() if line else text
