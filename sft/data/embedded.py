"""Tables whose screenshots are embedded, of `datasets` or in a Parquet file: to rows and image files."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sft.data.arrow_rows import ArrowTable, iterate_rows, open_table, read_first_values
from sft.data.cells import read_text
from sft.data.image_paths import resolve_image
from sft.data.problems import Problem, TrajectoryError
from sft.data.screenshots import inspect_bytes, read_screenshot, store_screenshot
from sft.data.table import CellError, Row, Table, build_cells, check_columns, refuse_doubled, split_source
from sft.file_kinds import is_picture

if TYPE_CHECKING:
    import pyarrow

PICTURE_NAMES = ("image_id", "screenshot", "image")  # in any letter case


def read_embedded(source: str | Path, image_root: str | Path | None = None) -> Table:
    """Read row-shaped data: the columns of the CSV, and the screenshot in a column of pictures.

    Embedded screenshots are written once, named by their content, to the cache of the Hub library; where a picture is
    a file's name in place of bytes, that file has to be below `image_root` (default: the folder). Without a column of
    pictures, `Image_id` is a path from there. Row numbers count as in a CSV of the same rows: the
    first one is 2.

    Raises:
        TrajectoryError: no such data set or split, columns that are missing, or more than one of pictures.
    """
    path = Path(source)
    table = open_table(source)
    columns = table.schema.names
    if "json_data" in columns:
        message = "found a task table (json_data); expected one row per step: run python -m sft.convert careflow"
        raise TrajectoryError([Problem(path, None, None, message)])
    refuse_doubled(columns, path)
    picture_column = find_picture_column(table)
    check_columns([*columns, *(["Image_id"] if picture_column else [])], path)
    read_columns = [name for name in columns if name != picture_column]
    default_root = path.parent if path.is_file() else split_source(source)[0]
    root = Path(image_root or default_root)
    if picture_column and "Image_id" in read_columns and picture_column.casefold() not in PICTURE_NAMES:
        _refuse_two_sources(table, root, picture_column)
    folder = find_cache() if picture_column else root
    rows: list[Row] = []
    bad_rows: list[Problem] = []
    digest = hashlib.sha256()
    bar = tqdm(iterate_rows(table), total=table.n_rows, desc=f"Reading {path.name}", unit="row", disable=None)
    for number, fields in enumerate(bar, start=2):
        picture = fields.pop(picture_column) if picture_column else None
        try:
            cells = build_cells(fields, read_columns)
            if picture_column:
                cells["Image_id"] = _store(picture, picture_column, folder, root)
        except CellError as error:
            task_id = read_text(str(fields.get("Task_id") or "")) or None
            bad_rows.append(Problem(path, number, error.column, str(error), task_id))
            continue
        rows.append((number, cells))
        digest.update(json.dumps(cells, sort_keys=True).encode("utf-8", "replace"))
    if not rows and not bad_rows:
        raise TrajectoryError([Problem(path, None, None, "found no rows; expected one row per step")])
    return Table(path, rows, digest.hexdigest(), folder, tuple(bad_rows))


def _refuse_two_sources(table: ArrowTable, root: Path, picture_column: str) -> None:
    """Make sure that a column of pictures is the screenshots where `Image_id` names files that are there too.

    Raises:
        TrajectoryError: it cannot be told which of the two a model is to see.
    """
    first = next(iterate_rows(table), {})
    name = str(first.get("Image_id") or "")
    try:
        names_file = resolve_image(name, root).is_file()
    except (ValueError, OSError):  # no path at all, or one too long for a file
        names_file = False
    if names_file:
        message = (
            f"found screenshots in the files that Image_id names, and pictures in the column {picture_column}; "
            "expected one of the two: remove that column, or name it image"
        )
        raise TrajectoryError([Problem(table.path, 1, picture_column, message)])


def find_picture_column(table: ArrowTable) -> str | None:
    """Return the column that holds the screenshots, or None: the only one of pictures, or the one of a known name.

    Raises:
        TrajectoryError: several columns hold pictures, and their names do not tell which is the screenshot.
    """
    known = [f.name for f in table.schema if f.name.casefold() in PICTURE_NAMES]
    found = [
        f.name
        for f in table.schema
        if _can_hold_pictures(f.type)
        and _holds_pictures(table.features.get(f.name), read_first_values(table, f.name), f.name in known)
    ]
    if "Image_id" in found:
        return "Image_id"
    chosen = [name for name in found if name in known] if len(found) > 1 else found
    if found and len(chosen) != 1:
        message = (
            f"found pictures in the columns {', '.join(found)}; expected them in one, or in one of the names "
            f"{', '.join(PICTURE_NAMES)}: rename the column of the screenshots, or remove the others"
        )
        raise TrajectoryError([Problem(table.path, 1, None, message)])
    return chosen[0] if chosen else None


def _can_hold_pictures(kind: "pyarrow.DataType") -> bool:
    """Return whether a column's type is bytes, `{"bytes", "path"}`, or a list of either."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return _can_hold_pictures(kind.value_type)
    if types.is_struct(kind):
        return "bytes" in (names := {f.name for f in kind}) and names <= {"bytes", "path"}
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_pictures(feature: Any, values: Sequence[Any], has_known_name: bool) -> bool:
    """Tell pictures from other bytes: by what `datasets` says of the column, or by how the first value begins."""
    if isinstance(feature, Mapping) and feature.get("_type") in ("List", "LargeList", "Sequence"):
        feature = feature.get("feature")
    kind = feature.get("_type") if isinstance(feature, Mapping) else None
    if kind == "Image" or (has_known_name and kind in (None, "Value")):
        return True
    if isinstance(kind, str) and kind != "Value":
        return False  # sound, video, documents: stored alike
    flat = (item for value in values for item in (value if isinstance(value, list) else [value]))
    return any(is_picture(data) for value in flat if (data := read_image_bytes(value)))


def read_image_bytes(value: Any) -> bytes | None:
    """Return the bytes of an image that is stored as bytes, or as `{"bytes", "path"}`; None where it has none."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    return bytes(value) if isinstance(value, (bytes, bytearray)) else None


def _read_picture(value: Any, column: str, root: Path) -> bytes | None:
    """Return the bytes of an image, or of the file below `root` that it names: a table may name any file.

    Raises:
        CellError: the file is not below `root`, or cannot be read.
    """
    data, name = read_image_bytes(value), value.get("path") if isinstance(value, Mapping) else None
    if data is not None or not name:
        return data
    base = str(Path(root).absolute())
    try:
        return read_screenshot(resolve_image(str(name).removeprefix(f"{base}{os.sep}"), root))
    except ValueError as error:
        raise CellError(column, f"{error}: give the folder that holds the screenshots as image_root") from error


def find_cache() -> Path:
    """Return the folder that embedded screenshots are written to, beside the Hub library's own cache."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME) / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _store(value: Any, column: str, folder: Path, root: Path) -> str:
    """Write a screenshot; return its file name.

    Raises:
        CellError: there is no picture, there are several, or it cannot be used.
    """
    if isinstance(value, list):
        if len(value) > 1:
            raise CellError(column, f"found {len(value)} pictures; expected one screenshot per step")
        value = value[0] if value else None
    data = _read_picture(value, column, root)
    if data is None:
        raise CellError(column, "found no image; expected a screenshot in every row")
    facts = inspect_bytes(data, "the embedded image", decode="never")
    if facts.problem:
        raise CellError(column, facts.problem)
    return store_screenshot(data, facts, folder)
