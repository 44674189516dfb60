"""What a policy is: a step is asked, an answer comes back. And the two without a model: the recording, and nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from sft.agent import AgentConfig
from sft.answers import ParsedAnswer, format_answer, parse_answer
from sft.data.load import Trajectory
from sft.memory import Memory


@dataclass(frozen=True)
class StepRequest:
    """One step to answer. `task_id` and `index` name it for the replay policy; they never reach a prompt.

    `next_image_path` is the screenshot the task shows after this one, so that a policy may prepare it meanwhile.
    """

    task_id: str
    index: int
    instruction: str
    memory: Memory
    image_path: Path
    elements: Sequence[Mapping[str, Any]] = ()
    next_image_path: Path | None = None


@dataclass(frozen=True)
class RawAnswer:
    """What a policy said. `finish_reason` is "stop", or "length" where the token limit cut the answer.

    `error` says why a step could not be answered at all; the text is then empty. `memory_shown` is the memory that the
    prompt held, shortened where it had to be; None is the whole one. `said_elsewhere` is what a server said
    outside the answer's text, by where: "reasoning_content", "tool_calls", "refusal".
    """

    text: str
    finish_reason: str = "stop"
    n_prompt_tokens: int = 0
    n_answer_tokens: int = 0
    latency_s: float = 0.0
    prompt_text: str = field(default="", repr=False)
    error: str | None = None
    memory_shown: Memory | None = None
    said_elsewhere: Mapping[str, str] = field(default_factory=dict)


def read_raw_answer(raw: RawAnswer, agent: AgentConfig) -> ParsedAnswer:
    """Read what a policy said, for every way of asking it; an answer without text tells where its server spoke."""
    parsed = parse_answer(raw.text, agent, is_truncated=raw.finish_reason == "length")
    if raw.said_elsewhere and not raw.text.strip():
        places = ", ".join(raw.said_elsewhere)
        return replace(parsed, problem=f"no text in the answer; what the server said is in {places}")
    return parsed


class Policy(Protocol):
    """Answers a batch of steps, one `RawAnswer` a request, in order."""

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]: ...


class ReplayPolicy:
    """Answers with the recording's own right answers, and nothing after the last: must score 100 %."""

    def __init__(self, trajectories: Iterable[Trajectory], agent: AgentConfig):
        self._answers = {
            (t.task_id, step.index): format_answer(step.gold, agent) for t in trajectories for step in t.steps
        }

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        return [RawAnswer(self._answers.get((r.task_id, r.index), "")) for r in requests]


class EmptyPolicy:
    """Answers nothing: must score 0, every step unparsable."""

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        return [RawAnswer("") for _ in requests]
