"""Policies: what answers a step. Model, replay of the recording, or nothing. Knows nothing of scoring."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from eval.policies.decoding import AnswerEnd, EncodedPrompt, Screenshot, generate_greedy, read_end_ids
from eval.policies.prefetch import ScreenshotLoader
from eval.policies.schema import build_answer_schema
from sft.agent import AgentConfig
from sft.answers import format_answer
from sft.batches.encoder import Prompt, StepEncoder
from sft.data.load import Trajectory
from sft.data.screenshots import ScreenshotError
from sft.errors import UserError
from sft.memory import Memory

if TYPE_CHECKING:
    from eval.policies.constraint import SchemaConstraint


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
    prompt held, shortened where it had to be; None is the whole one. `said_elsewhere` is what a server said beside the
    answer, by where it stood: "reasoning_content", "tool_calls", "refusal".
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


class Policy(Protocol):
    """Answers a batch of steps, one `RawAnswer` a request, in order."""

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]: ...


class ModelPolicy:
    """Greedy answers of a vision-language model, a whole batch at a time."""

    def __init__(self, model: Any, encoder: StepEncoder, is_constrained: bool = False):
        self.model, self.encoder = model, encoder
        self.screenshots = ScreenshotLoader(encoder)
        self._end = AnswerEnd(encoder.tokenizer, read_end_ids(model))
        self._constraint = build_constraint(model, encoder) if is_constrained else None

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        """Answer each step that can be asked.

        One whose prompt is too long even without memory becomes an error, and so does one whose screenshot went bad
        after the data was checked.
        """
        started = time.perf_counter()
        loaded = self.screenshots.load(request.image_path for request in requests)
        self.screenshots.prepare(r.next_image_path for r in requests if r.next_image_path is not None)
        built = [self._build_prompt(request, loaded[request.image_path]) for request in requests]
        answers = iter(self._generate([prompt for prompt in built if not isinstance(prompt, ValueError)], started))
        return [RawAnswer("", error=str(p)) if isinstance(p, ValueError) else next(answers) for p in built]

    def _build_prompt(
        self, request: StepRequest, screenshot: Screenshot | ScreenshotError
    ) -> tuple[Prompt, EncodedPrompt] | ValueError:
        if isinstance(screenshot, ScreenshotError):
            return screenshot
        path = request.image_path
        try:
            prompt = self.encoder.build_prompt(request.instruction, request.memory, path, request.elements)
        except ValueError as error:
            return error
        return prompt, self._encode(prompt.text, path, screenshot)

    def _generate(self, built: Sequence[tuple[Prompt, EncodedPrompt]], started: float) -> list[RawAnswer]:
        if not built:
            return []
        limit = self.encoder.agent.max_answer_tokens
        answers = generate_greedy(self.model, [prompt for _, prompt in built], self._end, limit, self._constraint)
        latency_s = (time.perf_counter() - started) / len(built)
        return [
            RawAnswer(
                self.encoder.tokenizer.decode(answer.ids, skip_special_tokens=True),
                "stop" if answer.is_ended else "length",
                len(prompt.ids),
                len(answer.ids),
                latency_s,
                source.text,
                memory_shown=source.memory,
            )
            for answer, (source, prompt) in zip(answers, built)
        ]

    def _encode(self, text: str, path: Path, screenshot: Screenshot) -> EncodedPrompt:
        layout = self.encoder.layout
        grid = screenshot[layout.grid_name][0].tolist()
        ids, types = self.encoder.encode_prompt(text, grid)
        n_prefix = len(types) - types[::-1].index(1)
        positions = layout.place(np.array(types), grid)
        return EncodedPrompt(ids, positions, types.index(1), n_prefix, path, layout.pick_inputs(screenshot))


def build_constraint(model: Any, encoder: StepEncoder) -> "SchemaConstraint":
    """Build what holds answers to the agent's answer schema."""
    try:
        from eval.policies.constraint import SchemaConstraint
    except ImportError as error:
        raise UserError(f"found no xgrammar ({error}); expected pip install -e '.[constrained]'") from error

    n_tokens = model.get_output_embeddings().weight.shape[0]
    return SchemaConstraint(encoder.tokenizer, build_answer_schema(encoder.agent), n_tokens)


class ReplayPolicy:
    """Answers with the recording's own right answers: must score 100 %."""

    def __init__(self, trajectories: Iterable[Trajectory], agent: AgentConfig):
        self._answers = {
            (t.task_id, step.index): format_answer(step.gold, agent) for t in trajectories for step in t.steps
        }

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        return [RawAnswer(self._answers[r.task_id, r.index]) for r in requests]


class EmptyPolicy:
    """Answers nothing: must score 0, every step unparsable."""

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        return [RawAnswer("") for _ in requests]
