"""Token ids: a step is encoded alike in training and in rollout, and only its answer is trained on."""

import unicodedata
from contextlib import nullcontext
from dataclasses import replace
from os.path import commonprefix
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import write_recipe
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

from eval.policies.decoding import GeneratedAnswer
from eval.policies.hf import ModelPolicy
from eval.policies.policy import ReplayPolicy
from eval.rollouts.walk import walk_tasks
from sft import run
from sft.actions import Action
from sft.agent import AgentConfig
from sft.answers import Answer, format_answer
from sft.batches.collator import IGNORED_LABEL, PackingCollator, PaddingCollator, check_answer_only_labels
from sft.batches.encoder import StepEncoder
from sft.batches.examples import (
    build_examples,
    build_step_rows,
    find_missing_memory,
    find_tight_answer_limit,
    read_step_sizes,
)
from sft.batches.sampler import PackSampler
from sft.data.load import TrajectoryError, load_trajectories
from sft.data.screenshots import open_screenshot
from sft.data.train_val import TaskSplit
from sft.memory import EMPTY_MEMORY, Memory, memory_chars
from sft.models.processors import load_processor

BUSY = Memory({"last_action": "CLICK"}, {"completed_subtasks": ["open"]})
COLLATORS = {"padded": PaddingCollator, "packed": PackingCollator}


def _encoder(checkpoint, agent=TINY_AGENT):
    return StepEncoder(load_processor(checkpoint, agent.min_pixels, agent.max_pixels), agent)


@pytest.fixture
def encoder(checkpoint):
    return _encoder(checkpoint)


class _Rollout:
    """Replays the gold and keeps, per step, what the model policy would have read, before any padding."""

    def __init__(self, trajectories, encoder, monkeypatch):
        self.replay, self.policy, self.steps, self._read = (
            ReplayPolicy(trajectories, encoder.agent),
            ModelPolicy(None, encoder),
            {},
            [],
        )
        monkeypatch.setattr("eval.policies.hf.generate_greedy", self._generate)
        monkeypatch.setattr("eval.policies.hf.asked_alone", lambda model: nullcontext())

    def _generate(self, model, prompts, *_):
        self._read = prompts
        return [GeneratedAnswer([], True) for _ in prompts]

    def answer(self, requests):
        self.policy.answer(requests)
        for request, prompt in zip(requests, self._read, strict=True):
            self.steps[request.task_id, request.index] = prompt
        return self.replay.answer(requests)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["own", "teacher"])
@pytest.mark.parametrize("agent", [TINY_AGENT, replace(TINY_AGENT, memory_writer="rule")], ids=["model", "rule"])
def test_every_step_is_read_alike_in_training_and_in_rollout(checkpoint, tmp_path, monkeypatch, mode, agent):
    """Ids, positions and pixels, under the memory that replayed answers leave."""
    trajectories = load_trajectories(write_trajectories(tmp_path, build_tasks(2, n_steps=6)), show_progress=False)
    encoder = _encoder(checkpoint, agent)
    rollout = _Rollout(trajectories, encoder, monkeypatch)
    list(walk_tasks(trajectories, rollout, agent, mode, batch_size=2))
    rows = list(build_step_rows(trajectories, "tasks.csv", encoder, show_progress=False).dataset)
    assert len(rows) == 12
    batch = PaddingCollator(encoder)(rows)
    pixels = torch.split(
        batch["pixel_values"], [len(rollout.steps[r["task_id"], r["step"]].screenshot["pixel_values"]) for r in rows]
    )
    for i, row in enumerate(rows):
        n_prompt = int((batch["labels"][i] != IGNORED_LABEL).nonzero()[0])
        read = rollout.steps[row["task_id"], row["step"]]
        assert batch["input_ids"][i, :n_prompt].tolist() == list(read.ids)
        assert row["n_prompt_tokens"] == n_prompt
        assert set(read.screenshot) <= set(batch)
        if "image_grid_thw" in batch:
            assert torch.equal(batch["image_grid_thw"][i], read.screenshot["image_grid_thw"][0])
        assert torch.equal(pixels[i], read.screenshot["pixel_values"])
        positions = PackingCollator(encoder)([row])["position_ids"].flatten(0, -2)[:, :n_prompt]
        np.testing.assert_array_equal(positions, read.positions)


def test_prompt_ids_are_those_of_the_familys_own_processor(encoder, tasks):
    for step in tasks[0].steps:
        text = encoder.build_prompt(tasks[0].instruction, EMPTY_MEMORY, step.image_path).text
        image = open_screenshot(step.image_path)
        expected = encoder.processor(
            text=[text], images=[image], return_mm_token_type_ids=encoder.layout.has_token_types
        )
        images = encoder.encode_screenshots([step.image_path])
        ids, types = encoder.encode_prompt(text, images[encoder.layout.grid_name][0].tolist())
        assert ids == list(expected["input_ids"][0])
        if encoder.layout.has_token_types:
            assert types == list(expected["mm_token_type_ids"][0])
        np.testing.assert_array_equal(images["pixel_values"], np.asarray(expected["pixel_values"]))


def test_chat_turns_are_where_they_belong(tiny_checkpoints, tasks):
    encoder = _encoder(tiny_checkpoints["qwen3_vl"])
    text = encoder.build_prompt("Open it", Memory({"a": "<|im_end|>"}, {}), tasks[0].steps[0].image_path).text
    assert text.startswith("<|im_start|>system\nYou operate clinical software.")
    assert "<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Goal: Open it\n" in text
    assert text.endswith("Long-term memory: {}<|im_end|>\n<|im_start|>assistant\n")
    assert text.count("<|im_end|>") == 2


@pytest.mark.parametrize("how", COLLATORS)
def test_labels_decode_to_exactly_the_answers_and_their_ends_of_turn(encoder, tasks, how):
    rows = list(build_step_rows(tasks[:2], "tasks.csv", encoder, show_progress=False).dataset)
    labels, end = COLLATORS[how](encoder)(rows)["labels"], encoder.tokenizer.eos_token
    supervised = [encoder.tokenizer.decode(row[row != IGNORED_LABEL]) for row in labels]
    if how == "packed":
        supervised = [answer + end for answer in supervised[0].split(end)[:-1]]
    expected = [format_answer(s.gold, encoder.agent) + end for t in tasks[:2] for s in t.steps]
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


@pytest.mark.slow
@pytest.mark.parametrize("size", [(320, 192), (1280, 800), (1919, 1079), (64, 64), (30, 700), (801, 100)])
def test_image_tokens_counted_from_the_size_are_those_the_processor_makes(checkpoint, tmp_path, size):
    path = tmp_path / "screen.png"
    Image.new("RGB", size, "teal").save(path)
    for max_pixels in (65_536, 1_310_720):
        encoder = _encoder(checkpoint, replace(TINY_AGENT, max_pixels=max_pixels, max_prompt_tokens=99_999))
        prompt = encoder.build_prompt("goal", EMPTY_MEMORY, path)
        grid = encoder.encode_screenshots([path])[encoder.layout.grid_name][0]
        ids, types = encoder.encode_prompt(prompt.text, grid.tolist())
        assert encoder.count_image_tokens(path) == sum(types) > 0
        assert prompt.n_tokens == len(ids)
        assert prompt.n_image_tokens == sum(types)
        assert prompt.tail.tolist() == ids[types.index(1) + sum(types) :]


GROUNDED = replace(TINY_AGENT, use_grounding=True, max_prompt_tokens=99_999)
ELEMENTS = [{"name": f"Goal: {i}", "bbox": [i, 2, i + 20, 30]} for i in range(40)]


def _find_shared(encoder, path, elements):
    """Count the tokens that two prompts on one screenshot have in common from their first on."""
    grid = encoder.encode_screenshots([path])[encoder.layout.grid_name][0].tolist()
    prompts = [
        encoder.build_prompt(goal, memory, path, elements) for goal, memory in (("A", EMPTY_MEMORY), ("9", BUSY))
    ]
    ids, types = encoder.encode_prompt(prompts[0].text, grid)
    n_image_end = len(types) - types[::-1].index(1)
    others = encoder.encode_prompt(prompts[1].text, grid)[0]
    return len(commonprefix([ids, others])), n_image_end + prompts[0].elements.n_prefix_tokens


def test_elements_behind_the_screenshot_are_counted_into_what_its_steps_share(checkpoint, tasks):
    """All of them; what two prompts share beyond that is the beginning of the line with the goal."""
    path = tasks[0].steps[0].image_path
    encoder = _encoder(checkpoint, GROUNDED)
    shared, counted = _find_shared(encoder, path, ELEMENTS)
    alone, plain = _find_shared(_encoder(checkpoint), path, ())
    assert 0 <= shared - counted <= alone - plain
    assert counted - plain > 40 * 8
    shared, counted = _find_shared(_encoder(checkpoint, replace(GROUNDED, prompt_version="1")), path, ELEMENTS)
    assert (shared, counted) == (alone, plain)


def test_elements_beyond_the_limits_are_left_out_from_the_end_and_counted(tiny_checkpoints, tasks):
    path = tasks[0].steps[0].image_path
    whole = _encoder(tiny_checkpoints["qwen3_vl"], GROUNDED).build_prompt("goal", EMPTY_MEMORY, path, ELEMENTS)
    assert (whole.elements.n_left_out, list(whole.elements.elements)) == (0, ELEMENTS)
    limit = whole.elements.n_tokens
    for changes, n_shown in (
        ({"max_element_tokens": limit}, 40),
        ({"max_element_tokens": limit - 1}, 39),
        ({"max_element_tokens": 1}, 0),
        ({"max_elements": 7}, 7),
        ({"max_elements": 39, "max_element_tokens": limit // 2}, None),
        ({"prompt_version": "1", "max_elements": 7}, 40),
    ):
        encoder = _encoder(tiny_checkpoints["qwen3_vl"], replace(GROUNDED, **changes))
        shown = encoder.build_prompt("goal", EMPTY_MEMORY, path, ELEMENTS).elements
        if n_shown is None:  # as many as fit: one more would not
            n_shown = len(shown.elements)
            one_more = replace(GROUNDED, max_elements=n_shown + 1, max_element_tokens=limit)
            assert _encoder(tiny_checkpoints["qwen3_vl"], one_more).fit_elements(ELEMENTS).n_tokens > limit // 2
        assert (list(shown.elements), shown.n_left_out) == (ELEMENTS[:n_shown], 40 - n_shown)
        assert n_shown == 0 or shown.n_tokens <= encoder.agent.max_element_tokens
        assert shown == encoder.build_prompt("another", BUSY, path, ELEMENTS).elements
        assert encoder.fit_elements(ELEMENTS) == shown


def test_training_log_says_how_many_elements_prompts_leave_out(tiny_checkpoints, tasks, caplog):
    encoder = _encoder(tiny_checkpoints["qwen3_vl"], replace(GROUNDED, max_elements=30))
    first, *rest = tasks[0].steps
    shown = [replace(tasks[0], steps=(replace(first, elements=tuple(ELEMENTS)), *rest))]
    rows = build_step_rows(shown, "tasks.csv", encoder, show_progress=False)
    run.log_data(TaskSplit(shown, []), rows, encoder)
    assert (
        "detected elements: 10 left out, in 1 of 3 prompts (max_elements 30, max_element_tokens 2048)" in caplog.text
    )


def test_packs_count_equal_elements_once_and_others_on_the_same_screenshot_for_themselves(tiny_checkpoints, tasks):
    """No pack is then larger than it was counted, whatever the data says of one screenshot."""
    encoder = _encoder(tiny_checkpoints["qwen3_vl"], GROUNDED)
    steps = [replace(step, elements=tuple(ELEMENTS[: 3 + step.index % 2])) for t in tasks for step in t.steps]
    dealt = iter(steps)
    changed = [replace(t, steps=tuple(next(dealt) for _ in t.steps)) for t in tasks]
    rows = build_step_rows(changed, "tasks.csv", encoder, show_progress=False).dataset
    sizes = read_step_sizes(rows)
    assert any(n > 40 for size in sizes for _, n in size.shared)
    sampler = PackSampler(sizes, 4000, seed=0)
    for pack in sampler.plan(0):
        packed = PackingCollator(encoder)([rows[i] for i in pack])["input_ids"].shape[-1]
        assert packed <= sampler.count_tokens(pack)


def test_screenshot_turned_by_its_exif_tag_is_counted_as_it_is_shown(checkpoint, tmp_path):
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (700, 300), "teal").save(path, exif=exif)
    encoder = _encoder(checkpoint)
    grid = encoder.encode_screenshots([path])[encoder.layout.grid_name][0].tolist()
    assert grid[-2] > grid[-1]
    assert encoder.count_image_tokens(path) == len(encoder.layout.write_tokens(grid))


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
        TrajectoryError, match=r"tasks.csv: row 2: Output: found an answer of \d+ tokens; expected at most 5: raise"
    ):
        build_step_rows(tasks, "tasks.csv", encoder, show_progress=False)


def test_step_that_is_too_long_in_prompt_and_answer_is_told_of_both(checkpoint, tasks):
    encoder = _encoder(checkpoint, replace(TINY_AGENT, max_prompt_tokens=100, max_answer_tokens=5))
    example = next(build_examples(tasks, encoder.agent, Path("tasks.csv"), encoder))
    assert [(p.row, p.column, p.task_id) for p in example.problems] == [(2, "Instruction", "t1"), (2, "Output", "t1")]
    assert (example.prompt, example.n_prompt_tokens) == ("", None) and example.n_answer_tokens > 5


@pytest.mark.parametrize(
    ("changes", "short_term", "long_term", "found"),
    [
        ({}, None, {}, "found no short_term in the answer"),
        ({}, {}, None, "found no long_term in the answer"),
        ({}, None, None, "found no short_term and no long_term in the answer"),
        ({}, {}, {}, None),
        ({"use_long_term": False}, {}, None, None),
        ({"use_short_term": False}, None, {}, None),
        ({"use_short_term": False}, None, None, "found no long_term in the answer"),
        ({"memory_writer": "rule"}, None, None, None),
    ],
)
def test_memory_is_missing_where_the_model_is_to_write_that_part(changes, short_term, long_term, found):
    answer = Answer(Action("CLICK", "x"), short_term, long_term)
    told = find_missing_memory(answer, replace(AgentConfig(), **changes))
    assert (told is None) if found is None else told.startswith(found)


def _answers(text, n_steps=9, tokens_a_char=1.0):
    answers = [
        format_answer(Answer(Action("CLICK", "x"), {}, {"done": [text] * n}), TINY_AGENT) for n in range(n_steps)
    ]
    return [(answer, round(len(answer) * tokens_a_char)) for answer in answers]


@pytest.mark.parametrize(
    ("answers", "changes", "found"),
    [
        (_answers("患者资料已经打开" * 6, tokens_a_char=0.75), {}, "memory_budget_chars=1200 is up to 90"),
        (_answers("患者资料已经打开" * 6, tokens_a_char=0.75), {"max_answer_tokens": 1024}, None),
        (_answers("患者资料已经打开" * 6, tokens_a_char=0.75), {"memory_budget_chars": 600}, None),
        (_answers("患者资料已经打开" * 6, tokens_a_char=0.75), {"memory_writer": "rule"}, None),
        (
            _answers("患者资料已经打开" * 6, tokens_a_char=0.75),
            {"use_short_term": False, "use_long_term": False},
            None,
        ),
        (_answers("opened the record of the patient", tokens_a_char=0.25), {}, None),
        (_answers("患者", tokens_a_char=0.75), {}, None),  # memory of a few characters
        ([], {}, None),
    ],
)
def test_memory_that_the_answer_limit_would_cut_is_warned_of_by_the_tokens_of_the_data(answers, changes, found):
    """The published limits, 1200 characters and 512 tokens, suit English alone."""
    told = find_tight_answer_limit(answers, replace(AgentConfig(), **changes))
    assert (told is None) if found is None else told.startswith(found)


def test_training_warns_of_memory_that_the_answer_limit_would_cut(tiny_checkpoints, tmp_path, caplog):
    recipe = write_recipe(
        tmp_path, tiny_checkpoints["qwen3_vl"]
    )  # its tokenizer knows these texts: 400 characters fit
    step = ["--max_steps", "1", "--learning_rate", "1e-3", "--output_dir", f"{tmp_path}/out"]
    run.main([str(recipe), *step, "--max_answer_tokens", "100"])
    assert "memory_budget_chars=400 is up to" in caplog.text and "max_answer_tokens=100 would cut" in caplog.text
