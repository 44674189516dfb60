"""Step results made by hand for the tests of scoring and report."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from eval.scoring import matching
from eval.step_result import StepResult
from sft.actions import DEFAULT_ACTIONS, Action, ActionType
from sft.rates import Rate


def make_step(
    task_id: str,
    index: int,
    gold: str | dict[str, Any],
    predicted: str | dict[str, Any] | None,
    **fields: Any,
) -> StepResult:
    """Make one step; an action given as text stands for one on the target "OK"; None is unreadable."""
    values: dict[str, Any] = {
        "task_id": task_id,
        "index": index,
        "application": "OHIF Viewer",
        "group": "known_workflow",
        "instruction": f"Goal of {task_id}",
        "image_id": "screen.png",
        "gold": as_action(gold),
        "gold_memory": {"short_term": {}, "long_term": {}},
        "bbox": None,
        "screen": None,
        "memory_before": {"short_term": {}, "long_term": {}},
        "memory_after": {"short_term": {}, "long_term": {}},
        "raw_text": "{}",
        "parse_status": "no_json" if predicted is None else "ok",
        "parse_problem": "no JSON object in the answer" if predicted is None else "",
        "predicted": None if predicted is None else as_action(predicted),
        "error": None,
        "finish_reason": "stop",
        "n_prompt_tokens": 100,
        "n_answer_tokens": 10,
        "latency_s": 0.5,
    }
    return StepResult(**{**values, **fields})


def make_task(task_id: str, pairs: list[tuple[Any, Any]], **fields: Any) -> list[StepResult]:
    """Make a task from (gold, predicted) pairs."""
    return [make_step(task_id, index, gold, predicted, **fields) for index, (gold, predicted) in enumerate(pairs)]


def judge(results: Iterable[StepResult], actions: Sequence[ActionType] = DEFAULT_ACTIONS) -> matching.Verdicts:
    return matching.judge(results, actions)


def approx_rate(value: float, low: float, high: float) -> Rate:
    return Rate(pytest.approx(value), pytest.approx(low), pytest.approx(high))


RUN_INFO = {
    "mode": "own",
    "policy": "model",
    "model_path": "outputs/demo",
    "base_model": None,
    "test_csv": "test.csv",
    "image_root": None,
    "versions": {"torch": "2.13.0"},
    "fingerprint": "abc",
    "started": "2026-01-01T00:00:00+00:00",
    "finished": "2026-01-01T00:01:00+00:00",
}


def as_action(action: str | dict[str, Any]) -> Action:
    """Make an action of its type, on "OK", or of an object `{"action", "target", ...arguments}`."""
    if isinstance(action, str):
        return Action(action, "OK")
    arguments = {name: value for name, value in action.items() if name not in ("action", "target")}
    return Action(action["action"], action["target"], arguments)
