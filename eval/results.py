"""One step's result and its line in `steps.jsonl`. Knows nothing of models, matchers or metrics."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True)
class StepResult:
    """What happened at one step of a rollout; everything scoring and the report need, so neither needs a model.

    `index` is 0-based in its task. `gold` and `predicted` are compact action objects (`{"action", "target", ...}`);
    `predicted` is None where the answer could not be read. Memories are `{"short_term": {...}, "long_term": {...}}`:
    before is what the prompt showed, after is what the next step is shown. `parse_status` is one of ok, no_json,
    no_action, truncated; `error` is the message of a policy that failed, else None. `bbox` is [x1, y1, x2, y2] and
    `screen` [width, height], in pixels, both None where the data has none. `latency_s` is the step's share of its
    batch's generation time.
    """

    task_id: str
    index: int
    application: str
    group: str
    instruction: str
    image_id: str
    gold: dict[str, Any]
    gold_memory: dict[str, Any]
    bbox: list[float] | None
    screen: list[int] | None
    memory_before: dict[str, Any]
    memory_after: dict[str, Any]
    raw_text: str
    parse_status: str
    parse_problem: str
    predicted: dict[str, Any] | None
    error: str | None
    finish_reason: str
    n_prompt_tokens: int
    n_answer_tokens: int
    latency_s: float


def append_result(file: TextIO, result: StepResult) -> None:
    """Write one line and force it to disk, so that a killed run keeps every finished step."""
    file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
    file.flush()
    os.fsync(file.fileno())


def load_results(path: Path) -> Iterator[StepResult]:
    """Yield the results of `steps.jsonl`; a last line that was cut off by a kill is left out.

    Raises:
        ValueError: a line before the last one cannot be read.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            yield StepResult(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number}: found a line that is no step result ({error})") from error
