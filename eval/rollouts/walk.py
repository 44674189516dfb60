"""Walks tasks step by step with a policy and the memory it wrote. Knows nothing of files or metrics."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from eval.policies.policy import Policy, RawAnswer, StepRequest, read_raw_answer
from eval.step_result import StepResult
from sft.agent import AgentConfig
from sft.answers import Answer
from sft.data.steps import Step, Trajectory
from sft.memory import EMPTY_MEMORY, Memory, lagged, memory_chars

Mode = Literal["teacher", "own"]

POOL = 4  # tasks under way for each place in a batch: enough to find some that show the same screenshot


@dataclass
class _Walk:
    """One task under way: the next step to answer and the memory it will be shown.

    `later` gives the memory of each step after it, from `answers`: those of the model so far, or the gold ones.
    """

    trajectory: Trajectory
    gold: list[Memory] = field(repr=False)
    answers: list[Answer | None] = field(repr=False)
    later: Iterator[Memory] = field(repr=False)
    memory: Memory = EMPTY_MEMORY
    next_index: int = 0

    @property
    def step(self) -> Step:
        return self.trajectory.steps[self.next_index]

    @property
    def n_left(self) -> int:
        return len(self.trajectory.steps) - self.next_index

    @property
    def n_chars(self) -> int:
        return len(self.trajectory.instruction) + memory_chars(self.memory)


def walk_tasks(
    trajectories: Sequence[Trajectory],
    policy: Policy,
    agent: AgentConfig,
    mode: Mode,
    batch_size: int,
    done: Mapping[str, Sequence[StepResult]] | None = None,
) -> Iterator[StepResult]:
    """Answer every step of every task and yield the results as they come.

    Each call of the policy answers one step of up to `batch_size` tasks, chosen anew each time from `POOL` times as
    many under way; a task that ends makes room for the next. In mode "own" the memory is made from the policy's
    answers, in "teacher" from the gold answers; in both it is made from earlier steps only. `done` holds the results
    of an interrupted rollout: its steps are not answered again, and the walk continues with the memory they left.
    """
    waiting, active = deque(trajectories), list[_Walk]()
    while active or waiting:
        while waiting and len(active) < POOL * batch_size:
            trajectory = waiting.popleft()
            active.append(_start(trajectory, agent, mode, (done or {}).get(trajectory.task_id, ())))
        active = [walk for walk in active if walk.n_left]
        batch = _choose_batch(active, batch_size)
        answers = policy.answer([_request(walk) for walk in batch]) if batch else []
        for walk, answer in zip(batch, answers, strict=True):
            yield _advance(walk, answer, agent, mode)


def _choose_batch(active: Sequence[_Walk], batch_size: int) -> list[_Walk]:
    """Choose the tasks to answer next: the longest first, and those on one screenshot together.

    Longest first, so that the end of a run is not a few long tasks in batches of their own; the others on the same
    screenshot, since they share its tokens; then those whose prompts are nearest in length, so that little is padded.
    """
    left, batch = sorted(active, key=lambda walk: -walk.n_left), list[_Walk]()
    while left and len(batch) < batch_size:
        lead = min(left, key=lambda walk: abs(walk.n_chars - batch[0].n_chars)) if batch else left[0]
        together = [walk for walk in left if walk.step.image_path == lead.step.image_path]
        batch += together
        left = [walk for walk in left if walk.step.image_path != lead.step.image_path]
    return batch[:batch_size]


def _start(trajectory: Trajectory, agent: AgentConfig, mode: Mode, done: Sequence[StepResult]) -> _Walk:
    rules = agent.memory_writer, agent.memory_budget_chars
    gold = list(lagged(trajectory.golds, *rules))
    answers: list[Answer | None] = [*trajectory.golds[len(done) : -1]] if mode == "teacher" else []
    memory = Memory(**max(done, key=lambda r: r.index).memory_after) if done else EMPTY_MEMORY
    later = lagged(answers, *rules, memory)
    return _Walk(trajectory, gold, answers, later, next(later), next_index=len(done))


def _request(walk: _Walk) -> StepRequest:
    trajectory, step = walk.trajectory, walk.step
    upcoming = trajectory.steps[walk.next_index + 1].image_path if walk.n_left > 1 else None
    return StepRequest(
        trajectory.task_id,
        step.index,
        trajectory.instruction,
        walk.memory,
        step.image_path,
        step.elements,
        upcoming,
    )


def _advance(walk: _Walk, raw: RawAnswer, agent: AgentConfig, mode: Mode) -> StepResult:
    """Read the answer, move the walk to its next step and return what happened."""
    trajectory, step, before = walk.trajectory, walk.step, walk.memory
    parsed = read_raw_answer(raw, agent)
    walk.next_index += 1
    if mode != "teacher":
        walk.answers.append(parsed.answer)
    walk.memory = next(walk.later, walk.memory)  # in mode "teacher" the last step changes nothing
    return StepResult(
        task_id=trajectory.task_id,
        index=step.index,
        application=trajectory.application,
        group=trajectory.group,
        instruction=trajectory.instruction,
        image_id=step.image_id,
        gold=step.gold.action,
        gold_memory=walk.gold[step.index].to_json(),
        bbox=None if step.grounding.bbox is None else list(step.grounding.bbox),
        screen=None if step.grounding.screen_wh is None else list(step.grounding.screen_wh),
        memory_before=(before if raw.memory_shown is None else raw.memory_shown).to_json(),
        memory_after=walk.memory.to_json(),
        raw_text=raw.text,
        parse_status=parsed.status,
        parse_problem=parsed.problem,
        left_out=list(parsed.left_out),
        predicted=parsed.answer.action if parsed.answer else None,
        error=None if raw.error is None else f"row {step.row}: {raw.error}",
        finish_reason=raw.finish_reason,
        n_prompt_tokens=raw.n_prompt_tokens,
        n_answer_tokens=raw.n_answer_tokens,
        latency_s=raw.latency_s,
        said_elsewhere=dict(raw.said_elsewhere),
        also_right=list(step.also_right),
        image_sha256=step.image_sha256,
    )
