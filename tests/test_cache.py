"""Cached screenshots give the model the same pixels as fresh ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from sft.agent import AgentConfig
from sft.batches.encoder import StepEncoder
from sft.models.processors import load_processor

AGENT = AgentConfig(min_pixels=16_384, max_pixels=65_536)


@pytest.fixture
def processor(checkpoint):
    return load_processor(checkpoint, AGENT.min_pixels, AGENT.max_pixels)


@pytest.fixture
def screenshots(tmp_path):
    """Larger than the budget, smaller than it, and in palette colours."""
    rng, paths = np.random.default_rng(0), []
    for i, (width, height) in enumerate([(640, 400), (100, 90), (320, 200)]):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        paths.append(tmp_path / f"{i}.png")
        (image.convert("P") if i == 2 else image).save(paths[-1])
    return paths


def test_cached_pixels_are_those_of_a_fresh_screenshot(processor, screenshots, tmp_path):
    fresh = StepEncoder(processor, AGENT).encode_screenshots(screenshots)
    encoder = StepEncoder(processor, AGENT, tmp_path / "cache")
    for _ in range(2):  # written, then read
        cached = encoder.encode_screenshots(screenshots)
        assert cached.keys() == fresh.keys()
        assert all(torch.equal(cached[name], fresh[name]) for name in fresh)


def test_a_screenshot_is_decoded_once_whatever_its_name(processor, screenshots, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(screenshots[0].read_bytes())
    encoder = StepEncoder(processor, AGENT, tmp_path / "cache")
    first = encoder.encode_screenshots([screenshots[0]])
    screenshots[0].write_bytes(b"no longer an image")
    again = encoder.encode_screenshots([copy])
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_another_pixel_budget_is_another_entry(checkpoint, screenshots, tmp_path):
    for max_pixels in (AGENT.max_pixels, 32_768):  # 10 tiles of Llama-4's instead of 16
        processor = load_processor(checkpoint, AGENT.min_pixels, max_pixels)
        StepEncoder(processor, AGENT, tmp_path / "cache").encode_screenshots([screenshots[0]])
    assert len(list((tmp_path / "cache").iterdir())) == 2
