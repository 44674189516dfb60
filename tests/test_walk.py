"""Walking tasks: whose memory a step is shown, and that the recording replayed is right everywhere."""

import pytest
from conftest import DEMO_FILES, load_demo
from trajectory_samples import TINY_AGENT

from eval.matching import MATCHERS, judge_step
from eval.policy import RawAnswer, ReplayPolicy
from eval.walk import walk_tasks
from sft.memory import EMPTY_MEMORY
from sft.prompts import AgentConfig
from sft.trajectory import gold_memories


class _Writes:
    """Answers every step with a memory of its own and keeps the memories it was shown."""

    def __init__(self, broken=()):
        self.broken, self.shown = broken, {}

    def answer(self, requests):
        answers = []
        for r in requests:
            self.shown[r.task_id, r.index] = r.memory
            memory = f'{{"note":"{r.task_id} {r.index}"}}'
            text = f'{{"action":"CLICK","target":"x","short_term":{memory},"long_term":{{"done":["{r.index}"]}}}}'
            answers.append(RawAnswer("no idea" if r.index in self.broken else text))
        return answers


def test_own_memory_is_what_the_model_wrote_at_the_step_before(tasks):
    policy = _Writes()
    results = {(r.task_id, r.index): r for r in walk_tasks(tasks, policy, TINY_AGENT, "own", batch_size=3)}
    for trajectory in tasks:
        assert policy.shown[trajectory.task_id, 0] == EMPTY_MEMORY
        for i in range(1, len(trajectory.steps)):
            shown = policy.shown[trajectory.task_id, i]
            assert shown.short_term == {"note": f"{trajectory.task_id} {i - 1}"}
            assert shown.long_term == {"done": [str(i - 1)]}
            assert results[trajectory.task_id, i].memory_before == results[trajectory.task_id, i - 1].memory_after


def test_unreadable_answer_leaves_the_memory_of_the_step_before(tasks):
    policy = _Writes(broken=(1,))
    list(walk_tasks(tasks, policy, TINY_AGENT, "own", batch_size=3))
    assert policy.shown["t1", 2] == policy.shown["t1", 1]
    assert policy.shown["t1", 1].short_term == {"note": "t1 0"}


def test_teacher_memory_is_gold_and_lags_by_one_step_whatever_the_model_wrote(tasks):
    policy = _Writes(broken=(0,))
    list(walk_tasks(tasks, policy, TINY_AGENT, "teacher", batch_size=3))
    for trajectory in tasks:
        gold = gold_memories(trajectory, "model", TINY_AGENT.memory_budget_chars)
        assert gold[0] == EMPTY_MEMORY
        assert [policy.shown[trajectory.task_id, i] for i in range(len(trajectory.steps))] == gold
        assert gold[1].short_term == trajectory.steps[0].gold.short_term


@pytest.mark.skipif(not DEMO_FILES, reason="demo/data has no trajectories yet")
def test_replay_is_right_about_every_demo_step():
    agent = AgentConfig()
    for path in DEMO_FILES:
        trajectories = load_demo(path)
        for mode in ("own", "teacher"):
            for result in walk_tasks(trajectories, ReplayPolicy(trajectories, agent), agent, mode, 16):
                assert judge_step(result, MATCHERS["action_target"]) == "right", (result.task_id, result.index)
