"""Checks that an evaluation can be believed, on the user's own data. Each is a claim that holds or does not."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.policies.policy import EmptyPolicy, Policy, RawAnswer, ReplayPolicy, StepRequest
from eval.rollouts.options import MODES
from eval.rollouts.walk import walk_tasks
from eval.scoring.matching import HEADLINE, MATCHERS, Verdicts, cut_at_first_error, judge
from sft.actions import POINT, Action
from sft.agent import AgentConfig
from sft.answers import Answer, format_answer
from sft.data.steps import Step, Trajectory
from sft.memory import Memory, lagged
from sft.prompts import build_prompt

N_CANARY_TASKS, N_BATCH_TASKS = 20, 4
CANARY = "XCANARYX"


@dataclass(frozen=True)
class Check:
    """One claim, whether it holds, and the numbers behind it."""

    name: str
    is_passed: bool
    detail: str


def run_self_checks(
    trajectories: Sequence[Trajectory], agent: AgentConfig, batch_size: int, policy: Policy | None = None
) -> Iterator[Check]:
    """Yield the outcome of each check as it ends; those of the model only where a `policy` is given."""
    for mode in MODES:
        yield check_replay(trajectories, agent, mode, batch_size)
    for mode in MODES:
        yield check_empty(trajectories, agent, mode, batch_size)
    yield check_shuffled(trajectories, agent, batch_size)
    yield check_canary(trajectories[:N_CANARY_TASKS], agent)
    yield check_shortcuts(trajectories[:N_CANARY_TASKS], agent)
    if policy is not None:
        yield check_batches(trajectories[:N_BATCH_TASKS], agent, policy, batch_size)


def check_replay(trajectories: Sequence[Trajectory], agent: AgentConfig, mode: str, batch_size: int) -> Check:
    """The recording's own answers are right at every step, under every matcher."""
    verdicts = _roll_out(trajectories, ReplayPolicy(trajectories, agent), agent, mode, batch_size)
    n_steps = _count_steps(trajectories)
    counts = {name: _count_right(verdicts, name) for name in MATCHERS}
    detail = ", ".join(f"{name} {n} of {n_steps} steps" for name, n in counts.items())
    return Check(f"replay scores 100 % in mode {mode}", set(counts.values()) == {n_steps}, detail)


def check_empty(trajectories: Sequence[Trajectory], agent: AgentConfig, mode: str, batch_size: int) -> Check:
    """No answer is never right."""
    verdicts = _roll_out(trajectories, EmptyPolicy(), agent, mode, batch_size)
    n_right, n_judged = max(_count_right(verdicts, name) for name in MATCHERS), sum(map(len, verdicts.values()))
    is_passed = n_right == 0 and n_judged == _count_steps(trajectories)
    return Check(f"no answer scores 0 in mode {mode}", is_passed, f"{n_right} of {n_judged} steps")


def check_shuffled(trajectories: Sequence[Trajectory], agent: AgentConfig, batch_size: int) -> Check:
    """Right answers dealt out to the wrong steps are right as often as chance has it, within four deviations.

    Judged by the recorded answers alone: of these chance is known.
    """
    trajectories = [replace(t, steps=tuple(replace(s, also_right=()) for s in t.steps)) for t in trajectories]
    steps = [step for t in trajectories for step in t.steps]
    dealt = random.Random(0).sample(steps, len(steps))
    texts = {(s.task_id, s.index): format_answer(d.gold, agent) for s, d in zip(steps, dealt)}
    verdicts = judge(walk_tasks(trajectories, _Fixed(texts), agent, "own", batch_size), agent.actions)
    n, counts = len(steps), Counter(step.gold.action.kind for step in steps).values()
    squares, cubes = sum(c * c for c in counts), sum(c**3 for c in counts)
    # Each label's matches are hypergeometric; summed with the covariances between labels.
    mean = squares / n
    variance = (squares**2 - 2 * n * cubes + n**2 * squares) / (n**2 * (n - 1)) if n > 1 else 0.0
    n_right = _count_right(verdicts, HEADLINE)
    is_passed = abs(n_right - mean) <= 4 * variance**0.5 + 1e-9
    detail = f"{n_right} of {n} steps; chance is {mean:.1f} with a deviation of {variance**0.5:.1f}"
    return Check("shuffled answers score chance", is_passed, detail)


def check_canary(trajectories: Sequence[Trajectory], agent: AgentConfig) -> Check:
    """Changing all of the label of step t, its action type too, leaves the prompts of steps 1 to t byte-identical.

    In mode teacher, the one in which labels make memory, each task is walked once for each of its steps.
    """
    n_prompts = 0
    for trajectory in trajectories:
        expected = _render_prompts(trajectory, agent)
        for step in trajectory.steps:
            spoilt = [_spoil(s) if s.index == step.index else s for s in trajectory.steps]
            found = _render_prompts(replace(trajectory, steps=tuple(spoilt)), agent)
            reached = slice(0, step.index + 1)
            n_prompts += step.index + 1
            if found[reached] != expected[reached] or any(CANARY in prompt for prompt in found[reached]):
                detail = f"task {trajectory.task_id}: the label of step {step.index + 1} is in a prompt up to it"
                return Check("no label reaches a prompt", False, detail)
    return Check("no label reaches a prompt", True, f"{n_prompts} prompts, {len(trajectories)} tasks")


def check_shortcuts(trajectories: Sequence[Trajectory], agent: AgentConfig) -> Check:
    """Prompts are made of goal, memory and screen alone: of no task's name, no step's number, no number of steps.

    Each task is walked as it is, and renamed with one more step; both must give the prompts that `build_prompt` makes
    of the goal, the gold memory and the detected elements.
    """
    name, n_prompts = "no task id and no step count reaches a prompt", 0
    for trajectory in trajectories:
        steps = trajectory.steps
        memories = lagged(trajectory.golds, agent.memory_writer, agent.memory_budget_chars)
        expected = [
            _render(trajectory.instruction, memory, agent, step.elements, step.image_path)
            for step, memory in zip(steps, memories)
        ]
        longer = [replace(step, task_id=CANARY) for step in (*steps, replace(steps[-1], index=len(steps)))]
        other = replace(trajectory, task_id=CANARY, steps=tuple(longer))
        for walked in (trajectory, other):
            found = _render_prompts(walked, agent)[: len(steps)]
            n_prompts += len(found)
            if different := [i + 1 for i, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]]:
                detail = f"task {trajectory.task_id}: step {different[0]} is shown more than goal and memory"
                return Check(name, False, detail)
    return Check(name, True, f"{n_prompts} prompts, {len(trajectories)} tasks")


def check_batches(trajectories: Sequence[Trajectory], agent: AgentConfig, policy: Policy, batch_size: int) -> Check:
    """The model answers the same whatever else is in the batch."""
    alone, together = (
        {(r.task_id, r.index): r.raw_text for r in walk_tasks(trajectories, policy, agent, "own", n)}
        for n in (1, max(batch_size, 2))
    )
    n_same = sum(alone[key] == together[key] for key in alone)
    return Check(
        "answers do not depend on the batch", n_same == len(alone), f"{n_same} of {len(alone)} steps the same"
    )


class _Fixed:
    """Answers each step with a given text and notes what it was asked."""

    def __init__(self, texts: dict[tuple[str, int], str]):
        self.texts, self.asked = texts, list[StepRequest]()

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        self.asked += requests
        return [RawAnswer(self.texts.get((r.task_id, r.index), "")) for r in requests]


def _roll_out(
    trajectories: Sequence[Trajectory], policy: Policy, agent: AgentConfig, mode: str, batch_size: int
) -> Verdicts:
    walk = walk_tasks(trajectories, policy, agent, "teacher" if mode == "teacher" else "own", batch_size)
    verdicts = judge(walk, agent.actions)
    return judge(cut_at_first_error(verdicts), agent.actions) if mode == "own_stop" else verdicts


def _render_prompts(trajectory: Trajectory, agent: AgentConfig) -> list[str]:
    policy: Policy = (watch := _Fixed({}))
    list(walk_tasks([trajectory], policy, agent, "teacher", 1))
    return [_render(r.instruction, r.memory, agent, r.elements, r.image_path) for r in watch.asked]


def _render(
    instruction: str, memory: Memory, agent: AgentConfig, elements: Sequence[Mapping[str, Any]], image_path: Path
) -> str:
    return str(build_prompt(instruction, memory, agent, elements)) + str(image_path)


def _spoil(step: Step) -> Step:
    """Replace everything that is label; an action type that exists nowhere differs from each that does."""
    action = Action(CANARY, CANARY, {"text": CANARY, POINT: [1, 2]})
    gold = Answer(action, {"last_action": CANARY}, {"overall_progress": CANARY})
    grounding = replace(step.grounding, bbox=(1, 2, 3, 4), screen_wh=(5, 6))
    return replace(step, gold=gold, grounding=grounding, also_right=(action,))


def _count_right(verdicts: Verdicts, matcher: str) -> int:
    return sum(verdict.is_right(matcher) for task in verdicts.values() for verdict in task)


def _count_steps(trajectories: Sequence[Trajectory]) -> int:
    return sum(len(t.steps) for t in trajectories)
