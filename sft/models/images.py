"""What each family makes of a screenshot: pixels, tokens and positions. Knows no prompts, batches or models."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sft.models.token_counts import count_tiles, write_image_tokens

Grid = Sequence[int]  # one screenshot's row of `grid_name`


class Layout(Protocol):
    """A family's way with screenshots. `has_token_types`: its model is told which tokens are the picture's."""

    grid_name: str
    has_token_types: bool
    patches_a_token: int

    def encode_images(self, images: Sequence[Image.Image]) -> dict[str, Any]: ...

    def encode_prepared(self, prepared: Sequence[np.ndarray]) -> dict[str, Any]: ...

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Resize a screenshot; what is kept on disk: uint8."""

    def name_budget(self) -> str:
        """Return what a prepared screenshot depends on beside its content, fit for a file name."""

    def write_tokens(self, grid: Grid) -> list[int]:
        """Return the ids that stand for a screenshot in a prompt."""

    def count_rows(self, grid: Grid) -> int:
        """Return how many rows of `pixel_values` a screenshot takes."""

    def place(self, types: np.ndarray, grid: Grid) -> np.ndarray:
        """Return (axes, T) positions of a sequence with one screenshot; `types` is 1 on its tokens."""

    def pick_inputs(self, images: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of encoded screenshots the model takes."""


class QwenLayout:
    """Qwen-VL: one grid of merged patches, three axes of positions."""

    grid_name, has_token_types = "image_grid_thw", True

    def __init__(self, processor: Any):
        self._process, self._image_token_id = processor.image_processor, processor.image_token_id
        self.patches_a_token = self._process.merge_size**2

    def encode_images(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Return `pixel_values`: (sum of patches, patch dim) and `image_grid_thw`: (n_images, 3)."""
        return dict(self._process(images=list(images), return_tensors="pt"))

    def encode_prepared(self, prepared: Sequence[np.ndarray]) -> dict[str, Any]:
        """Encode what `prepare` gave: (3, height, width) each."""
        arguments = {"do_resize": False, "input_data_format": "channels_first", "return_tensors": "pt"}
        return dict(self._process(images=list(prepared), **arguments))

    def prepare(self, image: Image.Image) -> np.ndarray:
        return self._process.resize(
            image=np.asarray(image).transpose(2, 0, 1),
            size=self._process.size,
            resample=self._process.resample,
            factor=self._process.patch_size * self._process.merge_size,
        )

    def name_budget(self) -> str:
        size, side = self._process.size, self._process.patch_size * self._process.merge_size
        return f"{side}_{size['shortest_edge']}_{size['longest_edge']}"

    def write_tokens(self, grid: Grid) -> list[int]:
        return [self._image_token_id] * (self.count_rows(grid) // self.patches_a_token)

    def count_rows(self, grid: Grid) -> int:
        return math.prod(int(n) for n in grid)

    def place(self, types: np.ndarray, grid: Grid) -> np.ndarray:
        return mrope_positions(types, grid, self._process.merge_size)

    def pick_inputs(self, images: Mapping[str, Any]) -> dict[str, Any]:
        return dict(images)


class Llama4Layout:
    """Llama-4: rows and columns of tiles, every token counted on one axis."""

    grid_name, has_token_types = "aspect_ratios", False

    def __init__(self, processor: Any):
        self._process, self._tokenizer = processor.image_processor, processor.tokenizer
        self._tokens_a_tile, self.patches_a_token = processor.tokens_a_tile, processor.downsample_ratio

    def encode_images(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Return `pixel_values`: (sum of tiles, 3, tile, tile) and `aspect_ratios`: (n_images, 2)."""
        return self.encode_prepared([self.prepare(image) for image in images])

    def encode_prepared(self, prepared: Sequence[np.ndarray]) -> dict[str, Any]:
        return dict(self._process.encode(list(prepared), return_tensors="pt"))

    def prepare(self, image: Image.Image) -> np.ndarray:
        return self._process.lay_out(np.asarray(image).transpose(2, 0, 1))

    def name_budget(self) -> str:
        return f"tiles{self._process.size['height']}_{self._process.max_patches}"

    def write_tokens(self, grid: Grid) -> list[int]:
        return self._tokenizer.convert_tokens_to_ids(write_image_tokens(grid, self._tokens_a_tile))

    def count_rows(self, grid: Grid) -> int:
        return count_tiles(grid)

    def place(self, types: np.ndarray, grid: Grid) -> np.ndarray:
        return np.arange(len(types))[None]

    def pick_inputs(self, images: Mapping[str, Any]) -> dict[str, Any]:
        return {"pixel_values": images["pixel_values"]}


def mrope_positions(types: np.ndarray, grid_thw: Sequence[int], merge_size: int) -> np.ndarray:
    """Return the (3, T) temporal, height and width positions Qwen-VL gives a sequence with one image.

    Text counts on in all three; the image's tokens take their row and column, and the text after it continues from the
    larger of the two. Source: `get_rope_index` of transformers' Qwen3-VL and Qwen2.5-VL, against which it is tested.
    """
    _, height, width = (int(n) for n in grid_thw)
    rows, columns = height // merge_size, width // merge_size
    start = int(np.argmax(types == 1))
    end = start + rows * columns
    before = np.arange(start)
    image = np.stack(
        [
            np.full(rows * columns, start),
            start + np.repeat(np.arange(rows), columns),
            start + np.tile(np.arange(columns), rows),
        ]
    )
    after = np.arange(len(types) - end) + start + max(rows, columns)
    return np.concatenate([np.tile(before, (3, 1)), image, np.tile(after, (3, 1))], axis=1)
