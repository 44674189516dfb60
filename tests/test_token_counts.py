"""Image tokens counted from sizes alone against those of the real processors, which need torch."""

import random

import pytest
from trajectory_samples import TINY_AGENT

from sft.agent import AgentConfig
from sft.models.processors import load_processor
from sft.models.token_counts import build_image_counter, count_image_tokens


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
