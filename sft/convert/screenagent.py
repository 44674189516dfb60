"""ScreenAgent's sessions (a folder of JSON files and `images`) to converted tasks.

The fields are those of its README.md ("ScreenAgent Dataset") and of the sessions themselves: `task_prompt`,
`saved_image_name`, `video_width` and `video_height`, and `actions`, the answer as a human corrected it. Positions are
pixels of the video. One file is one screenshot and may hold several actions: each is a step on that screenshot. Files
with `_neg_` in their names are wrong answers, made for contrast, and are not read. A session has no action that ends
it: the last judgement is the end where every part of the last plan was judged a success.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sft.convert.action_map import ActionMap
from sft.convert.converted import ConvertedStep, ConvertedTask, DroppedTask, Point
from sft.convert.foreign_actions import read_screenagent_action
from sft.convert.options import ReadingOptions
from sft.convert.pictures import find_picture, name_picture
from sft.convert.source_rows import read_texts
from sft.data.cells import Size, read_screen
from sft.data.literals import read_literal
from sft.data.load import natural_key
from sft.errors import UserError

MAX_FILE_BYTES = 16 << 20
SUCCESS = "sub_task_success"


def read_screenagent(folder: Path, options: ReadingOptions) -> Iterator[ConvertedTask | DroppedTask]:
    """Yield every session at or below a folder as a task, or as dropped with the reason.

    Raises:
        UserError: no such folder, or no session in it.
    """
    for session, files in find_sessions(folder).items():
        folders = [options.images_dir] if options.images_dir else [session / "images", session]
        place = str(session.relative_to(folder.parent))
        try:
            records = [(path.name, _load(path)) for path in files]
            yield _read_session(session.name, place, records, folders, options)
        except ValueError as error:
            yield DroppedTask(session.name, place, len(files), str(error))


def find_sessions(folder: Path) -> dict[Path, list[Path]]:
    """Return the sessions in natural order of their names, each with its files in the order of their times."""
    if not folder.is_dir():
        raise UserError(f"{folder}: found no such folder; expected one that holds ScreenAgent's sessions")
    sessions: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*.json"), key=lambda path: natural_key(str(path))):
        if path.is_file() and "_neg_" not in path.name:
            sessions.setdefault(path.parent, []).append(path)
    if not sessions:
        raise UserError(f"{folder}: found no JSON file; expected sessions: folders of JSON files and images")
    return sessions


def _load(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path.name}: found more than {MAX_FILE_BYTES} bytes; expected one record of a session")
    try:
        record = read_literal(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}; restore the file") from error
    if not isinstance(record, Mapping) or not isinstance(record.get("actions"), list):
        raise ValueError(f"{path.name}: found no list of actions; expected a record of a ScreenAgent session")
    return record


def _read_session(
    task_id: str,
    place: str,
    records: Sequence[tuple[str, Mapping[str, Any]]],
    folders: Sequence[Path],
    options: ReadingOptions,
) -> ConvertedTask:
    action_map, coordinates = options.action_map, options.coordinates or "pixels"
    steps: list[ConvertedStep] = []
    cursor: Point | None = None
    plan: list[str] = []
    remarks: list[str] = []
    n_done = 0
    for position, (file_name, record) in enumerate(records):
        try:
            name = name_picture(record.get("saved_image_name"))
            screen = _read_screen(record)
            part = read_texts(record, "current_task") or (plan[n_done] if n_done < len(plan) else "")
            planned = [str(a.get("element") or "") for a in record["actions"] if _is_plan(a)]
            plan, n_done = (planned, 0) if planned else (plan, n_done)
            for fields in record["actions"]:
                action = read_screenagent_action(fields if isinstance(fields, Mapping) else {})
                if action.name == SUCCESS:
                    n_done += 1
                    if position == len(records) - 1 and 0 < len(plan) <= n_done:
                        action = replace(action, name="task_success")
                image = find_picture(record.get("saved_image_name"), folders)
                step = action_map.map_step(action, len(steps) + 1, image, coordinates, part, cursor, remarks=remarks)
                steps += [] if step is None else [replace(step, screen=screen, image_name=name)]
                cursor = action.end or action.point or cursor
        except ValueError as error:
            raise ValueError(f"{file_name}: {error}") from error
    if not steps:
        raise ValueError("found no mouse or keyboard action; expected at least one")
    goals = {goal for _, record in records if (goal := read_texts(record, "task_prompt", "task_prompt_en"))}
    if len(goals) != 1:
        raise ValueError(f"found {len(goals)} different task_prompt; expected one for the whole session")
    if steps[-1].action.kind != _find_end(action_map):
        remarks.append("the session does not end with its last success")
    return ConvertedTask(task_id, place, goals.pop(), options.application, tuple(steps), remarks=tuple(remarks))


def _read_screen(record: Mapping[str, Any]) -> Size | None:
    return read_screen([record.get("video_width"), record.get("video_height")])


def _is_plan(fields: Any) -> bool:
    return isinstance(fields, Mapping) and fields.get("action_type") == "PlanAction"


def _find_end(action_map: ActionMap) -> str:
    return next((action.name for action in action_map.actions if action.is_final), "")
