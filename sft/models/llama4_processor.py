"""Llama-4's processor without torchvision. Knows nothing of prompts or training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers

from sft.models.layouts import Layout, Llama4Layout
from sft.models.llama4_images import Llama4ImageProcessor
from sft.models.llama4_tiles import choose_canvas, count_tiles_in_budget, write_image_tokens


class Llama4Processor(transformers.Llama4Processor):
    """Llama-4 on `sft.models.llama4_images`, under the family's own class name, which is saved with it."""

    @classmethod
    def load_image_processor(
        cls, path: str | Path, min_pixels: int, max_pixels: int, revision: str
    ) -> Llama4ImageProcessor:
        """Open the image processor; `max_pixels` buys tiles, `min_pixels` has no meaning: a tile is the least."""
        processor = Llama4ImageProcessor.from_pretrained(path, revision=revision)
        tile = processor.size["height"]
        processor.max_patches = count_tiles_in_budget(max_pixels, tile, processor.max_patches)
        return processor

    @property
    def tokens_a_tile(self) -> int:
        """How many tokens stand for one tile."""
        side = int(self.image_processor.size["height"]) // self.patch_size
        return side**2 // self.downsample_ratio

    def build_layout(self) -> Layout:
        return Llama4Layout(self)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> SimpleNamespace:
        """Return how many tokens pictures of these (height, width) take, separators included."""
        process = self.image_processor
        canvases = [choose_canvas(h, w, process.max_patches, process.size["height"]) for h, w in image_sizes]
        counts = [len(write_image_tokens(canvas, self.tokens_a_tile)) for canvas in canvases]
        return SimpleNamespace(num_image_tokens=counts)
