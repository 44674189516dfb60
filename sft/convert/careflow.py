"""CareFlow task tables (one row per task) to converted tasks. Reads CSV, Parquet and what `datasets` saved."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sft.actions import DEFAULT_ACTIONS, ActionType
from sft.convert.converted import ConvertedStep, ConvertedTask, Coordinates, DroppedTask, pick_action, pick_box
from sft.convert.pictures import name_picture, read_picture
from sft.data.arrow_rows import iterate_rows, open_table
from sft.data.cells import read_text
from sft.data.image_paths import find_screenshot, suggest_names
from sft.data.literals import read_literal
from sft.data.load import find_table_kind
from sft.data.table import as_cell, decode_text, looks_like_dataset
from sft.errors import UserError
from sft.file_kinds import JSON, is_arrow_file

ID_COLUMNS = ("task_id", "task_number", "serial_number")
GOAL_COLUMNS = ("instruction", "task")
NAME_COLUMNS = ("image_sequence", "image_paths")
_Named = tuple[bytes | Path | None, str]  # an image, and what the table calls its file


def read_careflow(
    source: str,
    images_dir: Path | None = None,
    application: str = "",
    actions: Sequence[ActionType] = DEFAULT_ACTIONS,
    coordinates: Coordinates = "pixels",
) -> Iterator[ConvertedTask | DroppedTask]:
    """Yield every row of a task table as a task, or as dropped with the reason.

    A step's screenshot is found by its file name among the row's images; where the names do not match, by position,
    but only if there are as many images as steps.

    Raises:
        UserError: the table cannot be read, or has no `json_data`.
    """
    seen: set[str] = set()
    for number, row in enumerate(_read_rows(source), start=1):
        task_id, place = f"row{number}", f"{source}: task row {number}"
        try:
            task_id = next((text for c in ID_COLUMNS if (text := read_text(as_cell(row.get(c))))), task_id)
            if task_id in seen:
                raise ValueError(f"found task {task_id} again; expected each id once")
            seen.add(task_id)
            yield _read_task(task_id, place, row, images_dir, application, actions, coordinates)
        except ValueError as error:
            yield DroppedTask(task_id, place, _count_steps(row), str(error))


def _read_task(
    task_id: str,
    place: str,
    row: Mapping[str, Any],
    images_dir: Path | None,
    application: str,
    actions: Sequence[ActionType],
    coordinates: Coordinates,
) -> ConvertedTask:
    data = _load_task(row)
    trajectory = data.get("trajectory")
    if not isinstance(trajectory, list) or not trajectory or not all(isinstance(s, Mapping) for s in trajectory):
        raise ValueError("found no steps in json_data.trajectory; expected a list of {step, action, target, ...}")
    goals = [as_cell(row.get(c)).strip() for c in GOAL_COLUMNS]
    goal = next((text for text in goals if text), as_cell(data.get("instruction")).strip())
    numbered, remarks = _number_steps(trajectory)
    images = _match_images(row, [step for _, step in numbered], images_dir)
    steps = []
    for (number, fields), (image, name) in zip(numbered, images):
        try:
            action = pick_action(fields, actions)
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from error
        bbox = pick_box(fields.get("bbox"), number, remarks)
        note = as_cell(fields.get("note"))
        steps.append(ConvertedStep(number, action, image, note, bbox, coordinates=coordinates, image_name=name))
    program = as_cell(row.get("application") or row.get("software")) or application
    return ConvertedTask(task_id, place, goal, program, tuple(steps), remarks=tuple(remarks))


def _number_steps(trajectory: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[int, Mapping[str, Any]]], list[str]]:
    """Order steps by their own number where all have one, by position where none has."""
    numbers = [number for step in trajectory if (number := _read_number(step.get("step"))) is not None]
    if len(numbers) < len(trajectory):
        return list(enumerate(trajectory, start=1)), []
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"found step numbers {str(numbers)[:80]}; expected each once")
    shift = max(0, 1 - min(numbers))  # some tables count from 0
    ordered = sorted(zip((n + shift for n in numbers), trajectory), key=lambda entry: entry[0])
    missing = sorted(set(range(1, ordered[-1][0] + 1)) - {n for n, _ in ordered}) if ordered[-1][0] < 10_000 else []
    return ordered, [f"missing: step {', '.join(map(str, missing))}"] if missing else []


def _read_number(value: Any) -> int | None:
    """Read a step's number: 2, 2.0, "2" or "Step 2"."""
    match = re.fullmatch(r"(?:step\s*)?([0-9]{1,6})(?:\.0)?", as_cell(value).strip(), re.I)
    return int(match[1]) if match else None


def _match_images(
    row: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], images_dir: Path | None
) -> list[tuple[bytes | Path, str]]:
    """Return each step's screenshot, and what the table calls its file."""
    names = next((_read_names(row[c]) for c in NAME_COLUMNS if row.get(c)), [])
    listed = row.get("images") or []
    listed = _read_names(listed) if isinstance(listed, str) else listed
    folders = [images_dir] if images_dir else []
    images = [(read_picture(v, folders), name_picture(v)) for v in (listed if isinstance(listed, list) else [listed])]
    if not images and images_dir is not None:
        images = [(find_screenshot(name, [images_dir]), name) for name in names]
    wanted = [as_cell(step.get("screenshot")) for step in steps]
    by_name: dict[str, _Named] = {}
    if len(names) == len(images):
        by_name = _index_by_name(names, images)
    found = [by_name.get(name, by_name.get(_base(name), (None, ""))) for name in wanted]
    if images_dir is not None:
        found = [f if f[0] is not None else (find_screenshot(n, [images_dir]), n) for f, n in zip(found, wanted)]
    if all(image is not None for image, _ in found):
        return [_existing(image, name) for image, name in zip(found, wanted)]
    if len(images) == len(steps):
        return [_existing(image, f"image {i}") for i, image in enumerate(images, start=1)]
    lost = next(name for name, (image, _) in zip(wanted, found) if image is None)
    hint = suggest_names(lost, images_dir) if images_dir is not None else ""
    raise ValueError(
        f"found {len(images)} images for {len(steps)} steps, and none named {lost!r}; expected one image per step, or "
        f"names that match: give the folder with --images_dir{hint}"
    )


def _index_by_name(names: Sequence[str], images: Sequence[_Named]) -> dict[str, _Named]:
    """Return images by name, and by bare name; a name that two different images bear tells neither."""
    by_name: dict[str, _Named] = {}
    doubled = set()
    for name, image in zip(names, images):
        for key in {name, _base(name)}:
            if by_name.setdefault(key, image) != image:
                doubled.add(key)
    return {name: image for name, image in by_name.items() if name not in doubled}


def _existing(named: _Named, name: str) -> tuple[bytes | Path, str]:
    image, called = named
    if image is None:
        raise ValueError(
            f"found no screenshot {name!r}; expected it in the table, or in the folder given by --images_dir"
        )
    return image, called


def _read_names(value: Any) -> list[str]:
    """Read file names: a list, however it is spelled, or names separated by commas, semicolons or bars.

    Raises:
        ValueError: a list that cannot be read.
    """
    text = str(value).strip()
    if isinstance(value, str) and re.fullmatch(r"(?:array)?(?:\[.*\]|\(.*\))", text, re.S):
        try:
            value = read_literal(text)
        except ValueError as error:
            raise ValueError(f"the names of the images: {error}") from error
    if isinstance(value, list):
        return [str(name) for name in value]
    return [name.strip() for name in re.split(r"[,;|\n]", text) if name.strip()]


def _load_task(row: Mapping[str, Any]) -> Mapping[str, Any]:
    data = row.get("json_data")
    if isinstance(data, str):
        try:
            data = read_literal(data)
        except ValueError as error:
            raise ValueError(f"json_data: {error}") from error
    if not isinstance(data, Mapping):
        raise ValueError(f"found {type(data).__name__} in json_data; expected an object with a trajectory")
    return data


def _count_steps(row: Mapping[str, Any]) -> int:
    try:
        trajectory = _load_task(row).get("trajectory")
    except ValueError:
        return 0
    return len(trajectory) if isinstance(trajectory, list) else 0


def _read_rows(source: str) -> Iterator[Mapping[str, Any]]:
    path = Path(source)
    kind = None if looks_like_dataset(source) else find_table_kind(path, "a CareFlow table")
    rows: Iterator[Mapping[str, Any]]
    if looks_like_dataset(source) or is_arrow_file(path, kind):
        rows = iterate_rows(open_table(source))
    elif kind is JSON:
        raise UserError(f"{path}: found JSON; expected a CareFlow table: CSV, Parquet or what `datasets` saved")
    else:
        csv.field_size_limit(2**31 - 1)
        rows = iter(csv.DictReader(io.StringIO(decode_text(path.read_bytes(), path), newline="")))
    for row in rows:
        if "json_data" not in row:
            columns = ", ".join(map(str, row))[:200]
            raise UserError(f"{path}: found columns {columns}; expected json_data too: is this a CareFlow task table?")
        yield row


def _base(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name
