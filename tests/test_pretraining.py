"""What the demo's base is pre-trained on: practice tasks, questions about screens, and where their labels lie."""

import csv
import hashlib
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from demo.practice import build_step, generate_task
from demo.pretraining_examples import Example, ExampleEncoder
from demo.pretraining_pairs import Element, Screen, build_chat
from demo.tiny_qwen3vl import build_tiny_checkpoint
from sft.collator import PaddingCollator
from sft.encoding import StepEncoder
from sft.packing import IGNORED_LABEL
from sft.processors import load_processor
from sft.prompts import AgentConfig, parse_answer

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
