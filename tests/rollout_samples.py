"""Step results made by hand for the tests of scoring and report."""

from typing import Any

from eval.rollouts.run_info import RunInfo
from eval.step_result import StepResult


def make_step(
    task_id: str,
    index: int,
    gold: str | dict[str, Any],
    predicted: str | dict[str, Any] | None,
    **fields: Any,
) -> StepResult:
    """Make one step; an action given as text stands for `{"action": text, "target": "OK"}`; None is unreadable."""
    values: dict[str, Any] = {
        "task_id": task_id,
        "index": index,
        "application": "OHIF Viewer",
        "group": "known_workflow",
        "instruction": f"Goal of {task_id}",
        "image_id": "screen.png",
        "gold": _as_action(gold),
        "gold_memory": {"short_term": {}, "long_term": {}},
        "bbox": None,
        "screen": None,
        "memory_before": {"short_term": {}, "long_term": {}},
        "memory_after": {"short_term": {}, "long_term": {}},
        "raw_text": "{}",
        "parse_status": "no_json" if predicted is None else "ok",
        "parse_problem": "no JSON object in the answer" if predicted is None else "",
        "predicted": None if predicted is None else _as_action(predicted),
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
RUN = RunInfo(**RUN_INFO, n_tasks=3, n_steps=5)


def _as_action(action: str | dict[str, Any]) -> dict[str, Any]:
    return {"action": action, "target": "OK"} if isinstance(action, str) else action
