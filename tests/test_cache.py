"""Cached screenshots give the model the same pixels as fresh ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from demo.tiny_qwen3vl import build_tiny_checkpoint
from sft.encoding import StepEncoder
from sft.processors import load_processor
from sft.prompts import AgentConfig

AGENT = AgentConfig(min_pixels=16_384, max_pixels=65_536)


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def processor(request, tmp_path_factory):
    checkpoint = build_tiny_checkpoint(tmp_path_factory.mktemp(request.param), ["Open the study"], request.param)
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
        assert torch.equal(cached["pixel_values"], fresh["pixel_values"])
        assert torch.equal(cached["image_grid_thw"], fresh["image_grid_thw"])


def test_a_screenshot_is_decoded_once_whatever_its_name(processor, screenshots, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(screenshots[0].read_bytes())
    encoder = StepEncoder(processor, AGENT, tmp_path / "cache")
    first = encoder.encode_screenshots([screenshots[0]])
    screenshots[0].write_bytes(b"no longer an image")
    again = encoder.encode_screenshots([copy])
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_another_pixel_budget_is_another_entry(processor, screenshots, tmp_path):
    StepEncoder(processor, AGENT, tmp_path / "cache").encode_screenshots([screenshots[0]])
    processor.image_processor.size["longest_edge"] = 32_768
    StepEncoder(processor, AGENT, tmp_path / "cache").encode_screenshots([screenshots[0]])
    processor.image_processor.size["longest_edge"] = AGENT.max_pixels
    assert len(list((tmp_path / "cache").iterdir())) == 2
