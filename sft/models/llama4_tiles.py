"""How Llama-4 cuts a screenshot: canvas, tiles and the tokens that stand for them. Knows no pixels, no torch."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

IMAGE_TOKEN = "<|image|>"  # the template's placeholder; the model's own picture tokens are PATCH_TOKEN
PATCH_TOKEN = "<|patch|>"
START_TOKEN, END_TOKEN = "<|image_start|>", "<|image_end|>"
COLUMN_TOKEN, ROW_TOKEN = "<|tile_x_separator|>", "<|tile_y_separator|>"


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
