"""What a data file holds, in numbers: the content of `sft.check`'s report. Prints nothing, loads no model."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

from sft.agent import AgentConfig
from sft.data.boxes import count_points, find_doubts
from sft.data.elements_file import find_maker
from sft.data.hints import find_hidden_characters, find_personal_data
from sft.data.load import TaskSet
from sft.data.memory_audit import MemoryAudit, MemoryCell, audit_memory, audit_shown_memory
from sft.data.overlap import find_duplicate_goals
from sft.data.steps import Step, Trajectory
from sft.data.table import MEMORY_COLUMNS, Cells, Table
from sft.json_text import dump_json
from sft.models.token_counts import DEFAULT_PIXELS_PER_TOKEN, build_image_counter, read_pixels_per_token
from sft.prompts import limit_elements

_MAX_ROWS = 20


def describe(table: Table, tasks: TaskSet, agent: AgentConfig, tokenizer: Path | None = None) -> dict[str, Any]:
    """Count what is in the usable tasks of a file; every number of `sft.check` but those that need a tokenizer.

    Image tokens are those of the checkpoint folder `tokenizer`, or of Qwen3-VL.
    """
    steps = [step for t in tasks.trajectories for step in t.steps]
    cells_of = dict(table.rows)
    gaps = list(_find_gaps(tasks.trajectories, cells_of))
    audits = audit_columns(tasks.trajectories, cells_of)
    final = {a.name for a in agent.actions if a.is_final}
    return {
        "data": str(tasks.path),
        "sha256": tasks.sha256,
        "image_root": str(tasks.image_root),
        "n_tasks": len(tasks.trajectories),
        "n_steps": len(steps),
        "n_quarantined_tasks": len(tasks.quarantined),
        "n_quarantined_rows": sum(len(q.rows) for q in tasks.quarantined),
        "steps_per_task": summarise([len(t.steps) for t in tasks.trajectories]),
        "applications": _count_parts(tasks.trajectories, "application"),
        "groups": _count_parts(tasks.trajectories, "group"),
        "actions": dict(Counter(s.gold.action.kind for s in steps).most_common()),
        "majority_share": Counter(s.gold.action.kind for s in steps).most_common(1)[0][1] / len(steps),
        "n_tasks_with_final_action": sum(t.steps[-1].gold.action.kind in final for t in tasks.trajectories),
        "steps_without_memory": sum(s.gold.short_term is None or s.gold.long_term is None for s in steps),
        "steps_with_also_right": sum(bool(s.also_right) for s in steps),
        "step_numbers_missing": sum(gap["found"] - gap["expected"] for gap in gaps),
        "step_number_gaps": gaps,
        "screenshots": describe_screenshots(tasks, steps),
        "image_tokens": _describe_image_tokens(tasks, steps, agent, tokenizer),
        "memory_columns": [asdict(audit) for audit in audits],
        "duplicate_goals": find_duplicate_goals(tasks.trajectories),
        "personal_data": find_personal_data(steps, cells_of),
        "hidden_characters": find_hidden_characters(steps, cells_of),
        "boxes": describe_boxes(tasks, steps),
        **({"points": describe_points(steps, agent)} if agent.points else {}),
        **({"elements": describe_elements(tasks, steps, agent)} if any(s.elements for s in steps) else {}),
    }


def describe_elements(tasks: TaskSet, steps: Sequence[Step], agent: AgentConfig) -> dict[str, Any]:
    """Count detected elements: those of every step, those that its prompt leaves out, and what made them.

    `n_unlike` counts screenshots with other elements in one row than in another, which no reading of pixels gives.
    """
    lists_of: dict[str, set[str]] = {}
    for step in steps:
        lists_of.setdefault(step.image_sha256, set()).add(dump_json(list(step.elements)))
    left_out = [len(s.elements) - len(limit_elements(s.elements, agent)) for s in steps]
    return {
        "made_by": find_maker(tasks.path),
        "per_step": summarise([len(s.elements) for s in steps]),
        "n_steps_without": sum(not s.elements for s in steps),
        "n_unlike": sum(len(lists) > 1 for lists in lists_of.values()),
        "n_left_out": sum(left_out),
        "n_steps_with_left_out": sum(n > 0 for n in left_out),
    }


def describe_screenshots(tasks: TaskSet, steps: Sequence[Step]) -> dict[str, Any]:
    """Count distinct contents (not files), and how many steps share one; `notes` has one entry a file."""
    facts = {path: fact for path, fact in tasks.screenshots.items() if fact.problem is None}
    steps_of = Counter(facts[s.image_path].sha256 for s in steps)
    shared = sum(n for n in steps_of.values() if n > 1)
    sizes = Counter("{}x{}".format(*facts[s.image_path].width_height) for s in steps)
    first = {s.image_path: s for s in reversed(steps)}
    noted = sorted((step.row, step.image_id, facts[path].note) for path, step in first.items() if facts[path].note)
    return {
        "n_files": len({s.image_path for s in steps}),
        "n_distinct": len(steps_of),
        "n_steps_that_share": shared,
        "steps_per_screenshot": summarise(list(steps_of.values())),
        "sizes": dict(sizes.most_common()),
        "notes": [{"row": row, "image_id": image_id, "note": note} for row, image_id, note in noted],
    }


def describe_points(steps: Sequence[Step], agent: AgentConfig) -> dict[str, Any]:
    """Count the answers that are to carry a point, and those without one; name the first rows of these."""
    n_pointing, rows = count_points(steps, agent.actions)
    return {"n_steps": n_pointing, "n_without": len(rows), "rows_without": rows[:_MAX_ROWS]}


def describe_boxes(tasks: TaskSet, steps: Sequence[Step]) -> dict[str, dict[str, Any]]:
    """Count the boxes and screens that cannot be right, by what is wrong with them, and name the first rows."""
    rows_of: dict[str, list[int]] = {}
    for step in sorted(steps, key=lambda s: s.row):
        picture = tasks.screenshots[step.image_path].width_height
        for doubt in find_doubts(step.grounding.bbox, step.grounding.screen_wh, picture):
            rows_of.setdefault(doubt, []).append(step.row)
    return {doubt: {"n": len(rows), "rows": rows[:_MAX_ROWS]} for doubt, rows in rows_of.items()}


def audit_columns(trajectories: Sequence[Trajectory], cells_of: Mapping[int, Cells]) -> list[MemoryAudit]:
    """Audit the published memory columns that are there, and the memory in `Output` as the next step is shown it."""
    present = [c for c in MEMORY_COLUMNS if any(c in cells_of[t.steps[0].row] for t in trajectories)]
    audits = [
        audit_memory(column, (c for t in trajectories for c in _read_column(t, cells_of, column)))
        for column in present
    ]
    shown = audit_shown_memory(trajectories)
    return [*audits, shown] if shown.verdict != "empty" else audits


def summarise(values: Sequence[int]) -> dict[str, Any]:
    """Return least, median, mean, largest and the counts of up to twelve equal bins."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // 12))
    bins = Counter((value - low) // width for value in values)
    histogram = [
        {"from": low + i * width, "to": min(low + (i + 1) * width - 1, high), "n": bins[i]}
        for i in range((high - low) // width + 1)
    ]
    return {"min": low, "median": median(values), "mean": round(mean(values), 2), "max": high, "histogram": histogram}


def _describe_image_tokens(
    tasks: TaskSet, steps: Sequence[Step], agent: AgentConfig, tokenizer: Path | None
) -> dict[str, Any]:
    count = build_image_counter(tokenizer, agent)
    counts = [count(*tasks.screenshots[s.image_path].width_height) for s in steps]
    pixels_per_token = read_pixels_per_token(tokenizer) if tokenizer else DEFAULT_PIXELS_PER_TOKEN
    budget = {"min_pixels": agent.min_pixels, "max_pixels": agent.max_pixels, "pixels_per_token": pixels_per_token}
    return {**budget, "total": sum(counts), "per_step": summarise(counts)}


def _count_parts(trajectories: Sequence[Trajectory], name: str) -> dict[str, dict[str, int]]:
    tasks: Counter[str] = Counter(getattr(t, name) for t in trajectories)
    steps: Counter[str] = Counter()
    for t in trajectories:
        steps[getattr(t, name)] += len(t.steps)
    return {part: {"tasks": n, "steps": steps[part]} for part, n in tasks.most_common()}


def _find_gaps(trajectories: Sequence[Trajectory], cells_of: Mapping[int, Cells]) -> Iterator[dict[str, Any]]:
    """Yield every step whose number does not follow on the one before it, the first one on 0."""
    for t in trajectories:
        expected = 1
        for step in t.steps:
            text = cells_of[step.row].get("Slide_number", "").strip().partition(".")[0]
            if text and int(text) > expected:
                yield {"task_id": t.task_id, "row": step.row, "found": int(text), "expected": expected}
            expected = int(text or 0) + 1


def _read_column(trajectory: Trajectory, cells_of: Mapping[int, Cells], column: str) -> Iterator[MemoryCell]:
    actions = [s.gold.action for s in trajectory.steps]
    for i, step in enumerate(trajectory.steps):
        text = cells_of[step.row].get(column, "")
        yield MemoryCell(step.row, text, actions[i], tuple(actions[:i]), trajectory.instruction)
