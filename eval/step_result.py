"""One step's result and its line in `steps.jsonl`, which this file alone knows. Knows nothing of models or metrics."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO, TypeVar

from sft.actions import Action, format_action
from sft.errors import UserError
from sft.json_text import parse_json

T = TypeVar("T")

NOT_RUN = "not_run"  # the parse status of a step after the one at which mode "own_stop" ended its task


@dataclass(frozen=True)
class StepResult:
    """What happened at one step of a rollout; everything scoring and the report need, so neither needs a model.

    `index` is 0-based in its task. `predicted` is None where the answer could not be read. Memories are
    `{"short_term": {...}, "long_term": {...}}`: before is what the prompt showed, after what the next step is shown.
    `parse_status` is one of ok, no_json, no_action, truncated, not_run; `left_out` names the parts of a read answer
    that could not be taken ("target", an argument, "short_term", "long_term"). `error` is the message of a policy that
    failed, else None. `bbox` is [x1, y1, x2, y2] and `screen` [width, height], in pixels, both None where the data has
    none. `latency_s` is the step's share of its batch's generation time. `said_elsewhere` is what a server said
    outside the answer's text, by where: a thought, a tool call; it is not scored. `also_right` are the answers that
    are right beside `gold`. `image_sha256` is the screenshot's as it was shown; "" in files of older versions.
    """

    task_id: str
    index: int
    application: str
    group: str
    instruction: str
    image_id: str
    gold: Action
    gold_memory: dict[str, Any]
    bbox: list[float] | None
    screen: list[int] | None
    memory_before: dict[str, Any]
    memory_after: dict[str, Any]
    raw_text: str = ""
    parse_status: str = NOT_RUN
    parse_problem: str = ""
    left_out: list[str] = field(default_factory=list)
    predicted: Action | None = None
    error: str | None = None
    finish_reason: str = ""
    n_prompt_tokens: int = 0
    n_answer_tokens: int = 0
    latency_s: float = 0.0
    said_elsewhere: dict[str, str] = field(default_factory=dict)
    also_right: list[Action] = field(default_factory=list)
    image_sha256: str = ""

    def as_not_run(self, memory: dict[str, Any]) -> "StepResult":
        """Return the step as if it had never been answered, with the memory as it was then."""
        required = [f.name for f in fields(self) if f.default is MISSING and f.default_factory is MISSING]
        known = {name: getattr(self, name) for name in required}
        known |= {"also_right": self.also_right, "image_sha256": self.image_sha256}
        return StepResult(**{**known, "memory_before": memory, "memory_after": memory})


def format_result(result: StepResult) -> str:
    """Return the step's line; ASCII holds half characters, and no kill can cut one in two."""
    actions = {
        "gold": format_action(result.gold),
        "predicted": format_action(result.predicted) if result.predicted else None,
        "also_right": [format_action(action) for action in result.also_right],
    }
    return json.dumps({**asdict(result), **actions}) + "\n"


def parse_result(line: str) -> StepResult:
    """Read the line that `format_result` wrote.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the line is not one.
    """
    values = parse_json(line)
    predicted = values["predicted"]
    actions = {
        "gold": parse_written_action(values["gold"]),
        "predicted": None if predicted is None else parse_written_action(predicted),
        "also_right": [parse_written_action(action) for action in values.get("also_right", [])],
    }
    return StepResult(**{**values, **actions})


def append_result(file: TextIO, result: StepResult) -> None:
    """Write one line and force it to disk, so that a killed run keeps every finished step."""
    file.write(format_result(result))
    file.flush()
    os.fsync(file.fileno())


def load_results(path: Path) -> Iterator[StepResult]:
    """Yield the results of `steps.jsonl`; a last line that was cut off by a kill is left out.

    Raises:
        UserError: a line before the last one cannot be read, or a step is in two lines.
    """
    seen: dict[tuple[str, int], int] = {}
    expected = "what the rollout wrote: restore the file, or delete it and roll out again"
    for number, result in read_lines(path, parse_result, "step result", expected):
        first = seen.setdefault((result.task_id, result.index), number)
        if first != number:
            raise UserError(
                f"{path}:{number}: found step {result.index + 1} of task {result.task_id} again, as in line {first}; "
                "expected each step once: two processes wrote into this folder, and which memory went with which "
                "answer cannot be told. Delete this file and roll out again, or choose another --output_dir"
            )
        yield result


def read_lines(path: Path, parse: Callable[[str], T], kind: str, expected: str) -> Iterator[tuple[int, T]]:
    """Yield each line's number and what it holds; a last line that a kill cut off is left out.

    Raises:
        UserError: a line before the last one is none that `parse` reads; `kind` is what it should hold.
    """
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            value = parse(line.decode("utf-8"))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path}:{number}: found a line that is no {kind} ({error}); expected {expected}"
            ) from error
        yield number, value


def parse_written_action(values: dict[str, Any]) -> Action:
    """Read an action as it was written, of whatever vocabulary."""
    arguments = {name: value for name, value in values.items() if name not in ("action", "target")}
    return Action(values["action"], values["target"], arguments)
