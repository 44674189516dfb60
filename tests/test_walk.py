"""Walking tasks: whose memory a step is shown, and that the recording replayed is right everywhere."""

import json
from dataclasses import replace

import pytest
from conftest import DEMO_FILES, load_demo
from rollout_samples import judge
from trajectory_samples import TINY_AGENT
from transformers import AutoModelForImageTextToText

from eval.policies.hf import ModelPolicy
from eval.policies.policy import RawAnswer, ReplayPolicy
from eval.predictor import Predictor
from eval.rollouts.walk import walk_tasks
from eval.scoring.metrics import compute_metrics
from sft.agent import AgentConfig
from sft.batches.encoder import StepEncoder
from sft.json_text import dump_json
from sft.memory import EMPTY_MEMORY, lagged
from sft.models.processors import load_processor


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


@pytest.mark.parametrize(
    ("writer", "short_term", "long_term"),
    [
        ("model", {"note": " 0"}, {"done": ["0"]}),
        ("rule", {"last_action": "CLICK", "last_target": "x"}, {"completed_subtasks": ["CLICK x", "CLICK x"]}),
    ],
)
def test_predictor_hands_on_the_memory_that_a_rollout_would_show(tasks, writer, short_term, long_term):
    predictor = Predictor(_Writes(), replace(TINY_AGENT, memory_writer=writer))
    image = tasks[0].steps[0].image_path
    first = predictor.predict_step(image, "Open it")
    second = predictor.predict_step(image, "Open it", first.short_term_memory, first.long_term_memory)
    assert (second.short_term_memory, second.long_term_memory) == (short_term, long_term)


def test_teacher_memory_is_gold_and_lags_by_one_step_whatever_the_model_wrote(tasks):
    policy = _Writes(broken=(0,))
    list(walk_tasks(tasks, policy, TINY_AGENT, "teacher", batch_size=3))
    for trajectory in tasks:
        gold = list(lagged(trajectory.golds, "model", TINY_AGENT.memory_budget_chars))[:-1]
        assert gold[0] == EMPTY_MEMORY
        assert [policy.shown[trajectory.task_id, i] for i in range(len(trajectory.steps))] == gold
        assert gold[1].short_term == trajectory.steps[0].gold.short_term


@pytest.mark.slow
@pytest.mark.skipif(not DEMO_FILES, reason="demo/data has no trajectories yet")
def test_replay_is_right_about_every_demo_step():
    agent = AgentConfig()
    for path in DEMO_FILES:
        trajectories = load_demo(path)
        for mode in ("own", "teacher"):
            walk = walk_tasks(trajectories, ReplayPolicy(trajectories, agent), agent, mode, 16)
            for task_id, task in judge(walk).items():
                assert [v.step.index for v in task if not v.is_right("action_target")] == [], task_id


def test_memory_of_a_result_is_what_its_prompt_showed(tasks, tiny_checkpoints):
    folder = tiny_checkpoints["qwen3_vl"]
    processor = load_processor(folder, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels)
    step, gold = tasks[0].steps[1], list(lagged(tasks[0].golds, "model", TINY_AGENT.memory_budget_chars))[1]
    prompt = StepEncoder(processor, TINY_AGENT).build_prompt(tasks[0].instruction, gold, step.image_path)
    agent = replace(TINY_AGENT, max_prompt_tokens=prompt.n_tokens, max_answer_tokens=2)  # the third step needs more
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    prompts = {}

    class Watched(ModelPolicy):
        def answer(self, requests):
            answers = super().answer(requests)
            prompts.update({(r.task_id, r.index): a.prompt_text for r, a in zip(requests, answers)})
            return answers

    results = list(walk_tasks(tasks[:1], Watched(model, StepEncoder(processor, agent)), agent, "teacher", 2))
    for result in results:
        for part in ("short_term", "long_term"):
            assert dump_json(result.memory_before[part]) in prompts[result.task_id, result.index]
    assert results[1].memory_before == results[1].gold_memory
    assert results[2].memory_before != results[2].gold_memory
    shown, gold = (dump_json(memory) for memory in (results[2].memory_before, results[2].gold_memory))
    assert len(shown) < len(gold)


def test_right_action_without_its_parts_is_right_by_type_alone(tasks):
    """Untuned models name the type and little else: the published definition asks for no more."""

    class Bare(ReplayPolicy):
        def answer(self, requests):
            kinds = [json.loads(raw.text)["action"] for raw in super().answer(requests)]
            return [RawAnswer(json.dumps({"action": kind, "short_term": "done"})) for kind in kinds]

    results = list(walk_tasks(tasks, Bare(tasks, TINY_AGENT), TINY_AGENT, "own", 4))
    metrics = compute_metrics(judge(results), mode="own", n_resamples=10)
    final = sum(result.gold.kind == "COMPLETE" for result in results)
    assert metrics["matchers"]["action"]["outcomes"]["right"] == len(results)
    assert metrics["matchers"]["action_target"]["outcomes"]["right"] == final
    assert metrics["answers"]["left_out"] == {"short_term": len(results), "target": len(results) - final}
    assert all(result.memory_after == {"short_term": {}, "long_term": {}} for result in results)
