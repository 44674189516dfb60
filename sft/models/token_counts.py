"""Which and how many tokens stand for a screenshot: Qwen-VL by area, Llama-4 by tiles. Knows no pixels, no torch."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from sft.agent import AgentConfig
from sft.models.model_folder import read_json

DEFAULT_PIXELS_PER_TOKEN = 32  # a side, of Qwen3-VL: patches of 16 px, merged two by two; Qwen2.5-VL has 28
IMAGE_TOKEN = "<|image|>"  # the template's placeholder; the model's own picture tokens are PATCH_TOKEN
PATCH_TOKEN = "<|patch|>"
START_TOKEN, END_TOKEN = "<|image_start|>", "<|image_end|>"
COLUMN_TOKEN, ROW_TOKEN = "<|tile_x_separator|>", "<|tile_y_separator|>"


def build_image_counter(folder: Path | None, agent: AgentConfig) -> Callable[[int, int], int]:
    """Return what counts the image tokens of a screenshot (width, height) under the agent's pixel budget.

    Without a checkpoint folder they are those of Qwen3-VL.
    """
    tiles = read_tiles(folder) if folder is not None else None
    if folder is None or tiles is None:
        side = read_pixels_per_token(folder) if folder is not None else DEFAULT_PIXELS_PER_TOKEN
        return lambda width, height: count_image_tokens(width, height, agent, side)
    tile, most, tokens_a_tile = tiles
    max_tiles = count_tiles_in_budget(agent.max_pixels, tile, most)
    return lambda width, height: len(write_image_tokens(choose_canvas(height, width, max_tiles, tile), tokens_a_tile))


def read_tiles(folder: Path) -> tuple[int, int, int] | None:
    """Return Llama-4's pixels a tile side, most tiles and tokens a tile; None in a checkpoint of another family."""
    fields = read_json(folder / "processor_config.json")
    image = fields.get("image_processor") or read_json(folder / "preprocessor_config.json")
    if "Llama4Processor" not in (fields.get("processor_class"), image.get("processor_class")):
        return None
    tile = image["size"]["height"]
    side = tile // fields.get("patch_size", 14)
    return tile, image.get("max_patches", 16), int(side**2 * fields.get("pixel_shuffle_ratio", 0.5) ** 2)


def count_image_tokens(
    width: int, height: int, agent: AgentConfig, pixels_per_token: int = DEFAULT_PIXELS_PER_TOKEN
) -> int:
    """Return the image tokens of a screenshot within the agent's pixel budget: Qwen-VL's resizing, in integers."""
    side = pixels_per_token
    h, w = round(height / side) * side, round(width / side) * side
    if h * w > agent.max_pixels:
        scale = math.sqrt(height * width / agent.max_pixels)
        h, w = (max(side, math.floor(n / scale / side) * side) for n in (height, width))
    elif h * w < agent.min_pixels:
        scale = math.sqrt(agent.min_pixels / (height * width))
        h, w = (math.ceil(n * scale / side) * side for n in (height, width))
    return (h // side) * (w // side)


def read_pixels_per_token(folder: Path) -> int:
    """Return how many pixels a side one image token covers, from a checkpoint's processor files."""
    if (tiles := read_tiles(folder)) is not None:
        return tiles[0] // math.isqrt(tiles[2])
    fields = read_json(folder / "preprocessor_config.json") or read_json(folder / "processor_config.json")
    fields = fields.get("image_processor", fields)
    patch, merge = fields.get("patch_size"), fields.get("merge_size")
    return patch * merge if isinstance(patch, int) and isinstance(merge, int) else DEFAULT_PIXELS_PER_TOKEN


def count_tiles_in_budget(max_pixels: int, tile: int, most: int) -> int:
    """Return how many tiles of `tile` pixels a side fit `max_pixels`: at least 1, at most `most`."""
    return max(1, min(most, max_pixels // tile**2))


def choose_canvas(height: int, width: int, max_tiles: int, tile: int) -> tuple[int, int]:
    """Return rows and columns of tiles that a picture is laid on, whole and undistorted.

    The canvas that enlarges it least, or else shrinks it least; of equals the smallest. In 32-bit arithmetic, as
    `Llama4ImageProcessor` computes it: ties depend on it.
    """
    grids = list_grids(max_tiles)
    scale = np.array(
        [
            min(np.float32(rows * tile) / np.float32(height), np.float32(columns * tile) / np.float32(width))
            for rows, columns in grids
        ]
    )
    best = scale[scale >= 1].min() if (scale >= 1).any() else scale.max()
    return min((g for g, s in zip(grids, scale) if s == best), key=lambda g: g[0] * g[1])


def fit_canvas(height: int, width: int, canvas: tuple[int, int], tile: int) -> tuple[int, int]:
    """Return the height and width a picture is resized to on its canvas; it is enlarged to one tile at most."""
    target_height, scale_height = _scale_side(height, canvas[0] * tile, tile)
    target_width, scale_width = _scale_side(width, canvas[1] * tile, tile)
    if scale_width < scale_height:
        fitted = min(int(height * scale_width), target_height), target_width
    else:
        fitted = target_height, min(int(width * scale_height), target_width)
    return max(fitted[0], 1), max(fitted[1], 1)


def _scale_side(side: int, limit: int, tile: int) -> tuple[int, float | np.float32]:
    """Return a side's target and its scale: in 32 bits where the canvas limits it, as in the official code.

    A picture of 1280x800 on one tile becomes 209 pixels high by that, not 210.
    """
    wanted = max(side, tile)
    return (wanted, wanted / side) if wanted <= limit else (limit, np.float32(limit) / np.float32(side))


def count_tiles(canvas: Sequence[int]) -> int:
    """Return how many tiles the vision tower gets: those of the canvas, and the whole picture where it is cut."""
    n_tiles = int(canvas[0]) * int(canvas[1])
    return n_tiles + 1 if n_tiles > 1 else n_tiles


def write_image_tokens(canvas: Sequence[int], tokens_a_tile: int) -> list[str]:
    """Return the tokens that stand for one picture: its tiles row by row, then the whole picture."""
    rows, columns = int(canvas[0]), int(canvas[1])
    tile = [PATCH_TOKEN] * tokens_a_tile
    tokens = [START_TOKEN]
    if rows * columns > 1:
        for _ in range(rows):
            tokens += tile
            for _ in range(columns - 1):
                tokens += [COLUMN_TOKEN, *tile]
            tokens.append(ROW_TOKEN)
    return [*tokens, IMAGE_TOKEN, *tile, END_TOKEN]


@lru_cache
def list_grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Return every grid of at most `max_tiles` tiles, grids of one shape together, the largest first."""
    by_shape = defaultdict(list)
    for n_tiles in range(max_tiles, 0, -1):
        for rows in (r for r in range(1, n_tiles + 1) if n_tiles % r == 0):
            by_shape[rows / (n_tiles // rows)].append((rows, n_tiles // rows))
    return tuple(grid for grids in by_shape.values() for grid in grids)
