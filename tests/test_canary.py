"""Labels never reach a prompt: whatever the label cells of step t hold, the prompts of steps 1..t stay as they are."""

import csv
import json
import re
from dataclasses import replace

import pytest
from conftest import DEMO_FILES, load_demo
from hypothesis import given
from hypothesis import strategies as st
from trajectory_samples import COLUMNS, TINY_AGENT, build_tasks, format_csv, write_screenshots, write_trajectories

from eval.policies.policy import EmptyPolicy, RawAnswer
from eval.rollouts.walk import walk_tasks
from sft.actions import Action
from sft.agent import AgentConfig
from sft.answers import Answer, format_answer
from sft.data.cells import Grounding, read_gold
from sft.data.load import load_trajectories
from sft.json_text import dump_json
from sft.memory import EMPTY_MEMORY, lagged
from sft.prompts import build_prompt

AGENTS = {
    "model": AgentConfig(),
    "rule": AgentConfig(memory_writer="rule"),
    "model, points": AgentConfig(points=True),
    "rule, points": AgentConfig(memory_writer="rule", points=True),
}
CANARY = "CANARY-7f3a"
OTHER_LABEL = Answer(
    Action("TEXT", CANARY, {"point": [77, 150], "text": CANARY}), {CANARY: CANARY}, {CANARY: [CANARY]}
)


def _prompts(trajectory, agent):
    """Return every prompt of a task as training makes it, under the memory of the right answers."""
    memories = list(lagged(trajectory.golds, agent.memory_writer, agent.memory_budget_chars))
    return [build_prompt(trajectory.instruction, m, agent, s.elements) for m, s in zip(memories, trajectory.steps)]


class _Recorder:
    """A policy that answers nothing and keeps what it was asked, as the prompts a model would have seen."""

    def __init__(self, agent, answer=""):
        self.agent, self.answer_text, self.prompts = agent, answer, {}

    def answer(self, requests):
        for r in requests:
            self.prompts[r.task_id, r.index] = build_prompt(r.instruction, r.memory, self.agent, r.elements)
        return [RawAnswer(self.answer_text) for _ in requests]


def _rollout_prompts(trajectory, agent, mode, answer=""):
    policy = _Recorder(agent, answer)
    list(walk_tasks([trajectory], policy, agent, mode, batch_size=4))
    return [policy.prompts[trajectory.task_id, i] for i in range(len(trajectory.steps))]


def _with_label(trajectory, index, gold):
    """Return the trajectory with another label at one step, as if its cells had been written so."""
    steps = list(trajectory.steps)
    steps[index] = replace(
        steps[index], gold=gold, grounding=Grounding((1, 2, 3, 4), (5, 6)), also_right=(gold.action,)
    )
    return replace(trajectory, steps=tuple(steps))


@pytest.mark.skipif(not DEMO_FILES, reason="demo/data has no trajectories yet")
@pytest.mark.parametrize("path", DEMO_FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("writer", AGENTS)
def test_label_of_every_demo_step_leaves_the_prompts_up_to_it_as_they_are(path, writer):
    agent = AGENTS[writer]
    for trajectory in load_demo(path):
        expected = _prompts(trajectory, agent)
        teacher = _rollout_prompts(trajectory, agent, "teacher")
        assert teacher == expected
        for t in range(len(trajectory.steps)):
            changed = _with_label(trajectory, t, OTHER_LABEL)
            assert _prompts(changed, agent)[: t + 1] == expected[: t + 1]
        last = _with_label(trajectory, len(trajectory.steps) - 1, OTHER_LABEL)
        assert _rollout_prompts(last, agent, "teacher") == expected


@pytest.mark.skipif(not DEMO_FILES, reason="demo/data has no trajectories yet")
@pytest.mark.parametrize("path", DEMO_FILES, ids=lambda p: p.stem)
def test_no_demo_prompt_holds_a_task_id_or_the_number_of_its_step(path):
    for trajectory in load_demo(path):
        for prompt in _prompts(trajectory, AGENTS["model"]):
            text = json.dumps(prompt)
            assert trajectory.task_id not in text
            assert not re.search(r"\bstep \d+ of \d+|slide_number|\bstep \d+/\d+", text, re.IGNORECASE)


@pytest.mark.parametrize("column", ["Output", "Grounding", "Also_Right"])
@pytest.mark.parametrize("writer", AGENTS)
def test_label_cells_of_a_file_reach_no_prompt_up_to_their_step(tmp_path, column, writer):
    """From the file on: the cells themselves are changed, and train and rollout prompts compared as bytes."""
    agent, rows = AGENTS[writer], build_tasks(1, n_steps=6)
    label = {"Output": format_answer(OTHER_LABEL, AGENTS["model"]), "Grounding": _grounding()}
    label["Also_Right"] = f"[{label['Output']}]"
    rows = [{**row, "Also_Right": ""} for row in rows]
    write_screenshots(tmp_path)

    def prompts(changed):
        (tmp_path / "tasks.csv").write_text(format_csv(changed, (*COLUMNS, "Also_Right")), encoding="utf-8")
        trajectory = load_trajectories(tmp_path / "tasks.csv", actions=agent.actions, show_progress=False)[0]
        made = [_prompts(trajectory, agent), _rollout_prompts(trajectory, agent, "teacher")]
        return [[dump_json(prompt) for prompt in of_task] for of_task in made]

    expected = prompts(rows)
    for t in range(len(rows)):
        for before, after in zip(expected, prompts([*rows[:t], {**rows[t], column: label[column]}, *rows[t + 1 :]])):
            assert after[: t + 1] == before[: t + 1]
            if t + 1 < len(rows) and column == "Output" and agent.writes_memory:
                assert CANARY in after[t + 1]


def _grounding():
    truth = {"action": "TEXT", "target": CANARY}
    return json.dumps({"ground_truth": truth, "bbox": [1, 1, 2, 2], "screen": [10, 6], "application": CANARY})


def test_own_memory_prompts_do_not_depend_on_any_label(tasks):
    """In mode own not even the labels of earlier steps are in the prompt: only what the policy wrote."""
    agent, own = TINY_AGENT, '{"action":"CLICK","target":"mine","short_term":{"a":"mine"},"long_term":{}}'
    for trajectory in tasks:
        expected = _rollout_prompts(trajectory, agent, "own", own)
        changed = trajectory
        for t in range(len(trajectory.steps)):
            changed = _with_label(changed, t, OTHER_LABEL)
        assert _rollout_prompts(changed, agent, "own", own) == expected


@pytest.mark.parametrize("writer", ["model", "rule"])
def test_no_point_reaches_a_prompt_neither_the_gold_one_nor_the_own_one(tmp_path, writer):
    """The next prompts are those of the same answers without points, and hold no number of theirs."""
    agent, rows = AgentConfig(memory_writer=writer, points=True), build_tasks(1, n_steps=6)
    trajectory = load_trajectories(write_trajectories(tmp_path, rows), actions=agent.actions, show_progress=False)[0]
    assert [gold.action.arguments.get("point") for gold in trajectory.golds] == [*[[156, 156]] * 5, None]
    without = [replace(s, gold=replace(s.gold, action=replace(s.gold.action, arguments={}))) for s in trajectory.steps]
    own = '{"action":"CLICK","target":"mine",%s"short_term":{"a":"mine"},"long_term":{}}'
    for mode in ("teacher", "own"):
        found = _rollout_prompts(trajectory, agent, mode, own % '"point":[731,642],')
        assert found == _rollout_prompts(replace(trajectory, steps=tuple(without)), agent, mode, own % "")
        assert not re.search("156|731|642", json.dumps(found))


def test_prompt_does_not_change_with_the_id_of_its_task(tmp_path):
    prompts = []
    for name in ("t1", f"secret-{CANARY}"):
        rows = [{**row, "Task_id": name} for row in build_tasks(1)]
        trajectory = load_trajectories(write_trajectories(tmp_path, rows), show_progress=False)[0]
        prompts.append([_prompts(trajectory, TINY_AGENT), _rollout_prompts(trajectory, TINY_AGENT, "own")])
    assert prompts[0] == prompts[1]


def test_prompt_does_not_change_with_the_number_of_its_step(tasks):
    """With the same goal and memory, every step of a task has the same prompt."""
    empty = list(walk_tasks(tasks, EmptyPolicy(), TINY_AGENT, "own", batch_size=4))
    assert {json.dumps(r.memory_before) for r in empty} == {'{"short_term": {}, "long_term": {}}'}
    for trajectory in tasks:
        first, *rest = _rollout_prompts(trajectory, TINY_AGENT, "own")
        assert first == build_prompt(trajectory.instruction, EMPTY_MEMORY, TINY_AGENT)
        assert all(prompt == first for prompt in rest)


TEXT = st.text(max_size=30).filter(str.strip)
MEMORY_PART = st.none() | st.dictionaries(TEXT, TEXT | st.lists(TEXT, max_size=3), max_size=3)
LABELS = st.builds(Answer, st.builds(Action, st.sampled_from(["CLICK", "SEGMENT"]), TEXT), MEMORY_PART, MEMORY_PART)


@given(
    labels=st.lists(LABELS, min_size=1, max_size=5),
    other=LABELS,
    position=st.integers(0, 4),
    budget=st.integers(4, 300),
    writer=st.sampled_from(["model", "rule"]),
)
def test_no_label_whatever_reaches_a_prompt_up_to_its_step(tasks, labels, other, position, budget, writer):
    t = position % len(labels)
    agent = replace(TINY_AGENT, memory_writer=writer, memory_budget_chars=budget)
    step = tasks[0].steps[0]
    steps = tuple(replace(step, index=i, gold=label) for i, label in enumerate(labels))
    trajectory = replace(tasks[0], steps=steps)
    changed = _with_label(trajectory, t, other)
    assert _prompts(changed, agent)[: t + 1] == _prompts(trajectory, agent)[: t + 1]
    teacher = _rollout_prompts(changed, agent, "teacher")
    assert teacher[: t + 1] == _rollout_prompts(trajectory, agent, "teacher")[: t + 1]
    assert teacher == _prompts(changed, agent)


@pytest.mark.skipif(not DEMO_FILES, reason="demo/data has no trajectories yet")
def test_demo_labels_differ_from_the_canary():
    """The canary would prove nothing if it were already there."""
    for path in DEMO_FILES:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                assert read_gold(row["Output"], row["Grounding"], AgentConfig().actions) != OTHER_LABEL
                assert CANARY not in json.dumps(row)
