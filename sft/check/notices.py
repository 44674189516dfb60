"""From the report of `sft.check` to sentences: what a person should look at before training. Reads no file."""

from collections.abc import Mapping
from typing import Any

from sft.data.boxes import describe_missing_points
from sft.data.table import MEMORY_COLUMNS

_MAX_EXAMPLES = 5
BOX_DOUBTS = {
    "shares": ("a box of shares from 0 to 1 on a screen of pixels", "multiply it out to pixels."),
    "no area": ("a box without area", "is a point or a line meant?"),
    "outside": ("a box outside its screen", "is it of another screen, or of another scale?"),
    "shape": ("a screen of another shape than the screenshot", "its boxes lie elsewhere on the picture."),
}


def list_warnings(report: Mapping[str, Any], shows_memory: bool) -> list[str]:
    """Say in sentences what a person should look at before training; none of it makes a row unusable.

    `shows_memory` says whether prompts show the memory in `Output`; where that leaks, its rows are problems then.
    """
    warnings = []
    if n := report["step_numbers_missing"]:
        first = report["step_number_gaps"][0]
        warnings.append(
            f"{n} step numbers are left out inside tasks: the steps there were lost before this file. The first: row "
            f"{first['row']}, task {first['task_id']}, Slide_number {first['found']}; expected {first['expected']}."
        )
    if notes := report["screenshots"]["notes"]:
        first = notes[0]
        more = f" So of {len(notes) - 1} more screenshots; --json lists them all." if len(notes) > 1 else ""
        warnings.append(f"Row {first['row']}, {first['image_id']}: {first['note']}.{more}")
    if report["steps_without_memory"]:
        warnings.append(
            f"{report['steps_without_memory']} steps carry no memory in Output: train with memory_writer: rule, or "
            "rebuild it with python -m sft.convert records."
        )
    if n := report["n_tasks"] - report["n_tasks_with_final_action"]:
        warnings.append(f"{n} tasks do not end with a final action such as COMPLETE: they may be cut short.")
    for audit in report["memory_columns"]:
        if audit["verdict"] in ("same-row", "mixed"):
            told = f"{audit['n_own']} of {audit['n_cells']} cells tell of the step they stand at."
            warnings.append(f"{audit['column']}: {told} {_tell_use(audit['column'], shows_memory)}")
    for group in report["duplicate_goals"][:_MAX_EXAMPLES]:
        alike = "goals that look alike, in other characters" if group["differ"] else "the same goal"
        warnings.append(f"Tasks {', '.join(group['tasks'][:6])} have {alike}: keep them in one part of a split.")
    if (n := len(report["duplicate_goals"]) - _MAX_EXAMPLES) > 0:
        warnings.append(f"{n} more goals are shared by several tasks.")
    for hint in report["personal_data"]:
        shown = ", ".join(example["text"] for example in hint["examples"][:3])
        warnings.append(
            f"{hint['column']}: {hint['n']} times a {hint['kind']} ({hint['n_distinct']} distinct: {shown}; "
            f"first in row {hint['examples'][0]['row']}): personal data?"
        )
    if hits := report["hidden_characters"]:
        first = hits[0]
        warnings.append(
            f"{len(hits)} cells hold characters nobody sees; the first: {first['character']} in row {first['row']}, "
            f"{first['column']}."
        )
    for doubt, found in report["boxes"].items():
        rows = ", ".join(map(str, found["rows"][:_MAX_EXAMPLES])) + (", ..." if found["n"] > _MAX_EXAMPLES else "")
        what, advice = BOX_DOUBTS[doubt]
        noun = "row" if found["n"] == 1 else "rows"
        warnings.append(f"Grounding: {what} in {found['n']} {noun} ({rows}): {advice}")
    if (points := report.get("points")) and points["n_without"]:
        warnings.append(_warn_of_points(points))
    if elements := report.get("elements"):
        warnings += _warn_of_elements(elements)
    if overlap := report.get("overlap"):
        warnings += _warn_of_overlap(overlap)
    return warnings


def _tell_use(column: str, shows_memory: bool) -> str:
    if column in MEMORY_COLUMNS:
        return "Published memory columns are never put into a prompt."
    if shows_memory:
        return "A prompt would hold its own answer: each row whose memory would be shown so is a problem."
    return "No prompt shows it: the memory is written by rule."


def _warn_of_points(points: Mapping[str, Any]) -> str:
    told = describe_missing_points(points["n_steps"], points["n_without"], points["rows_without"])
    if points["n_without"] == points["n_steps"]:
        return f"{told}: no training can learn points from this file."
    return f"{told}: they are trained on without one."


def _warn_of_elements(elements: Mapping[str, Any]) -> list[str]:
    warnings = []
    if elements["made_by"] is None:
        warnings.append(
            "Detected_Elements: nothing says what made them. Make sure that they come from the pixels alone, without "
            "the right answers, or make them with python -m sft.elements."
        )
    if n := elements["n_unlike"]:
        warnings.append(
            f"Detected_Elements: {n} screenshots have other elements in one row than in another, which pixels alone "
            "do not give: do they tell the answer?"
        )
    if n := elements["n_left_out"]:
        warnings.append(
            f"Detected_Elements: prompts leave out {n:,} elements, in {elements['n_steps_with_left_out']:,} steps: "
            "the last ones, beyond max_elements or max_element_tokens."
        )
    return warnings


def _warn_of_overlap(overlap: Mapping[str, Any]) -> list[str]:
    warnings = []
    if overlap["n_same_ids"]:
        warnings.append(f"{overlap['n_same_ids']} task ids are in {overlap['other']} too.")
    if overlap["n_same_screenshots"]:
        share = overlap["n_same_screenshots"] / overlap["n_screenshots"]
        warnings.append(
            f"{overlap['n_same_screenshots']} screenshots ({share:.0%}) are in {overlap['other']} too: to be expected "
            "where tasks begin on one screen."
        )
    return warnings
