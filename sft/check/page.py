"""The page of a data file: every task and step as the model is trained on it, for a person to look through.

One file that opens from disk (`sft.pages`). Rows that the check refuses stand in it as they are in the file.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sft.actions import Action, format_action
from sft.agent import AgentConfig
from sft.batches.examples import Example
from sft.check.step_notes import Note, Notes, collect_notes, read_point
from sft.data.cells import Box, Grounding, Size, read_gold, read_grounding, read_text
from sft.data.hints import as_visible
from sft.data.image_paths import resolve_image
from sft.data.load import TaskSet
from sft.data.problems import Problem
from sft.data.rows import check_screenshots
from sft.data.screenshots import ScreenshotFacts, open_screenshot
from sft.data.table import Cells, Table
from sft.json_text import dump_json
from sft.pages.frame import PageImage, choose_width, embed_screenshot, link_screenshot, render_page

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_MAX_CELL_CHARS = 2_000
_N_TARGETS = 16
_N_LISTED = 40
_DOUBTS = {
    "label": "another row gives the same box on the same screenshot another target",
    "place": "another row has the same target at another place of the same screenshot",
}

Passage = tuple[str, str | None]  # role and text of a part of a prompt; the text of the screenshot is None
Passages = dict[Passage, int]  # each distinct one and its number: most of a prompt is in other prompts too


@dataclass(frozen=True)
class Checked:
    """What a check found out about a file, as far as it came: `table` and `tasks` are None where it did not."""

    agent: AgentConfig
    table: Table | None
    tasks: TaskSet | None
    examples: Sequence[Example]
    report: Mapping[str, Any]
    problems: Sequence[Problem]
    turn_end: str = ""  # the token that ends an answer, where a tokenizer is given


@dataclass(frozen=True)
class Page:
    """A page's text and what it says of its size: screenshots in it, their files' bytes and theirs in the page."""

    text: str
    n_steps: int
    n_images: int
    n_file_bytes: int
    n_embedded_bytes: int

    def describe(self, path: Path) -> str:
        """Return the line that tells a person where the page is and how large."""
        size, files = _as_megabytes(len(self.text.encode("utf-8", "replace"))), _as_megabytes(self.n_file_bytes)
        said = f"{path}: {size}, {self.n_steps:,} steps; {self.n_images:,} screenshots of {files}"
        if self.n_embedded_bytes:
            return f"{said} are in it, made small: {_as_megabytes(self.n_embedded_bytes)}"
        return f"{said} stay where they are; --embed puts small ones into the page" if self.n_images else said


def build_page(checked: Checked, folder: Path, embeds: bool) -> Page:
    """Build the page that will lie in `folder`; screenshots are linked from there, or embedded."""
    album = _Album()
    cells_of = dict(checked.table.rows) if checked.table else {}
    notes = collect_notes(checked.tasks, cells_of, checked.examples, checked.agent, checked.report, checked.problems)
    passages: Passages = {}
    tasks = _build_usable_tasks(checked, notes, album, passages) + _build_bad_tasks(checked, notes, album)
    tasks.sort(key=lambda task: task["steps"][0]["row"] if task["steps"] else 0)
    images = album.make_images(folder, embeds)
    data = {"tasks": tasks, "passages": list(passages), "turn_end": checked.turn_end}
    content = {
        "report": checked.report,
        "problems": checked.problems[:_N_LISTED],
        "n_more_problems": max(len(checked.problems) - _N_LISTED, 0),
        "warnings": checked.report.get("warnings", []),
        "doubts": _count_doubts(tasks),
        "rows": {step["row"] for task in tasks for step in task["steps"]},
        "facts": _list_facts(checked),
        "panels": _build_panels(checked) if checked.tasks else [],
    }
    text = render_page(_TEMPLATE, _dump(data), images, content, {"visible": as_visible})
    return Page(
        text,
        sum(len(task["steps"]) for task in tasks),
        len(images),
        sum(path.stat().st_size for path in album.files.values()),
        sum(len(image.data) for image in images),
    )


class _Album:
    """The distinct screenshots of a page, each by the SHA-256 of its content and the number that steps name."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self._numbers: dict[str, int] = {}

    def add(self, path: Path, facts: ScreenshotFacts | None) -> int | None:
        """Return the number of a screenshot, None of one that cannot be shown."""
        if facts is None or facts.problem is not None:
            return None
        self.files.setdefault(facts.sha256, path)
        return self._numbers.setdefault(facts.sha256, len(self._numbers))

    def make_images(self, folder: Path, embeds: bool) -> list[PageImage]:
        if not embeds:
            return [link_screenshot(path, folder) for path in self.files.values()]
        width = choose_width(len(self.files))
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL
            made = pool.map(lambda path: embed_screenshot(open_screenshot(path), width), self.files.values())
            return list(tqdm(made, total=len(self.files), desc="Embedding screenshots", unit="file", disable=None))


def _build_usable_tasks(checked: Checked, notes: Notes, album: _Album, passages: Passages) -> list[dict[str, Any]]:
    if checked.tasks is None:
        return []
    examples_of = groupby(checked.examples, key=lambda example: example.task_id)  # in the order of the tasks
    return [
        {
            "id": task.task_id,
            "goal": task.instruction,
            "application": task.application,
            "group": task.group,
            "notes": _list_notes(notes.by_task.get(task.task_id, ())),
            "steps": [
                _show_step(example, checked.tasks, notes.by_row.get(example.step.row, ()), album, passages)
                for example in examples
            ],
        }
        for task, (_, examples) in zip(checked.tasks.trajectories, examples_of, strict=True)
    ]


def _show_step(
    example: Example, tasks: TaskSet, notes: Sequence[Note], album: _Album, passages: Passages
) -> dict[str, Any]:
    step, facts, point = example.step, tasks.screenshots[example.step.image_path], read_point(example)
    counts = [example.n_prompt_tokens, example.n_answer_tokens, example.n_image_tokens]
    return {
        "row": step.row,
        "image_id": step.image_id,
        "image": album.add(step.image_path, facts),
        "box": _scale_box(step.grounding, facts.width_height),
        "point": point,
        **_show_action(step.gold.action),
        "also_right": [dump_json(format_action(action)) for action in step.also_right],
        "prompt": [passages.setdefault(passage, len(passages)) for passage in split_prompt(example)],
        "answer": example.completion,
        "n_tokens": None if None in counts else counts,
        "notes": _list_notes(notes),
    }


def split_prompt(example: Example) -> list[Passage]:
    """Return a prompt line by line.

    Where a tokenizer rendered the prompt, what the chat template puts around the texts has the role "template".
    """
    found: list[Passage] = []
    waiting: list[Passage] = []  # screenshots, whose tokens are the template's
    at = 0
    for role, text in ((m["role"], part.get("text")) for m in example.messages for part in m["content"]):
        if text is None:
            waiting.append((role, None))
            continue
        start = example.prompt.find(text, at)
        if start > at:
            found.append(("template", example.prompt[at:start]))
        at = start + len(text) if start >= 0 else at
        lines = [text] if role == "system" else text.split("\n")
        found += [*waiting, *((role, line) for line in lines)]
        waiting = []
    return [*found, *waiting, *([("template", example.prompt[at:])] if example.prompt[at:] else [])]


def _build_bad_tasks(checked: Checked, notes: Notes, album: _Album) -> list[dict[str, Any]]:
    """Return the tasks that cannot be used, from the cells of their rows: nothing of them is made into a prompt."""
    usable = {example.step.row for example in checked.examples}
    cells_of = {row: cells for row, cells in (checked.table.rows if checked.table else ()) if row not in usable}
    rows_of: dict[str, list[int]] = {}
    for row, cells in cells_of.items():
        rows_of.setdefault(read_text(cells["Task_id"]), []).append(row)
    for problem in checked.problems:  # rows without cells: they could not be laid out in columns
        if problem.row is not None and problem.row > 1 and problem.row not in usable and problem.row not in cells_of:
            rows = rows_of.setdefault(problem.task_id or "", [])
            rows += [problem.row] if problem.row not in rows else []
    paths = {row: _find_image(cells, checked.table) for row, cells in cells_of.items()}
    known = dict(checked.tasks.screenshots) if checked.tasks else {}
    known |= check_screenshots((p for p in paths.values() if p and p not in known), show_progress=True)
    tasks = []
    for task_id, rows in rows_of.items():
        steps = [
            _show_bad_row(row, cells_of.get(row, {}), paths.get(row), known, notes.by_row.get(row, ()), album)
            for row in sorted(rows)
        ]
        first = cells_of.get(min(rows), {})
        task = {
            "id": task_id,
            "goal": _cut(read_text(first.get("Instruction", ""))),
            "application": read_text(first.get("Application", "")),
            "group": read_text(first.get("Group", "")),
            "is_bad": True,
        }
        tasks.append({**task, "notes": _list_notes(notes.by_task.get(task_id, ())), "steps": steps})
    return tasks


def _show_bad_row(
    row: int,
    cells: Cells,
    path: Path | None,
    known: Mapping[Path, ScreenshotFacts],
    notes: Sequence[Note],
    album: _Album,
) -> dict[str, Any]:
    """Return what can be read of a row; its cells stand beside it whatever they hold."""
    facts = known[path] if path else None
    evidence = cells.get("Grounding", "")
    try:
        grounding = read_grounding(evidence)
    except ValueError:
        grounding, evidence = Grounding(), ""
    try:
        action = read_gold(cells.get("Output", ""), evidence, None).action
    except ValueError:
        action = Action("", "")
    image = album.add(path, facts) if path else None
    return {
        "row": row,
        "image_id": _cut(cells.get("Image_id", "")),
        "image": image,
        "box": _scale_box(grounding, facts.width_height) if facts and image is not None else None,
        "point": None,
        **_show_action(action),
        "cells": [[name, _cut(text)] for name, text in cells.items() if text],
        "notes": _list_notes(notes),
    }


def _find_image(cells: Cells, table: Table | None) -> Path | None:
    try:
        return resolve_image(cells["Image_id"], table.image_root.resolve()) if table else None
    except ValueError:
        return None


def _scale_box(grounding: Grounding, picture: Size) -> list[float] | None:
    """Return a box as [left, top, width, height] in percent of the screenshot; its screen may have another scale."""
    box: Box | None = grounding.bbox
    if box is None:
        return None
    width, height = grounding.screen_wh or picture
    shares = box[0] / width, box[1] / height, (box[2] - box[0]) / width, (box[3] - box[1]) / height
    return [round(100 * share, 3) for share in shares]


def _show_action(action: Action) -> dict[str, Any]:
    arguments = [[name, v if isinstance(v, str) else dump_json(v)] for name, v in action.arguments.items()]
    return {"action": action.kind, "target": action.target, "arguments": arguments}


def _list_notes(notes: Iterable[Note]) -> list[list[str]]:
    return [[note.level, note.kind, note.text] for note in notes]


def _list_facts(checked: Checked) -> list[tuple[str, str]]:
    """Return what the page's head says of the file and of how it was read."""
    report, agent = checked.report, checked.agent
    facts = [("file", str(report["data"]))]
    if checked.table:
        facts += [("image root", str(checked.table.image_root)), ("SHA-256", f"{checked.table.sha256[:16]}...")]
    memory = {True: "written by the model, in its answer", False: "written by rule"}[agent.writes_memory]
    facts += [("memory", memory), ("pixels per screenshot", f"{agent.min_pixels:,} to {agent.max_pixels:,}")]
    return [*facts, ("prompt version", agent.prompt_version)]


def _count_doubts(tasks: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, str]]:
    """Return what makes a label doubtful, as (kind of note, steps, words); what no step has is left out."""
    kinds = [{kind for _, kind, _ in step["notes"]} for task in tasks for step in task["steps"]]
    counts = Counter(kind for found in kinds for kind in found)
    return [(kind, counts[kind], words) for kind, words in _DOUBTS.items() if counts[kind]]


def _build_panels(checked: Checked) -> list[dict[str, Any]]:
    """Return what is counted on top, each bar as (label, count, filter, its value); a filter "" filters nothing."""
    report = checked.report
    targets = Counter(e.step.gold.action.target for e in checked.examples if e.step.gold.action.target)
    parts = [("Application", "application", report["applications"]), ("Group", "group", report["groups"])]
    sizes = list(report["screenshots"]["sizes"].items())
    panels = [
        _build_panel("Actions", [(kind, n, "action", kind) for kind, n in report["actions"].items()]),
        *(_build_part_panel(*part) for part in parts if len(part[2]) > 1 or part[0] == "Application"),
        _build_panel(
            f"Targets, {min(len(targets), _N_TARGETS)} most frequent of {len(targets):,}",
            [(target, n, "text", target) for target, n in targets.most_common(_N_TARGETS)],
        ),
        _build_histogram("Steps per task", report["steps_per_task"]),
        _build_panel("Screenshot sizes", [(size, n, "", "") for size, n in sizes[:8]]),
    ]
    for title, summary in (
        ("Tokens per prompt", report.get("prompt_tokens")),
        ("Tokens per answer", report.get("answer_tokens")),
        ("Tokens per screenshot", report["image_tokens"]["per_step"]),
        ("Elements per step", report.get("elements", {}).get("per_step")),
    ):
        if summary:
            panels.append(_build_histogram(title, summary))
    return panels


def _build_part_panel(title: str, name: str, parts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    bars = [(label or "(none)", part["steps"], name if label else "", label) for label, part in parts.items()]
    return _build_panel(title, bars)


def _build_histogram(title: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    bins = summary["histogram"]
    labels = [f"{b['from']:,}" + (f" to {b['to']:,}" if b["from"] < b["to"] else "") for b in bins]
    panel = _build_panel(title, [(label, b["n"], "", "") for label, b in zip(labels, bins)])
    return {**panel, "note": f"median {summary['median']:,g}, at most {summary['max']:,}"}


def _build_panel(title: str, bars: Sequence[tuple[str, int, str, str]]) -> dict[str, Any]:
    most = max((n for _, n, _, _ in bars), default=1)
    return {"title": title, "bars": [(*bar, round(100 * bar[1] / most, 1)) for bar in bars], "note": ""}


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CELL_CHARS else f"{text[:_MAX_CELL_CHARS]} ... ({len(text):,} characters)"


def _dump(data: Any) -> str:
    return json.dumps(_make_visible(data), separators=(",", ":"), allow_nan=False)


def _make_visible(value: Any) -> Any:
    """Return data whose texts show the characters that nobody sees."""
    if isinstance(value, str):
        return as_visible(value)
    if isinstance(value, dict):
        return {key: _make_visible(item) for key, item in value.items()}
    return [_make_visible(item) for item in value] if isinstance(value, (list, tuple)) else value


def _as_megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
