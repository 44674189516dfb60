"""Published files of a rollout: predictions.csv, metrics.json, details.json. Knows nothing of models or HTML."""

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from eval.rollouts.run_info import RunInfo
from eval.scoring.error_sources import find_root
from eval.scoring.matching import MATCHERS, Verdict, Verdicts, is_same_target
from sft.actions import format_action
from sft.data.table import format_csv
from sft.files import write_whole
from sft.json_text import dump_json
from sft.rates import Rate

_FORMULA = re.compile(
    r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
)  # those of full width too, as some spreadsheets take them
_NO_FORMULA = re.compile(r"[=+\-@]|[+-]?[0-9]+(?:\.[0-9]+)?")

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


def write_outputs(output_dir: Path, verdicts: Verdicts, metrics: Mapping[str, Any], run_info: RunInfo) -> None:
    """Write predictions.csv, metrics.json and details.json; each appears whole or not at all.

    Both JSON files carry `run_info` under "run", so that a number is never without what was run.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    write_whole(output_dir / "predictions.csv", format_predictions(verdicts))
    write_whole(output_dir / "metrics.json", format_json({**metrics, "run": run_info.to_json()}, indent=2))
    tasks = ",\n".join(format_json(task) for task in build_details(verdicts))  # one per line: indenting is slow
    write_whole(output_dir / "details.json", f'{{"run":{format_json(run_info.to_json())},"tasks":[\n{tasks}\n]}}\n')


def format_predictions(verdicts: Verdicts) -> str:
    """Return predictions.csv: one row per step in the published columns, in natural task order.

    The memory columns hold what the step's prompt showed. Cells hold what the data or the model wrote, but that a text
    which a spreadsheet would take for a formula has an apostrophe before it (`_quote_formula`).
    """
    rows = map(_build_prediction, chain(*verdicts.values()))
    return format_csv(PREDICTION_COLUMNS, ({k: _quote_formula(str(v)) for k, v in row.items()} for row in rows))


def build_details(verdicts: Verdicts) -> list[dict[str, Any]]:
    """Return the tasks of details.json: goal, verdicts, and every step with all that was kept of it."""
    return [
        {
            "task_id": task_id,
            "application": task[0].step.application,
            "group": task[0].step.group,
            "goal": task[0].step.instruction,
            "n_steps": len(task),
            "n_right": {name: sum(verdict.is_right(name) for verdict in task) for name in MATCHERS},
            "steps": [build_step_details(verdict) for verdict in task],
        }
        for task_id, task in verdicts.items()
    ]


def build_step_details(verdict: Verdict) -> dict[str, Any]:
    """Return one step of details.json; `outcomes` has its outcome under each matcher, `roots` the root of an error."""
    step = verdict.step
    return {
        "index": step.index,
        "image_id": step.image_id,
        "bbox": step.bbox,
        "screen": step.screen,
        "gold": format_action(step.gold),
        "also_right": [format_action(action) for action in step.also_right],
        "predicted": format_action(step.predicted) if step.predicted else None,
        "outcomes": dict(verdict.outcomes),
        "roots": {name: root for name in MATCHERS if (root := find_root(verdict, name))},
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
    write = partial(
        json.dumps,
        ensure_ascii=ensure_ascii,
        allow_nan=False,
        indent=indent,
        separators=separators,
        default=Rate.as_json,
    )
    try:
        return write(value)
    except ValueError:
        return write(_without_infinite(value))


def _build_prediction(verdict: Verdict) -> dict[str, Any]:
    step, predicted = verdict.step, verdict.step.predicted
    return {
        "Task_id": step.task_id,
        "Slide_number": step.index + 1,
        "Predicted_Action": predicted.kind if predicted else "",
        "Predicted_Target": predicted.target if predicted else "",
        "Predicted_Output_JSON": dump_json(format_action(predicted)) if predicted else "",
        "Short_Term_Memory": dump_json(step.memory_before.get("short_term", {})),
        "Long_term_Memory": dump_json(step.memory_before.get("long_term", {})),
        "Ground_Truth_Action": step.gold.kind,
        "Ground_Truth_Target": step.gold.target,
        "Ground_Truth_Output_JSON": dump_json(format_action(step.gold)),
        "Action_Match": verdict.is_right("action"),
        "Target_Exact_Match": predicted is not None
        and predicted.target in {action.target for action in (step.gold, *step.also_right)},
        "Target_Semantic_Match": predicted is not None
        and any(is_same_target(wanted, predicted) for wanted in verdict.accepted),
        "Combined_Match": verdict.is_right("action_target"),
        "Image_id": step.image_id,
    }


def _quote_formula(text: str) -> str:
    """Return a cell that no spreadsheet computes: a formula can fetch an address or start a program.

    A reader takes one apostrophe away where `'` and one of these characters begin a cell; so does a text that begins
    so itself get one more. A number, and the name of a button such as "+", are left alone.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NO_FORMULA.fullmatch(text) else text


def _without_infinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _without_infinite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinite(entry) for entry in value]
    return value
