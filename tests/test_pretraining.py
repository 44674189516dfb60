"""What the demo's base is pre-trained on: practice tasks, questions about screens, and where their labels lie."""

import csv
import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from demo.copying import build_copying
from demo.planning import PlanMaker, build_planning, is_held_out, load_clauses
from demo.practice import build_step, generate_task, generate_task_on, remember
from demo.pretrain import build_optimizers, relate_word_starts
from demo.pretraining_examples import Example, ExampleEncoder, ExampleMaker
from demo.pretraining_pairs import Element, Screen, build_chat, name_usable_elements
from demo.tiny_qwen3vl import TinySize, build_model, build_tiny_checkpoint, build_tokenizer
from sft.agent import AgentConfig
from sft.answers import parse_answer
from sft.batches.collator import PaddingCollator
from sft.batches.encoder import StepEncoder
from sft.batches.packing import IGNORED_LABEL
from sft.models.processors import load_processor

DEMO = Path(__file__).parents[1] / "demo"
LABELS = ("Layout", "Patient Name", "Study list")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), ["Goal: open the study"])
    return ExampleEncoder(load_processor(folder, 65_536, 98_304))


@pytest.fixture
def screenshot(tmp_path):
    path = tmp_path / "screen.png"
    Image.effect_noise((1280, 800), 60).save(path)
    return path


def test_practice_answers_are_readable_and_end_with_complete():
    rng, agent = random.Random(0), AgentConfig()
    for _ in range(50):
        task = generate_task(rng, LABELS)
        parsed = [parse_answer(build_step(rng, task, agent, step)[1], agent) for step in range(len(task.answers))]
        assert {p.status for p in parsed} == {"ok"}
        assert [p.answer.action.kind == "COMPLETE" for p in parsed] == [False] * (len(parsed) - 1) + [True]
        assert parsed[-1].answer.long_term["remaining_subtasks"] == []


def test_practice_plan_items_move_from_remaining_to_completed_in_order():
    rng = random.Random(1)
    for _ in range(50):
        plans = [
            [*a.long_term["completed_subtasks"], *a.long_term["remaining_subtasks"]]
            for a in generate_task(rng, LABELS).answers
        ]
        assert all(plan == plans[0] for plan in plans)


def test_typed_text_of_a_practice_task_stands_in_its_goal():
    rng = random.Random(2)
    for _ in range(50):
        task = generate_task(rng, LABELS)
        texts = [a.action.arguments["text"] for a in task.answers if a.action.kind == "TEXT"]
        assert all(text in task.instruction for text in texts)


def test_practice_prompt_of_a_step_holds_the_memory_of_the_step_before():
    rng, agent = random.Random(3), AgentConfig()
    task = generate_task(rng, LABELS)
    prompt, _ = build_step(rng, task, agent, step=1)
    assert f'"last_target":"{task.answers[0].action.target}"' in prompt[1]["content"][1]["text"]


def test_practice_step_on_a_screen_acts_on_its_element_and_all_others_elsewhere():
    rng, here = random.Random(5), {"MRN": "TEXT", "Layout": "CLICK"}
    for _ in range(50):
        task, step = generate_task_on(rng, here, ["Patient", "Tools"])
        action = task.answers[step].action
        assert here[action.target] == action.kind
        assert action.target in task.instruction
        assert not {a.action.target for i, a in enumerate(task.answers) if i != step} & set(here)


def test_two_in_five_practice_steps_on_a_screen_come_with_a_memory_of_another_step():
    screen = Screen(Path("x.png"), "OHIF Viewer", (Element("textbox", "MRN", (0, 0, 640, 400)),))
    other = Screen(Path("y.png"), "OHIF Viewer", (Element("button", "Layout", (0, 0, 640, 400)),))
    maker = ExampleMaker([screen, other], ["word"], seed=0)
    n_right = 0
    for _ in range(400):
        system, user, assistant = maker.make_step_on_screen().messages
        before = json.loads(user["content"][1]["text"].split("Long-term memory: ")[1])
        after = json.loads(assistant["content"])["long_term"]
        done = before.get("completed_subtasks", [])
        n_right += done == after["completed_subtasks"][: len(done)] and (not before or _items(before) == _items(after))
    assert 0.6 < n_right / 400 < 0.9  # another step of one plan item leaves the same plan behind


def _items(long_term):
    return [*long_term["completed_subtasks"], *long_term["remaining_subtasks"]]


def test_what_a_copying_exercise_asks_for_stands_in_its_question():
    rng = random.Random(6)
    for _ in range(100):
        question, answer = (m["content"] for m in build_copying(rng, LABELS, ["code", "zoom"]))
        assert answer and answer in question


def test_plan_of_a_planning_exercise_is_its_goals_and_near_no_new_workflow_of_the_test():
    rng, maker = random.Random(8), PlanMaker(LABELS, ["code", "zoom"])
    with (DEMO / "data" / "test.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Group"] == "new_workflow"]
    new = {frozenset(json.loads(row["Output"])["long_term"]["completed_subtasks"]) for row in rows}
    finished = {plan for plan in new if not any(plan < other for other in new)}
    items = {item for clauses in load_clauses().values() for clause in clauses for item in clause.items}
    assert len(finished) >= 4
    assert all(not plan <= items or is_held_out(plan) for plan in finished)
    for _ in range(300):
        goal, plan = maker.make(rng)
        assert 2 <= len(plan) <= 12 and goal
        assert not is_held_out(plan)


def test_what_a_planning_exercise_asks_for_a_second_time_is_called_so():
    rng, maker = random.Random(10), PlanMaker(LABELS, ["code", "zoom"])
    plans = [maker.make(rng)[1] for _ in range(300)]
    measured = [[item for item in plan if item.startswith("measure ")] for plan in plans]
    assert any("measure again" in items for items in measured)
    assert all(items[0] != "measure again" for items in measured if items)
    assert all(plan.count("scroll down") <= 1 for plan in plans)


def test_planning_exercise_asks_for_what_is_left_of_the_goals_plan():
    rng, maker, agent = random.Random(9), PlanMaker(LABELS, ["code", "zoom"]), AgentConfig()
    started = in_agents_format = 0
    for _ in range(200):
        question, answer = (m["content"] for m in build_planning(rng, maker, agent))
        plan = json.loads(answer)
        if not question.endswith("\nPlan?"):
            in_agents_format += 1
            plan = parse_answer(answer, agent).answer.long_term
        done = plan["completed_subtasks"]
        started += bool(done)
        assert json.dumps(done, separators=(",", ":")) in question or not done
        assert not set(done) & set(plan["remaining_subtasks"]) - {"filter studies", "filter patients", "search server"}
    assert 10 < started < 60
    assert 30 < in_agents_format < 70


def test_memory_of_the_first_step_is_empty_and_of_the_third_names_the_second():
    task = generate_task(random.Random(7), LABELS)
    while len(task.answers) < 3:
        task = generate_task(random.Random(8), LABELS)
    agent = AgentConfig()
    assert (remember(task, 0, agent).short_term, remember(task, 0, agent).long_term) == ({}, {})
    assert remember(task, 2, agent).short_term["last_target"] == task.answers[1].action.target


def test_labels_that_are_long_or_stand_twice_are_not_acted_on():
    elements = [("button", "OK"), ("button", "OK"), ("textbox", "Name:"), ("image", "viewport"), ("link", "x" * 40)]
    screen = Screen(Path("x.png"), "A", tuple(Element(role, name, (0, 0, 1, 1)) for role, name in elements))
    assert name_usable_elements(screen, 24) == {"Name": "TEXT", "viewport": "ZOOM"}


def test_a_word_after_a_blank_begins_near_the_same_word_without_one():
    tokenizer = build_tokenizer(["zoom zoom zoom study study"] * 50, 320)
    weight = build_model(tokenizer, "qwen3_vl", TinySize(vocab=320), seed=0).get_input_embeddings().weight
    vocabulary = tokenizer.get_vocab()
    pair, unrelated = (vocabulary["zoom"], vocabulary["\u0120zoom"]), vocabulary["\u0120study"]
    relate_word_starts(weight, tokenizer)
    near, far = (torch.cosine_similarity(weight[pair[0]], weight[i], dim=0) for i in (pair[1], unrelated))
    assert near > far + 0.2


def test_every_parameter_is_trained_by_exactly_one_optimizer():
    tokenizer = build_tokenizer(["zoom study"] * 50, 300)
    model = build_model(tokenizer, "qwen3_vl", TinySize(vocab=300), seed=0)
    trained = [id(p) for o in build_optimizers(model, 1e-3) for group in o.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in model.parameters())


def test_point_is_the_middle_in_thousandths_of_the_screen():
    assert Element("button", "OK", (0, 0, 640, 400)).point == [250, 250]
    assert Element("button", "OK", (1200, 760, 1280, 800)).point == [950, 1000]


def test_screen_questions_are_answered_from_the_elements():
    screen = Screen(Path("x.png"), "OHIF Viewer", (Element("heading", "Studies", (0, 0, 1280, 800)),))
    chat = build_chat(random.Random(0), screen, ["Studies", "Absent"], n_questions=40)
    turns = [m["content"][-1]["text"] for m in chat]
    answers = dict(zip(turns[::2], turns[1::2]))
    assert answers["Which page is this?"] == "OHIF Viewer; Studies"
    assert answers["Is Studies on the screen?"] == "yes"
    assert answers["Is Absent on the screen?"] == "no"
    assert answers["What is at [500, 500]?"] == "Studies"
    assert json.loads(answers["Point at Studies."]) == {"point_2d": [500, 500], "label": "Studies"}
    assert [len(m["content"]) for m in chat[:3]] == [2, 1, 1]  # one image, in the first turn


def test_pretraining_encodes_a_step_as_fine_tuning_does(encoder, screenshot):
    agent = AgentConfig(min_pixels=65_536, max_pixels=98_304)
    rng = random.Random(4)
    prompt, answer = build_step(rng, generate_task(rng, LABELS), agent)
    example = Example([*prompt, {"role": "assistant", "content": answer}], screenshot)
    ids, labels = encoder.encode(example)
    text = encoder.processor.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    row = {"prompt": text, "completion": answer, "image": str(screenshot)}
    expected = PaddingCollator(StepEncoder(encoder.processor, agent))([row])
    n = expected["input_ids"].shape[1]
    assert ids[:n] == expected["input_ids"][0].tolist()
    assert labels[:n] == expected["labels"][0].tolist()
    assert set(labels[n:]) == {IGNORED_LABEL}  # the template's line break after the turn


def test_every_answer_of_a_conversation_is_learned_and_nothing_else(encoder):
    turns = [("user", "a"), ("assistant", "b c"), ("user", "d"), ("assistant", "e")]
    ids, labels = encoder.encode(Example([{"role": role, "content": text} for role, text in turns]))
    learned = encoder.tokenizer.decode([token for token, label in zip(ids, labels) if label != IGNORED_LABEL])
    assert learned == "b c<|im_end|>e<|im_end|>"


@pytest.mark.skipif(not (DEMO / "base" / "pretraining.json").is_file(), reason="no base in this checkout")
def test_base_saw_only_screenshots_of_training_tasks_and_fits_in_git():
    record = json.loads((DEMO / "base" / "pretraining.json").read_text())
    with (DEMO / "data" / "train.csv").open(encoding="utf-8", newline="") as file:
        trained_on = {row["Image_id"] for row in csv.DictReader(file)}
    assert set(record["screens"]) <= trained_on
    assert record["read"]["train.csv"] == hashlib.sha256((DEMO / "data" / "train.csv").read_bytes()).hexdigest()
    assert sum(path.stat().st_size for path in (DEMO / "base").iterdir()) <= 10_000_000
