"""Llama-4's image processing on Pillow and NumPy, where transformers has it for torchvision alone."""

from functools import lru_cache
from typing import Any

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from sft.models.token_counts import choose_canvas, count_tiles, fit_canvas


class _Llama4ImagesKwargs(ImagesKwargs, total=False):
    max_patches: int
    resize_to_max_canvas: bool


class Llama4ImageProcessor(PilBackend):
    """Cuts each picture into square tiles, and adds the whole picture as one more tile where there are several.

    Called with images it returns `pixel_values` (tiles of all pictures, 3, tile, tile) float32 and `aspect_ratios`
    (n_images, 2): rows and columns of tiles. It bears the family's own class name, which is written when saving.
    Normalised values are the official ones to the bit; a resized pixel may differ by rounding (1/255 or 2/255).
    """

    resample = PILImageResampling.BILINEAR
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 336, "width": 336}
    do_resize = do_rescale = do_normalize = do_convert_rgb = True
    max_patches = 16
    resize_to_max_canvas = False
    valid_kwargs = _Llama4ImagesKwargs
    model_input_names = ["pixel_values", "aspect_ratios"]

    def lay_out(self, image: np.ndarray) -> np.ndarray:
        """Resize a (3, height, width) uint8 picture onto its canvas, with a row of tiles below it.

        That row begins with the whole picture on one tile. Of the sheet, (3, (rows + 1) * tile, columns * tile) uint8,
        `encode` knows rows and columns by its size.
        """
        tile = self.size["height"]
        height, width = image.shape[1:]
        rows, columns = canvas = choose_canvas(height, width, self.max_patches, tile)
        fitted = fit_canvas(height, width, canvas, tile)
        sheet = np.zeros((3, (rows + 1) * tile, columns * tile), dtype=np.uint8)
        sheet[:, : fitted[0], : fitted[1]] = self._resize_to(image, *fitted)
        sheet[:, rows * tile :, :tile] = self._resize_to(image, tile, tile)
        return sheet

    def encode(self, sheets: list[np.ndarray], return_tensors: Any = None) -> BatchFeature:
        """Cut the sheets of `lay_out` into tiles and normalise them."""
        tile = self.size["height"]
        levels = _normalise_levels(self.rescale_factor, self.image_mean[0], self.image_std[0])
        canvases = [(sheet.shape[1] // tile - 1, sheet.shape[2] // tile) for sheet in sheets]
        data = {
            "pixel_values": np.concatenate([levels[_cut(s, *canvas, tile)] for s, canvas in zip(sheets, canvases)]),
            "aspect_ratios": np.array(canvases, dtype=np.int64),
        }
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _preprocess(  # type: ignore[override]
        self, images: list[np.ndarray], return_tensors: Any = None, **kwargs: Any
    ) -> BatchFeature:
        return self.encode([self.lay_out(image) for image in images], return_tensors)

    def _resize_to(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        return self.resize(image, SizeDict(height=height, width=width), self.resample)


def _cut(sheet: np.ndarray, rows: int, columns: int, tile: int) -> np.ndarray:
    tiles = sheet.reshape(3, rows + 1, tile, columns, tile).transpose(1, 3, 0, 2, 4).reshape(-1, 3, tile, tile)
    return tiles[: count_tiles((rows, columns))]


@lru_cache
def _normalise_levels(factor: float, mean: float, std: float) -> np.ndarray:
    """Return what each of the 256 levels becomes: in bfloat16 as the official code computes it, held in float32."""
    import torch

    levels = torch.arange(256).to(torch.bfloat16) * factor
    constants = torch.tensor([mean, std]).to(torch.bfloat16)
    return ((levels - constants[0]) / constants[1]).float().numpy()
