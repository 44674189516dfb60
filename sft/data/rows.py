"""Rows of one task to its steps, and what is wrong with them. Opens no file but through `sft.data.screenshots`."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from sft.actions import ActionType, find_action_type
from sft.data.boxes import point_at_box
from sft.data.cells import (
    MAX_CELL_CHARS,
    read_also_right,
    read_application,
    read_elements,
    read_gold,
    read_grounding,
    read_name,
    read_text,
)
from sft.data.image_paths import MAX_NAME_CHARS, resolve_image, suggest_names
from sft.data.literals import is_missing
from sft.data.problems import MAX_PROBLEMS_SHOWN, Problem
from sft.data.screenshots import Decode, ScreenshotFacts, read_facts
from sft.data.steps import Step, Trajectory
from sft.data.table import Cells, Row, Table

MAX_DECODED = 64  # screenshots that are decoded whatever their checksums say: all would take ten times as long

T = TypeVar("T")


def check_screenshots(paths: Iterable[Path], show_progress: bool) -> dict[Path, ScreenshotFacts]:
    """Check every file once, in threads (Pillow and hashlib release the GIL).

    All are decoded but opaque PNGs behind the first files: their checksums prove them as they were written.
    """
    unique = list(dict.fromkeys(paths))
    decode: Iterable[Decode] = chain(repeat("always", MAX_DECODED), repeat("if_unproven"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        facts = pool.map(read_facts, unique, decode)
        bar = tqdm(
            facts, total=len(unique), desc="Checking screenshots", unit="file", disable=None if show_progress else True
        )
        return dict(zip(unique, bar))


class RowReader:
    """Turns the rows of a table into trajectories and collects what is wrong with them in `problems`.

    `actions` None takes actions of any name.
    """

    def __init__(self, table: Table, actions: Sequence[ActionType] | None, needs_elements: bool = False):
        self.path, self.root = table.path, table.image_root.resolve()
        self.actions, self.needs_elements = actions, needs_elements
        self.problems: list[Problem] = []
        self._paths: dict[str, Path | ValueError] = {}
        self._n_suggested = 0

    def find_images(self, rows: Iterable[Row]) -> list[Path]:
        """Return the screenshots that rows name, where they name one."""
        found = (self._find_image(cells["Image_id"]) for _, cells in rows)
        return [path for path in found if isinstance(path, Path)]

    def read_task(
        self, task_id: str, rows: Sequence[Row], screenshots: Mapping[Path, ScreenshotFacts]
    ) -> Trajectory | None:
        """Return the task, or None where a row has a problem; problems are collected, never raised."""
        known = len(self.problems)
        if len(task_id) > MAX_NAME_CHARS:
            self._report(task_id, rows[0][0], "Task_id", f"found {len(task_id)} characters; expected a short id")
        rows = self._order(task_id, rows)
        steps = [self._read_step(task_id, i, row, screenshots) for i, row in enumerate(rows)]
        for column in ("Instruction", "Application", "Group"):
            self._check_same(task_id, rows, column)
        for column in ("Task_id", "Application", "Group"):
            self._check_name(task_id, *rows[0], column)
        self._check_instruction(task_id, *rows[0])
        self._check_final(task_id, steps)
        self._check_images(task_id, steps, screenshots)
        if len(self.problems) > known:
            return None
        first = rows[0][1]
        application = _read_label(first, "Application") or read_application(first["Grounding"])
        steps_of_task = tuple(s for s in steps if s)
        instruction = read_text(first["Instruction"])
        return Trajectory(task_id, instruction, application, _read_label(first, "Group"), steps_of_task)

    def _report(self, task_id: str, row: int, column: str, message: str) -> None:
        self.problems.append(Problem(self.path, row, column, message, task_id))

    def _order(self, task_id: str, rows: Sequence[Row]) -> Sequence[Row]:
        """Sort by Slide_number where the column is there; file order is the order of steps where it is not."""
        if "Slide_number" not in rows[0][1]:
            return rows
        first_row_of: dict[int, int] = {}
        keyed: list[tuple[int, Row]] = []
        for row, cells in rows:
            text = cells["Slide_number"].strip()
            number = int(text.partition(".")[0]) if re.fullmatch(r"[0-9]{1,6}(\.0)?", text) else 0
            if number < 1:
                self._report(task_id, row, "Slide_number", f"found {text[:40]!r}; expected a whole number from 1 on")
                return rows
            if number in first_row_of:
                message = f"found step {number} again (first in row {first_row_of[number]}); expected it once"
                self._report(task_id, row, "Slide_number", message)
            first_row_of.setdefault(number, row)
            keyed.append((number, (row, cells)))
        return [row for _, row in sorted(keyed, key=lambda entry: entry[0])]

    def _check_same(self, task_id: str, rows: Sequence[Row], column: str) -> None:
        first_row, first = rows[0][0], read_text(rows[0][1].get(column, ""))
        for row, cells in rows[1:]:
            if (found := read_text(cells.get(column, ""))) != first:
                expected = f"expected the same text as row {first_row} of this task: {first[:60]!r}"
                self._report(task_id, row, column, f"found {found[:60]!r}; {expected}")

    def _check_name(self, task_id: str, row: int, cells: Cells, column: str) -> None:
        try:
            read_name(cells.get(column, ""))
        except ValueError as error:
            self._report(task_id, row, column, str(error))

    def _check_instruction(self, task_id: str, row: int, cells: Cells) -> None:
        text = cells["Instruction"].strip()
        length = len(text)
        if is_missing(text):
            found = f"found {text!r}, a missing value" if text else "found an empty cell"
            self._report(task_id, row, "Instruction", f"{found}; expected the user's goal")
        elif length > MAX_CELL_CHARS:
            self._report(task_id, row, "Instruction", f"found {length} characters; expected at most {MAX_CELL_CHARS}")

    def _check_final(self, task_id: str, steps: Sequence[Step | None]) -> None:
        for step in filter(None, steps[:-1]):
            for column, answers in (("Output", [step.gold.action]), ("Also_Right", step.also_right)):
                kinds = [find_action_type(action.kind, self.actions or ()) for action in answers]
                if final := next((kind for kind in kinds if kind and kind.is_final), None):
                    message = f"found {final.name} before the last step of task {task_id[:60]}; expected it last"
                    self._report(task_id, step.row, column, message)

    def _check_images(
        self, task_id: str, steps: Sequence[Step | None], screenshots: Mapping[Path, ScreenshotFacts]
    ) -> None:
        first_row_of: dict[Path, int] = {}
        for step in steps:
            message = screenshots[step.image_path].problem if step else None
            if step and message and first_row_of.setdefault(step.image_path, step.row) == step.row:
                hint = "" if screenshots[step.image_path].sha256 else self._suggest(step)
                self._report(task_id, step.row, "Image_id", message + hint)

    def _suggest(self, step: Step) -> str:
        """Return the name that a missing screenshot's may be meant for; of the first ones, since it takes a search."""
        self._n_suggested += 1
        return suggest_names(step.image_id, self.root) if self._n_suggested <= MAX_PROBLEMS_SHOWN else ""

    def _read_step(
        self, task_id: str, index: int, numbered: Row, screenshots: Mapping[Path, ScreenshotFacts]
    ) -> Step | None:
        row, cells = numbered

        def read(column: str, function: Callable[[], T]) -> T | None:
            try:
                return function()
            except ValueError as error:
                self._report(task_id, row, column, str(error))
                return None

        grounding = read("Grounding", lambda: read_grounding(cells["Grounding"]))
        evidence = "" if grounding is None else cells["Grounding"]  # a broken one is reported once, as what it is
        gold = read("Output", lambda: read_gold(cells["Output"], evidence, self.actions))
        elements = read("Detected_Elements", lambda: read_elements(cells.get("Detected_Elements", "")))
        also_right = read("Also_Right", lambda: read_also_right(cells.get("Also_Right", ""), self.actions))
        image_path = self._find_image(cells["Image_id"])
        if isinstance(image_path, ValueError):
            self._report(task_id, row, "Image_id", str(image_path))
            return None
        if gold is None or grounding is None or elements is None or also_right is None:
            return None
        facts = screenshots[image_path]
        if facts.problem is None:
            give_point = partial(point_at_box, gold, grounding, facts.width_height, self.actions or ())
            if (pointing := read("Grounding", give_point)) is None:
                return None
            gold, grounding = pointing
        sha256, image_id = facts.sha256, cells["Image_id"].strip()
        return Step(task_id, index, row, image_path, image_id, gold, grounding, sha256, elements, also_right)

    def _find_image(self, cell: str) -> Path | ValueError:
        if cell not in self._paths:
            try:
                self._paths[cell] = resolve_image(cell, self.root)
            except ValueError as error:
                self._paths[cell] = error
        return self._paths[cell]


def _read_label(cells: Cells, column: str) -> str:
    """Return what a task is grouped by; pandas' spelling of a missing value is no label."""
    label = read_text(cells.get(column, ""))
    return "" if label in ("nan", "NaN", "<NA>", "NaT") else label
