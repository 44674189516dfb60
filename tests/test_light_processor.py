"""The light processor against the real ones: the same prompt text and the same counts, without torch."""

import random

import pytest
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

from sft.agent import AgentConfig
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_examples
from sft.data.load import load_trajectories
from sft.memory import lagged
from sft.models.light_processor import LightProcessor, build_image_counter, count_image_tokens
from sft.models.processors import load_processor


@pytest.fixture
def encoders(checkpoint):
    real = load_processor(checkpoint, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels)
    return StepEncoder(real, TINY_AGENT), StepEncoder(LightProcessor(checkpoint, TINY_AGENT), TINY_AGENT)


def test_prompts_and_token_counts_equal_those_of_training(encoders, tmp_path):
    tasks = load_trajectories(write_trajectories(tmp_path, build_tasks(4, 5)), show_progress=False)
    real, light = (list(build_examples(tasks, TINY_AGENT, tmp_path, encoder)) for encoder in encoders)
    assert len(light) == 20
    assert light == real


def test_rendered_text_equals_the_processors_own(encoders, tmp_path):
    tasks = load_trajectories(write_trajectories(tmp_path, build_tasks(1)), show_progress=False)
    memory = list(lagged(tasks[0].golds, "model", TINY_AGENT.memory_budget_chars))[-2]
    image_path = tasks[0].steps[0].image_path
    real, light = (encoder.build_prompt(tasks[0].instruction, memory, image_path) for encoder in encoders)
    assert light.text == real.text
    assert light.text.count(encoders[1].processor.image_token) == 1
    assert "Patient Name" in light.text


def test_image_tokens_equal_the_processors_for_any_size(checkpoint):
    real = load_processor(checkpoint, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels)
    count = build_image_counter(checkpoint, TINY_AGENT)
    rng = random.Random(0)
    for _ in range(300):
        width, height = rng.randint(20, 2_500), rng.randint(20, 2_500)
        expected = real._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens[0]
        assert count(width, height) == expected, (width, height)


@pytest.mark.parametrize(("size", "tokens"), [((1280, 720), 880), ((1920, 1080), 1_222), ((1280, 800), 1_000)])
def test_image_tokens_of_known_screens_on_qwen3_vl(size, tokens):
    assert count_image_tokens(*size, AgentConfig()) == tokens
