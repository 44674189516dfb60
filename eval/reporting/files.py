"""Published files of a rollout: predictions.csv, metrics.json, details.json. Knows nothing of models or HTML."""

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eval.rollouts.run_info import RunInfo
from eval.scoring.matching import MATCHERS, is_same_target, judge_step
from eval.scoring.metrics import group_by_task
from eval.step_result import StepResult
from sft.memory import dump_json

PREDICTION_COLUMNS = (
    "Task_id",
    "Slide_number",
    "Predicted_Action",
    "Predicted_Target",
    "Predicted_Output_JSON",
    "Short_Term_Memory",
    "Long_term_Memory",
    "Ground_Truth_Action",
    "Ground_Truth_Target",
    "Ground_Truth_Output_JSON",
    "Action_Match",
    "Target_Exact_Match",
    "Target_Semantic_Match",
    "Combined_Match",
    "Image_id",
)


def write_outputs(
    output_dir: Path, results: Sequence[StepResult], metrics: Mapping[str, Any], run_info: RunInfo
) -> None:
    """Write predictions.csv, metrics.json and details.json; each appears whole or not at all.

    Both JSON files carry `run_info` under "run", so that a number is never without what was run.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(output_dir / "predictions.csv", format_predictions(results))
    write_text(output_dir / "metrics.json", format_json({**metrics, "run": run_info.to_json()}, indent=2))
    tasks = ",\n".join(format_json(task) for task in build_details(results))  # one a line: indenting is slow
    write_text(output_dir / "details.json", f'{{"run":{format_json(run_info.to_json())},"tasks":[\n{tasks}\n]}}\n')


def format_predictions(results: Sequence[StepResult]) -> str:
    """Return predictions.csv: one row a step in the published columns, in natural task order.

    The memory columns hold what the step's prompt showed. Cells hold what the data or the model wrote, unchanged: a
    text that a spreadsheet would take for a formula is not altered here.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, PREDICTION_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for task in group_by_task(results).values():
        writer.writerows(_build_prediction(step) for step in task)
    return file.getvalue()


def build_details(results: Sequence[StepResult]) -> list[dict[str, Any]]:
    """Return the tasks of details.json: goal, verdicts, and every step with all that was kept of it."""
    return [
        {
            "task_id": task_id,
            "application": task[0].application,
            "group": task[0].group,
            "goal": task[0].instruction,
            "n_steps": len(task),
            "n_right": {
                name: sum(judge_step(step, matcher) == "right" for step in task) for name, matcher in MATCHERS.items()
            },
            "steps": [build_step_details(step) for step in task],
        }
        for task_id, task in group_by_task(results).items()
    ]


def build_step_details(step: StepResult) -> dict[str, Any]:
    """Return one step of details.json; `outcomes` has its outcome under each matcher."""
    return {
        "index": step.index,
        "image_id": step.image_id,
        "bbox": step.bbox,
        "screen": step.screen,
        "gold": step.gold,
        "predicted": step.predicted,
        "outcomes": {name: judge_step(step, matcher) for name, matcher in MATCHERS.items()},
        "gold_memory": step.gold_memory,
        "memory_before": step.memory_before,
        "memory_after": step.memory_after,
        "raw_text": step.raw_text,
        "parse_status": step.parse_status,
        "parse_problem": step.parse_problem,
        "left_out": step.left_out,
        "error": step.error,
        "finish_reason": step.finish_reason,
        "n_prompt_tokens": step.n_prompt_tokens,
        "n_answer_tokens": step.n_answer_tokens,
        "latency_s": step.latency_s,
        "said_elsewhere": step.said_elsewhere,
    }


def format_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """Write JSON that every reader takes: a number that JSON lacks (NaN, infinity) becomes its name as text."""
    separators = (",", ":") if indent is None else None
    write = partial(json.dumps, ensure_ascii=ensure_ascii, allow_nan=False, indent=indent, separators=separators)
    try:
        return write(value)
    except ValueError:
        return write(_without_infinite(value))


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name beside it, then rename it: a reader never sees half a file.

    Half characters (lone surrogates), which a model's JSON can name but UTF-8 cannot hold, become "?".
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _build_prediction(step: StepResult) -> dict[str, Any]:
    predicted = step.predicted or {}
    is_right = {name: judge_step(step, matcher) == "right" for name, matcher in MATCHERS.items()}
    return {
        "Task_id": step.task_id,
        "Slide_number": step.index + 1,
        "Predicted_Action": predicted.get("action", ""),
        "Predicted_Target": predicted.get("target", ""),
        "Predicted_Output_JSON": dump_json(predicted) if predicted else "",
        "Short_Term_Memory": dump_json(step.memory_before.get("short_term", {})),
        "Long_term_Memory": dump_json(step.memory_before.get("long_term", {})),
        "Ground_Truth_Action": step.gold["action"],
        "Ground_Truth_Target": step.gold.get("target", ""),
        "Ground_Truth_Output_JSON": dump_json(step.gold),
        "Action_Match": is_right["action"],
        "Target_Exact_Match": bool(predicted) and predicted.get("target", "") == step.gold.get("target", ""),
        "Target_Semantic_Match": bool(predicted) and is_same_target(step.gold, predicted),
        "Combined_Match": is_right["action_target"],
        "Image_id": step.image_id,
    }


def _without_infinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _without_infinite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinite(entry) for entry in value]
    return value
