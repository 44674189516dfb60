"""OpenCUA's AgentNet trajectories (one JSON line per task) to converted tasks.

The fields are those of the data set's card (https://huggingface.co/datasets/xlangai/AgentNet, "Data Structure"):
`task_id`, `instruction`, `traj` with `image`, the screen before the action, and `value` with the PyAutoGUI `code`, the
sentence `action` about it and `last_step_correct`. Coordinates are parts of the screen, 0 to 1 (AgentNetBench's
README.md). A step that the card's own judge calls wrong or redundant is left out, as in OpenCUA's own training (its
paper, "Reflector"): the right answer is what is taught.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sft.convert.converted import ConvertedStep, ConvertedTask, DroppedTask, Point
from sft.convert.foreign_actions import ForeignAction, read_calls, simplify_name
from sft.convert.options import ReadingOptions
from sft.convert.pictures import find_picture, name_picture
from sft.convert.source_rows import Row, list_folders, read_rows, read_texts

EXPECTED = "AgentNet's JSON Lines, one task per line"


def read_agentnet(source: str, options: ReadingOptions) -> Iterator[ConvertedTask | DroppedTask]:
    """Yield every task of a file, or as dropped with the reason.

    Raises:
        UserError: the source cannot be read.
    """
    folders = list_folders(source, options.images_dir)
    for number, row in read_rows(source, EXPECTED):
        task_id, place = f"row{number}", f"line {number}"
        try:
            if isinstance(row, ValueError):
                raise row
            task_id = read_texts(row, "task_id") or task_id
            yield _read_task(task_id, place, row, folders, options)
        except ValueError as error:
            trajectory = row.get("traj") if isinstance(row, Mapping) else None
            yield DroppedTask(task_id, place, len(trajectory) if isinstance(trajectory, list) else 0, str(error))


def _read_task(task_id: str, place: str, row: Row, folders: Sequence[Path], options: ReadingOptions) -> ConvertedTask:
    trajectory = row.get("traj")
    if not isinstance(trajectory, list) or not trajectory or not all(isinstance(s, Mapping) for s in trajectory):
        raise ValueError("found no steps in traj; expected a list of {image, value: {code, ...}}")
    steps: list[ConvertedStep] = []
    remarks: list[str] = []
    coordinates = options.coordinates or "fraction"
    cursor: Point | None = None
    number = 0
    for position, entry in enumerate(_order_steps(trajectory, remarks), start=1):
        value = entry.get("value")
        fault = _find_fault(value)
        try:
            code, description = _read_value(value)
            for action in read_calls(code):
                number += 1
                action = _judge_end(action, row)
                if not fault:
                    image = find_picture(entry.get("image"), folders)
                    step = options.action_map.map_step(
                        action, number, image, coordinates, description, cursor, remarks=remarks
                    )
                    name = name_picture(entry.get("image"))
                    steps += [] if step is None else [replace(step, image_name=name)]
                    number -= step is None  # what the table leaves out is no gap
                cursor = action.end or action.point or cursor
        except ValueError as error:
            if not fault:
                raise ValueError(f"step {position}: {error}") from error
            number += 1  # what cannot be read was a step too
        if fault:
            remarks.append(f"step {position} left out: {fault}")
    if not steps:
        raise ValueError("found no step that is left; expected at least one")
    if row.get("task_completed") is False:
        remarks.append("task_completed is false: the source says that the goal was not reached")
    goal = read_texts(row, "instruction", "natural_language_task", "actual_task")
    program = read_texts(row, "application") or options.application
    return ConvertedTask(task_id, place, goal, program, tuple(steps), remarks=tuple(remarks))


def _order_steps(trajectory: Sequence[Mapping[str, Any]], remarks: list[str]) -> Sequence[Mapping[str, Any]]:
    """Return the steps in the order of their `index`; as they are listed, where not each has one of its own."""
    indices = [index for step in trajectory if isinstance(index := step.get("index"), int)]
    if len(set(indices)) < len(trajectory) or indices == sorted(indices):
        return trajectory
    remarks.append("the steps were not in the order of their index, which counts")
    return [step for _, step in sorted(zip(indices, trajectory), key=lambda entry: entry[0])]


def _find_fault(value: Any) -> str:
    """Return what the data set's own judge has against a step; "" where nothing."""
    if isinstance(value, Mapping) and value.get("last_step_correct") is False:
        return "last_step_correct is false"
    if isinstance(value, Mapping) and value.get("last_step_redundant") is True:
        return "last_step_redundant is true"
    return ""


def _read_value(value: Any) -> tuple[str, str]:
    """Return a step's code and its sentence about it."""
    if not isinstance(value, Mapping) or not isinstance(value.get("code"), str):
        raise ValueError("found no value.code; expected PyAutoGUI calls")
    return value["code"], read_texts(value, "action")


def _judge_end(action: ForeignAction, row: Row) -> ForeignAction:
    """Return the end of a task that the source says is not completed under a name of its own."""
    is_end = simplify_name(action.name) == "terminate"
    return replace(action, name="terminate_incomplete") if is_end and row.get("task_completed") is False else action
