"""Llama-4's pictures without torchvision: the official tiles, values and canvases, committed as golden tensors."""

import numpy as np
import pytest
from llama4_golden import CASES, FILE, MAX_TILES, draw_picture

from sft.models.llama4_images import Llama4ImageProcessor
from sft.models.token_counts import choose_canvas, count_tiles, count_tiles_in_budget, fit_canvas, write_image_tokens

LEVEL = 0.012  # one step of an 8-bit colour after normalisation in bfloat16: 2/255 rounded, at most this


@pytest.fixture(scope="module")
def golden():
    return np.load(FILE)


@pytest.mark.parametrize("i", range(len(CASES)), ids=[f"{w}x{h} of {n}" for w, h, n, _, _ in CASES])
def test_pixels_are_the_official_ones_to_rounding(golden, i):
    width, height, max_tiles, tile, step = CASES[i]
    processor = Llama4ImageProcessor(size={"height": tile, "width": tile}, max_patches=max_tiles)
    encoded = processor(images=[draw_picture(width, height)], return_tensors="np")
    found = encoded["pixel_values"][..., ::step, ::step]
    bits = golden[f"pixels_{i}"].view(np.uint16).astype(np.uint32) << 16  # bfloat16 is the upper half of a float32
    expected = bits.view(np.float32)
    assert encoded["aspect_ratios"].tolist() == golden[f"canvas_{i}"].tolist()
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    assert difference.max() <= LEVEL
    assert (difference > 0).mean() <= 0.06


def test_whole_colours_are_normalised_to_the_official_bits(golden):
    """A pixel that no resizing touched: 336x336 on one tile."""
    i = next(i for i, case in enumerate(CASES) if case[:2] == (336, 336))
    found = Llama4ImageProcessor()(images=[draw_picture(336, 336)], return_tensors="np")["pixel_values"][
        ..., ::23, ::23
    ]
    bits = found.view(np.uint32)
    assert not (bits & 0xFFFF).any()
    assert np.array_equal((bits >> 16).astype(np.uint16).view(np.int16), golden[f"pixels_{i}"])


@pytest.mark.parametrize("max_tiles", MAX_TILES)
def test_canvas_and_size_on_it_are_the_official_ones_for_any_picture(golden, max_tiles):
    rows = golden[f"canvases_{max_tiles}"]
    assert len(rows) > 100 and len({tuple(row[2:4]) for row in rows}) > max_tiles // 2
    for height, width, n_rows, n_columns, fitted_height, fitted_width in rows.tolist():
        canvas = choose_canvas(height, width, max_tiles, 336)
        assert canvas == (n_rows, n_columns), (height, width)
        assert fit_canvas(height, width, canvas, 336) == (fitted_height, fitted_width), (height, width)


def test_pixel_budget_is_a_number_of_tiles():
    assert [count_tiles_in_budget(n, 336, 16) for n in (1, 336**2, 1_310_720, 10**9)] == [1, 1, 11, 16]


def test_tiles_stand_row_by_row_and_the_whole_picture_last():
    assert "".join(write_image_tokens((1, 1), 2)) == "<|image_start|><|image|><|patch|><|patch|><|image_end|>"
    assert "".join(write_image_tokens((2, 2), 1)) == (
        "<|image_start|>"
        "<|patch|><|tile_x_separator|><|patch|><|tile_y_separator|>"
        "<|patch|><|tile_x_separator|><|patch|><|tile_y_separator|>"
        "<|image|><|patch|><|image_end|>"
    )
    assert [count_tiles(canvas) for canvas in ((1, 1), (1, 2), (4, 4))] == [1, 3, 17]
