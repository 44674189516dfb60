"""JSON Lines, or one list of objects, to rows of text cells. Opens no file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.data.cells import read_text
from sft.data.csv_text import decode_text
from sft.data.literals import read_literal
from sft.data.problems import Problem, TrajectoryError
from sft.data.sources import CellError, Row, build_cells, check_columns


def parse_json_rows(data: bytes, path: Path) -> tuple[Sequence[Row], tuple[Problem, ...]]:
    """Return one row an object, and the problems of lines that are none; a row is numbered as its line, from 1.

    In one list of objects (`[{...}, ...]`) the objects are counted. A null is what the user wrote, and stays.

    Raises:
        TrajectoryError: the text is no such table, or lacks one of the five columns.
    """
    objects, bad_rows = _read_objects(decode_text(data, path), path)
    columns = list(dict.fromkeys(name for _, fields in objects for name in fields))
    check_columns(columns, path)
    rows: list[Row] = []
    for number, fields in objects:
        try:
            rows.append((number, build_cells(fields, columns)))
        except CellError as error:
            task_id = read_text(str(fields.get("Task_id") or "")) or None
            bad_rows.append(Problem(path, number, error.column, str(error), task_id))
    return rows, tuple(bad_rows)


def split_lines(text: str) -> list[str]:
    """Part a text at the line ends of any system; other characters that `str.splitlines` parts at stand in texts."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_line(line: str) -> dict[str, Any]:
    """Read one line of JSON Lines.

    Raises:
        ValueError: what was found and what was expected.
    """
    fields = read_literal(line)
    if not isinstance(fields, dict):
        raise ValueError(f"found {type(fields).__name__}; expected one object a line")
    return fields


def _read_objects(text: str, path: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[Problem]]:
    if text.lstrip().startswith("["):
        return _read_list(text, path), []
    objects, problems = [], []
    for number, line in enumerate(split_lines(text), start=1):
        try:
            if line.strip():
                objects.append((number, read_line(line)))
        except ValueError as error:
            problems.append(Problem(path, number, None, str(error)))
    if not objects:
        message = "found JSON that is neither one object a line nor a list of objects; expected one of the two"
        raise TrajectoryError([Problem(path, None, None, message)])
    return objects, problems


def _read_list(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TrajectoryError([Problem(path, None, None, f"found broken JSON ({error}); restore the file")]) from error
    if not items or not all(isinstance(item, dict) for item in items):
        raise TrajectoryError([Problem(path, None, None, "found no list of objects; expected one object a step")])
    return list(enumerate(items, start=1))
