"""Walks tasks step by step with a policy and the memory it wrote. Knows nothing of files or scoring."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from eval.policy import Policy, RawAnswer, StepRequest
from eval.results import StepResult
from sft.actions import format_action
from sft.memory import EMPTY_MEMORY, Memory, update
from sft.prompts import AgentConfig, parse_answer
from sft.trajectory import Step, Trajectory, gold_memories

Mode = Literal["teacher", "own"]


@dataclass
class _Walk:
    """One task under way: the next step to answer and the memory it will be shown."""

    trajectory: Trajectory
    gold: list[Memory] = field(repr=False)
    memory: Memory = EMPTY_MEMORY
    next_index: int = 0

    @property
    def step(self) -> Step:
        return self.trajectory.steps[self.next_index]

    @property
    def is_done(self) -> bool:
        return self.next_index == len(self.trajectory.steps)


def walk_tasks(
    trajectories: Sequence[Trajectory],
    policy: Policy,
    agent: AgentConfig,
    mode: Mode,
    batch_size: int,
    done: Mapping[str, Sequence[StepResult]] | None = None,
) -> Iterator[StepResult]:
    """Answer every step of every task and yield the results as they come.

    Up to `batch_size` tasks are under way at once, and each call of the policy answers one step of each; a task that
    ends makes room for the next. In mode "own" the memory is made from the policy's answers, in "teacher" from the
    gold answers; in both it is made from earlier steps only. `done` holds the results of an interrupted run: its steps
    are not answered again and the walk goes on with the memory they left.
    """
    waiting = deque(_start(t, agent, mode, (done or {}).get(t.task_id, ())) for t in trajectories)
    active: list[_Walk] = []
    while active or waiting:
        while waiting and len(active) < batch_size:
            if not (walk := waiting.popleft()).is_done:
                active.append(walk)
        if not active:
            return
        for walk, answer in zip(active, policy.answer([_request(walk) for walk in active])):
            yield _advance(walk, answer, agent, mode)
        active = [walk for walk in active if not walk.is_done]


def _start(trajectory: Trajectory, agent: AgentConfig, mode: Mode, done: Sequence[StepResult]) -> _Walk:
    gold = gold_memories(trajectory, agent.memory_writer, agent.memory_budget_chars)
    memory = EMPTY_MEMORY
    if done:
        memory = Memory(**max(done, key=lambda r: r.index).memory_after)
    return _Walk(trajectory, gold, memory, next_index=len(done))


def _request(walk: _Walk) -> StepRequest:
    trajectory, step = walk.trajectory, walk.step
    return StepRequest(
        trajectory.task_id, step.index, trajectory.instruction, walk.memory, step.image_path, step.elements
    )


def _advance(walk: _Walk, raw: RawAnswer, agent: AgentConfig, mode: Mode) -> StepResult:
    """Read the answer, move the walk to its next step and return what happened."""
    trajectory, step, before = walk.trajectory, walk.step, walk.memory
    parsed = parse_answer(raw.text, agent, is_truncated=raw.finish_reason == "length")
    walk.next_index += 1
    if mode == "own":
        walk.memory = update(before, parsed.answer, agent.memory_writer, agent.memory_budget_chars)
    elif not walk.is_done:
        walk.memory = walk.gold[walk.next_index]
    return StepResult(
        task_id=trajectory.task_id,
        index=step.index,
        application=trajectory.application,
        group=trajectory.group,
        instruction=trajectory.instruction,
        image_id=step.image_id,
        gold=format_action(step.gold.action),
        gold_memory=_as_json(walk.gold[step.index]),
        bbox=None if step.grounding.bbox is None else list(step.grounding.bbox),
        screen=None if step.grounding.screen_wh is None else list(step.grounding.screen_wh),
        memory_before=_as_json(before),
        memory_after=_as_json(walk.memory),
        raw_text=raw.text,
        parse_status=parsed.status,
        parse_problem=parsed.problem,
        predicted=format_action(parsed.answer.action) if parsed.answer else None,
        error=None,
        finish_reason=raw.finish_reason,
        n_prompt_tokens=raw.n_prompt_tokens,
        n_answer_tokens=raw.n_answer_tokens,
        latency_s=raw.latency_s,
    )


def _as_json(memory: Memory) -> dict[str, Any]:
    return {"short_term": dict(memory.short_term), "long_term": dict(memory.long_term)}
