"""Chat data with pictures, as TRL, LLaMA-Factory and ms-swift take it, to converted tasks.

A row's messages are read by `sft.convert.chat`. An assistant's turn is one step; what it does is read by
`sft.convert.foreign_actions` and mapped by a table. Prompts are made anew from the goal: a system message, the history
and whatever else a user's turn says are not taken over.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sft.actions import POINT, ActionType, find_action_type
from sft.answers import Answer, read_answer
from sft.convert.action_map import ActionMap
from sft.convert.chat import Message, has_words_alone, read_conversation, strip_placeholders
from sft.convert.converted import ConvertedStep, ConvertedTask, Coordinates, DroppedTask, Point, pick_own_memories
from sft.convert.foreign_actions import ForeignAction, read_object, read_place, read_turn
from sft.convert.options import ReadingOptions
from sft.convert.pictures import find_picture, name_picture
from sft.convert.source_rows import Row, list_folders, read_rows, read_texts
from sft.errors import UserError

EXPECTED = "rows of messages: JSON, JSON Lines, Parquet, what `datasets` saved, or a Hub data set"
GOAL_COLUMNS = ("goal", "instruction", "task")
ID_COLUMNS = ("id", "task_id", "episode_id")
MAX_PLAIN_GOAL_CHARS = 300
# The memory behind the goal in prompts of this package, whose goal may have several lines
_OWN_MEMORY = re.compile(r"\n(?:Short|Long)-term memory: \{")
_OWN_GOAL = re.compile(r"^Goal: ", re.M)
# Where other prompts have their goal: UI-TARS' template, in its last part; those of Qwen's agents, up to the history;
# any other, in a line that says so. White space is bounded: it is searched again from each of its characters.
_GOALS = (
    re.compile(r"^##[ \t]{0,9}User Instruction[ \t]{0,9}\n(.*?)(?=^##\s|\Z)", re.M | re.S),
    re.compile(
        r"^[ \t]{0,9}The user query:(.*?)(?=\(You have done the following|Task progress[ \t]{0,9}[(:]|"
        r"Current step query:|Current Screenshot:|\n[ \t]{0,9}\n|\Z)",
        re.M | re.S,
    ),
    re.compile(
        r"^[ \t]{0,9}(?:#{1,9}[ \t]{0,9})?(?:Goal|Task|Instruction|Task Instruction)[ \t]{0,9}:\s{0,99}(\S.*)$",
        re.M | re.I,
    ),
)


class _UnknownUnits(Exception):
    """A place in an answer, and nothing that says its units: of the whole source, and so not a task's fault."""


@dataclass(frozen=True)
class _ReadStep:
    """A step, and the answer that it was in the source where that is one of ours."""

    step: ConvertedStep
    own: Answer | None = None


@dataclass
class _Walk:
    """What is known of a task behind the turns that were read.

    `number` is that of the last step, also where it was left out. `cursor` is where the pointer was left, in
    `cursor_units`.
    """

    steps: list[_ReadStep] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    number: int = 0
    cursor: Point | None = None
    cursor_units: Coordinates | None = None


def read_messages(source: str, options: ReadingOptions) -> Iterator[ConvertedTask | DroppedTask]:
    """Yield every task: a row, or the rows of one value in `task_column`, in their order; or as dropped, with why.

    Raises:
        UserError: the source cannot be read, lacks the column, or holds places whose units nobody said.
    """
    folders = list_folders(source, options.images_dir)
    seen: set[str] = set()
    try:
        for task_id, rows in _group_rows(source, options.task_column):
            if task_id in seen:
                reason = (
                    f"found the id {task_id[:60]!r} again; expected one of its own: where rows are the steps of a "
                    "task, name the column of its id with --task_column"
                )
                yield DroppedTask(task_id, f"row {rows[0][0]}", len(rows), reason)
                continue
            seen.add(task_id)
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
    walk, goals = _Walk(), []
    try:
        for position, (number, row) in enumerate(rows, start=1):
            try:
                if isinstance(row, ValueError):
                    raise row
                goals.append(_read_row(row, walk, folders, options, is_last=position == len(rows)))
            except ValueError as error:
                raise ValueError(f"row {number}: {error}" if len(rows) > 1 else str(error)) from error
        if len(set(goals)) > 1:
            raise ValueError(f"found {len(set(goals))} different goals; expected one for the whole task")
        if not walk.steps:
            raise ValueError("found no step that is left; expected at least one")
    except ValueError as error:
        return DroppedTask(task_id, place, len(rows), str(error))
    remarks = list(dict.fromkeys(walk.remarks))
    remembered = _with_memory(walk.steps, goals[0], remarks)
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


def _read_row(row: Row, walk: _Walk, folders: Sequence[Path], options: ReadingOptions, is_last: bool) -> str:
    """Read a row's turns, and return its goal; `is_last` says that the task ends with it."""
    messages = read_conversation(row, options.coordinates)
    turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not turns:
        raise ValueError("found no assistant's turn; expected at least one")
    if options.task_column and len(turns) > 1:
        raise ValueError(f"found {len(turns)} assistant's turns; expected one in each row of a task (--task_column)")
    image, n_seen, n_acting, asked = None, 0, 0, 0
    for i, message in enumerate(messages):
        if message.role == "user" and message.images:
            image, n_seen = message.images[-1], n_seen + len(message.images)
        if message.role != "assistant":
            continue
        is_closing = is_last and i == turns[-1] and bool(walk.steps)
        if (is_closing or (image is None and i != turns[-1])) and has_words_alone(message.text):
            walk.remarks.append(f"left out the turn {message.text.strip()[:80]!r}, which names no action")
            asked = asked if is_closing else i + 1
            continue
        n_acting += 1
        try:
            if image is None:
                raise ValueError("found no picture before the answer; expected the screenshot")
            _read_answer(message, walk, image, folders, options.action_map)
        except ValueError as error:
            raise ValueError(f"step {walk.number + 1}: {error}") from error
    if n_seen > n_acting:
        more = n_seen - n_acting
        walk.remarks.append(f"{more} more pictures than answers: the last one before an answer is its screenshot")
    # Alpaca's `instruction` is the whole question
    columns = [name for name in GOAL_COLUMNS if name != "instruction" or not isinstance(row.get("output"), str)]
    goal = read_texts(row, *columns) or _find_goal(messages[asked:], walk.remarks)
    if not goal:
        raise ValueError(f"found no goal; expected it in the first user's turn or a column {', '.join(GOAL_COLUMNS)}")
    return goal


def _read_answer(message: Message, walk: _Walk, image: Any, folders: Sequence[Path], action_map: ActionMap) -> None:
    """Read the steps of one answer: each an answer of ours, or what the action map makes of an action in it."""
    if message.is_learned:
        walk.steps += _read_steps(message, walk, find_picture(image, folders), name_picture(image), action_map)
        return
    number = walk.number + 1
    with suppress(ValueError):
        list(_read_steps(message, walk, b"", "", action_map))  # it moves the pointer
    walk.number = max(walk.number, number)  # what cannot be read was a step too
    walk.remarks.append(f"step {number} left out: the source marks it as not to be learned")


def _read_steps(
    message: Message, walk: _Walk, image: bytes | Path, name: str, action_map: ActionMap
) -> Iterator[_ReadStep]:
    """Yield the steps of one answer; those that the action map leaves out have no number."""
    turn = read_turn(message.text)
    for item in turn.actions:
        at = walk.number + 1
        if isinstance(item, Mapping) and (own := _read_own(item, action_map.actions)) is not None:
            yield _ReadStep(replace(_build_own_step(own, item, at, image), image_name=name), own)
            walk.number = at
            continue
        action = item if isinstance(item, ForeignAction) else read_object(item)
        units = message.coordinates
        if units is None and (action.point or action.end):
            raise _UnknownUnits(
                f"found a place in the answer {message.text.strip()[:80]!r}, and nothing says its units; expected "
                "--coordinates fraction (0 to 1), thousandths (0 to 1000) or pixels"
            )
        cursor = walk.cursor if walk.cursor_units in (None, units) else None
        step = action_map.map_step(
            action, at, image, units or "pixels", turn.description, cursor, remarks=walk.remarks
        )
        if moved := action.end or action.point:
            walk.cursor, walk.cursor_units = moved, units
        if step is not None:
            yield _ReadStep(replace(step, image_name=name))
            walk.number = at


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


def _find_goal(messages: Sequence[Message], remarks: list[str]) -> str:
    """Return what the first user's turn asks for: the goal that its form or a line `Goal:` names, else all of it."""
    text = next((said for m in messages if m.role == "user" and (said := strip_placeholders(m.text))), "")
    memory = _OWN_MEMORY.search(text)
    if memory and (own := _OWN_GOAL.search(text, 0, memory.start())):
        return text[own.end() : memory.start()].strip()
    for form in _GOALS:
        if (found := form.search(text)) and found[1].strip():
            return found[1].strip()
    n_lines = len(text.splitlines())
    if n_lines > 1 or len(text) > MAX_PLAIN_GOAL_CHARS:
        remarks.append(
            f"the goal is the whole first turn ({n_lines} lines, {len(text):,} characters); where it holds more than "
            "the goal, write that into a column goal"
        )
    return text
