"""Token ids: a step is encoded alike in training and in rollout, and only its answer is trained on."""

import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

from eval.policy import ModelPolicy, ReplayPolicy, StepRequest
from eval.walk import walk_tasks
from sft.actions import Action
from sft.collator import IGNORED_LABEL, PackingCollator, PaddingCollator, check_answer_only_labels
from sft.data import build_step_rows
from sft.encoding import StepEncoder
from sft.memory import EMPTY_MEMORY, Answer, Memory, memory_chars
from sft.processors import load_processor
from sft.prompts import format_answer
from sft.screenshots import open_screenshot
from sft.trajectory import TrajectoryError, load_trajectories

COLLATORS = {"padded": PaddingCollator, "packed": PackingCollator}


def _encoder(checkpoint, agent=TINY_AGENT):
    return StepEncoder(load_processor(checkpoint, agent.min_pixels, agent.max_pixels), agent)


@pytest.fixture
def encoder(checkpoint):
    return _encoder(checkpoint)


class _Batches:
    """Replays the gold and keeps, per step, what `ModelPolicy` would have given to `generate`, without padding."""

    def __init__(self, trajectories, encoder):
        self.replay, self.policy, self.steps = (
            ReplayPolicy(trajectories, encoder.agent),
            ModelPolicy(None, encoder),
            {},
        )
        self.policy.model = torch.nn.Linear(1, 1)
        self.policy.model.device, self.policy.model.dtype = "cpu", torch.float32

    def answer(self, requests):
        prompts = [self.policy.encoder.build_prompt(r.instruction, r.memory, r.image_path).text for r in requests]
        batch, _ = self.policy._build_batch(prompts, [r.image_path for r in requests])
        for i, request in enumerate(requests):
            real = batch["attention_mask"][i].bool()
            self.steps[request.task_id, request.index] = (
                batch["input_ids"][i][real].tolist(),
                batch["mm_token_type_ids"][i][real].tolist(),
                batch["image_grid_thw"][i].tolist(),
            )
        return self.replay.answer(requests)


@pytest.mark.parametrize("mode", ["own", "teacher"])
@pytest.mark.parametrize("agent", [TINY_AGENT, replace(TINY_AGENT, memory_writer="rule")], ids=["model", "rule"])
def test_prompt_ids_of_every_step_are_equal_in_training_and_in_rollout(checkpoint, tmp_path, mode, agent):
    trajectories = load_trajectories(write_trajectories(tmp_path, build_tasks(2, n_steps=6)), show_progress=False)
    encoder = _encoder(checkpoint, agent)
    rollout = _Batches(trajectories, encoder)
    list(walk_tasks(trajectories, rollout, agent, mode, batch_size=2))
    rows = build_step_rows(trajectories, "tasks.csv", encoder, show_progress=False).dataset
    assert len(rows) == 12
    batch = PaddingCollator(encoder)(list(rows))
    for i, row in enumerate(rows):
        first_label = int((batch["labels"][i] != IGNORED_LABEL).nonzero()[0])
        ids, types, grid = rollout.steps[row["task_id"], row["step"]]
        assert batch["input_ids"][i, :first_label].tolist() == ids
        assert batch["mm_token_type_ids"][i, :first_label].tolist() == types
        assert batch["image_grid_thw"][i].tolist() == grid
        assert row["n_prompt_tokens"] == len(ids)


def test_pixels_are_equal_in_training_and_in_rollout(encoder, tasks):
    rows = list(build_step_rows(tasks[:1], "tasks.csv", encoder, show_progress=False).dataset)
    trained = PaddingCollator(encoder)(rows)
    policy = ModelPolicy(torch.nn.Linear(1, 1), encoder)
    policy.model.device, policy.model.dtype = "cpu", torch.float32
    rolled_out, _ = policy._build_batch([r["prompt"] for r in rows], [s.image_path for s in tasks[0].steps])
    assert torch.equal(trained["pixel_values"], rolled_out["pixel_values"])


def test_prompt_ids_are_those_of_the_familys_own_processor(encoder, tasks):
    for step in tasks[0].steps:
        text = encoder.build_prompt(tasks[0].instruction, EMPTY_MEMORY, step.image_path).text
        image = open_screenshot(step.image_path)
        expected = encoder.processor(text=[text], images=[image], return_mm_token_type_ids=True)
        images = encoder.encode_screenshots([step.image_path])
        ids, types = encoder.encode_prompt(text, images["image_grid_thw"][0].tolist())
        assert ids == list(expected["input_ids"][0])
        assert types == list(expected["mm_token_type_ids"][0])
        np.testing.assert_array_equal(images["pixel_values"], np.asarray(expected["pixel_values"]))


def test_chat_turns_are_where_they_belong(encoder, tasks):
    text = encoder.build_prompt("Open it", Memory({"a": "<|im_end|>"}, {}), tasks[0].steps[0].image_path).text
    assert text.startswith("<|im_start|>system\nYou operate clinical software.")
    assert "<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Goal: Open it\n" in text
    assert text.endswith("Long-term memory: {}<|im_end|>\n<|im_start|>assistant\n")
    assert text.count("<|im_end|>") == 2


@pytest.mark.parametrize("how", COLLATORS)
def test_labels_decode_to_exactly_the_answers_and_their_ends_of_turn(encoder, tasks, how):
    rows = list(build_step_rows(tasks[:2], "tasks.csv", encoder, show_progress=False).dataset)
    labels = COLLATORS[how](encoder)(rows)["labels"]
    supervised = [encoder.tokenizer.decode(row[row != IGNORED_LABEL]) for row in labels]
    if how == "packed":
        supervised = [answer + "<|im_end|>" for answer in supervised[0].split("<|im_end|>")[:-1]]
    expected = [format_answer(s.gold, encoder.agent) + "<|im_end|>" for t in tasks[:2] for s in t.steps]
    assert sorted(supervised) == sorted(expected)
    assert check_answer_only_labels(encoder, rows) == expected[0]


def test_check_of_the_labels_sees_a_wrong_answer(encoder, tasks, monkeypatch):
    rows = list(build_step_rows(tasks[:1], "tasks.csv", encoder, show_progress=False).dataset)
    cut = encoder.encode_completion
    monkeypatch.setattr(encoder, "encode_completion", lambda text: cut(text)[:-1])
    with pytest.raises(AssertionError, match="are not the answers"):
        check_answer_only_labels(encoder, rows)


@pytest.mark.parametrize("target", ["Größe", unicodedata.normalize("NFD", "Größe"), "患者 🙂", "a\tb  c", "ﬁle Å"])
def test_answer_in_any_script_is_trained_on_as_it_is_written(encoder, tasks, target):
    rows = list(build_step_rows(tasks[:1], "tasks.csv", encoder, show_progress=False).dataset)
    completion = format_answer(Answer(Action("CLICK", target), {}, {}), encoder.agent)
    check_answer_only_labels(encoder, [{**rows[0], "completion": completion}])


@pytest.mark.parametrize("size", [(320, 192), (1280, 800), (1919, 1079), (64, 64), (30, 700), (801, 100)])
def test_image_tokens_counted_from_the_size_are_those_the_processor_makes(checkpoint, tmp_path, size):
    path = tmp_path / "screen.png"
    Image.new("RGB", size, "teal").save(path)
    for max_pixels in (65_536, 1_310_720):
        encoder = _encoder(checkpoint, replace(TINY_AGENT, max_pixels=max_pixels, max_prompt_tokens=99_999))
        prompt = encoder.build_prompt("goal", EMPTY_MEMORY, path)
        grid = encoder.encode_screenshots([path])["image_grid_thw"][0]
        ids, _ = encoder.encode_prompt(prompt.text, grid.tolist())
        n_image = ids.count(encoder.processor.image_token_id)
        assert encoder.count_image_tokens(path) == n_image == int(grid.prod()) // 4
        assert prompt.n_tokens == len(ids)
        assert encoder.count_prefix_tokens(path) == ids.index(encoder.processor.image_token_id) + n_image


def test_screenshot_turned_by_its_exif_tag_is_counted_as_it_is_shown(checkpoint, tmp_path):
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (700, 300), "teal").save(path, exif=exif)
    encoder = _encoder(checkpoint)
    grid = encoder.encode_screenshots([path])["image_grid_thw"][0].tolist()
    assert grid[1] > grid[2]
    assert encoder.count_image_tokens(path) == grid[1] * grid[2] // 4


def test_memory_is_shortened_until_the_prompt_fits_and_nothing_else(checkpoint, tasks):
    path = tasks[0].steps[0].image_path
    memory = Memory({"last_action": "CLICK"}, {"completed_subtasks": [f"subtask {i}" for i in range(60)]})
    free = _encoder(checkpoint).build_prompt("goal", memory, path)
    assert not free.is_shortened
    limit = free.n_tokens - 50
    tight = _encoder(checkpoint, replace(TINY_AGENT, max_prompt_tokens=limit)).build_prompt("goal", memory, path)
    assert tight.is_shortened
    assert limit - 200 < tight.n_tokens <= limit
    assert "Goal: goal\n" in tight.text
    assert "subtask 59" in tight.text
    assert "subtask 0" not in tight.text
    assert memory_chars(memory) > 700


def test_prompt_too_long_without_memory_is_refused_and_says_the_way_out(checkpoint, tasks):
    encoder = _encoder(checkpoint, replace(TINY_AGENT, max_prompt_tokens=100))
    with pytest.raises(
        ValueError, match=r"tokens without any memory, \d+ of them the screenshot; expected at most 100"
    ):
        encoder.build_prompt("goal", EMPTY_MEMORY, tasks[0].steps[0].image_path)
    with pytest.raises(TrajectoryError, match="raise max_prompt_tokens or lower max_pixels"):
        build_step_rows(tasks, "tasks.csv", encoder, show_progress=False)


def test_answer_longer_than_its_limit_is_refused_with_its_row(checkpoint, tasks):
    encoder = _encoder(checkpoint, replace(TINY_AGENT, max_answer_tokens=5))
    with pytest.raises(
        TrajectoryError, match=r"tasks.csv: row 2: Output: found an answer of \d+ tokens; expected at most max"
    ):
        build_step_rows(tasks, "tasks.csv", encoder, show_progress=False)


def test_step_whose_prompt_is_too_long_is_an_error_and_the_others_are_answered(checkpoint, tasks, monkeypatch):
    encoder = _encoder(checkpoint, replace(TINY_AGENT, max_prompt_tokens=400))
    policy, asked = ModelPolicy(None, encoder), []
    monkeypatch.setattr(policy, "_generate", lambda prompts, paths: asked.append(prompts) or [object()] * len(prompts))
    requests = [
        StepRequest("t", i, goal, EMPTY_MEMORY, tasks[0].steps[0].image_path)
        for i, goal in enumerate(["short", "endless " * 400, "short"])
    ]
    answers = policy.answer(requests)
    assert (len(asked), len(asked[0])) == (1, 2)
    assert answers[1].error.startswith("found a prompt of ")
    assert answers[1].text == ""
