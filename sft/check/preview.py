"""Steps as the model will see them, for a reader: messages and completion, with token counts where they are known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.batches.encoder import StepEncoder
from sft.data.problems import Problem
from sft.data.screenshots import ScreenshotError
from sft.data.steps import Step, Trajectory
from sft.memory import lagged
from sft.prompts import AgentConfig, Message, build_prompt, format_answer


@dataclass(frozen=True)
class StepPreview:
    """One step's input and answer. `n_prompt_tokens` counts image tokens in; both are None without a tokenizer."""

    task_id: str
    step: Step
    n_steps: int
    messages: Sequence[Message]
    completion: str
    n_prompt_tokens: int | None = None
    n_answer_tokens: int | None = None
    problem: Problem | None = None


def preview_steps(
    trajectories: Sequence[Trajectory], agent: AgentConfig, path: Path, encoder: StepEncoder | None = None
) -> Iterator[StepPreview]:
    """Yield every step under gold memory, as training builds it; `problem` says where a token limit is passed."""
    for trajectory in trajectories:
        memories = lagged(trajectory.golds, agent.memory_writer, agent.memory_budget_chars)
        for step, memory in zip(trajectory.steps, memories):
            answer = format_answer(step.gold, agent)
            n_prompt = n_answer = problem = None
            if encoder is None:
                messages: Sequence[Message] = build_prompt(trajectory.instruction, memory, agent, step.elements)
            else:
                n_answer = len(encoder.encode_completion(answer))
                try:
                    prompt = encoder.build_prompt(trajectory.instruction, memory, step.image_path, step.elements)
                    messages, n_prompt = prompt.messages, prompt.n_tokens
                except ValueError as error:
                    messages = build_prompt(trajectory.instruction, memory, agent, step.elements)
                    column = "Image_id" if isinstance(error, ScreenshotError) else "Instruction"
                    problem = Problem(path, step.row, column, str(error), trajectory.task_id)
                if n_answer > agent.max_answer_tokens:
                    message = f"found an answer of {n_answer} tokens; expected at most {agent.max_answer_tokens}"
                    problem = Problem(
                        path, step.row, "Output", f"{message}: raise max_answer_tokens", trajectory.task_id
                    )
            yield StepPreview(
                trajectory.task_id, step, len(trajectory.steps), messages, answer, n_prompt, n_answer, problem
            )


def build_dump_line(preview: StepPreview) -> dict[str, Any]:
    """Return one line of `--dump_prompts`; the image stands as its path, `step` counts from 0."""
    messages = [{**m, "content": [_with_path(part, preview.step) for part in m["content"]]} for m in preview.messages]
    return {
        "task_id": preview.task_id,
        "step": preview.step.index,
        "messages": messages,
        "completion": preview.completion,
    }


def choose_evenly(n_steps: int, n_shown: int) -> set[int]:
    """Return `n_shown` positions spread over all steps, so that beginnings, middles and ends of tasks are seen."""
    return {round(i * (n_steps - 1) / max(n_shown - 1, 1)) for i in range(min(n_shown, n_steps))}


def _with_path(part: dict[str, Any], step: Step) -> dict[str, Any]:
    return {**part, "image": step.image_id} if part["type"] == "image" else part
