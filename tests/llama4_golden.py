"""Llama-4's own image processor on pictures made on the spot, for an environment that has torchvision.

python tests/llama4_golden.py     # writes tests/golden/llama4_images.npz; torch, torchvision, transformers, pillow

The tests, which have no torchvision, hold `sft.models.llama4_images` to this file. It also names the versions that
wrote it.
"""

from pathlib import Path

import numpy as np
from PIL import Image

FILE = Path(__file__).parent / "golden" / "llama4_images.npz"
# (width, height, most tiles, pixels of a tile a side, every n-th pixel that is kept)
CASES = [
    (300, 200, 16, 56, 1),  # small tiles: every pixel is kept
    (90, 170, 4, 56, 1),
    (1280, 800, 16, 336, 23),
    (1280, 800, 11, 336, 23),
    (1920, 1080, 11, 336, 23),
    (1080, 1920, 16, 336, 23),
    (336, 336, 16, 336, 23),
    (300, 200, 16, 336, 23),  # smaller than one tile
    (2400, 90, 16, 336, 23),
    (40, 700, 4, 336, 23),
    (1280, 800, 1, 336, 23),
]
MAX_TILES = (1, 4, 11, 16)


def draw_picture(width, height):
    """Return blocks of colour under fine noise and sharp lines, different for each size."""
    rng = np.random.default_rng(width * 10_000 + height)
    blocks = rng.integers(0, 200, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    pixels = blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    pixels = pixels + rng.integers(0, 56, pixels.shape, dtype=np.uint8)
    pixels[::37], pixels[:, ::41] = 0, 255
    return Image.fromarray(pixels)


def draw_sizes():
    """Return random (height, width) of pictures, and the usual screens."""
    rng = np.random.default_rng(0)
    screens = [(720, 1280), (800, 1280), (1080, 1920), (2160, 3840), (1920, 1080), (336, 336), (672, 672), (1, 5000)]
    return screens + [(int(h), int(w)) for h, w in rng.integers(10, 3000, (120, 2))]


def main():
    import torch
    import torchvision
    import transformers
    from transformers.image_utils import SizeDict
    from transformers.models.llama4 import image_processing_llama4 as official

    arrays = {}
    for i, (width, height, max_tiles, tile, step) in enumerate(CASES):
        processor = official.Llama4ImageProcessor(size={"height": tile, "width": tile}, max_patches=max_tiles)
        encoded = processor(images=[draw_picture(width, height)], return_tensors="pt")
        kept = encoded["pixel_values"][..., ::step, ::step].contiguous()
        arrays[f"pixels_{i}"] = kept.view(torch.int16).numpy()  # bfloat16, bit by bit
        arrays[f"canvas_{i}"] = encoded["aspect_ratios"].numpy()
    tile = SizeDict(height=336, width=336)
    for most in MAX_TILES:
        canvases = torch.tensor(official.find_supported_resolutions(most, tile))
        rows = []
        for size in draw_sizes():
            canvas = official.get_best_fit(size, canvases)
            target = tuple(min(max(size[i], 336), canvas[i]) for i in range(2))  # tensors in part, as in `_preprocess`
            fitted = official.get_max_res_without_distortion(size, target)
            rows.append([*size, *(canvas // 336).tolist(), *(max(int(n), 1) for n in fitted)])
        arrays[f"canvases_{most}"] = np.array(rows, dtype=np.int16)
    arrays["versions"] = np.array([torch.__version__, torchvision.__version__, transformers.__version__])
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **arrays)
    print(FILE, FILE.stat().st_size)


if __name__ == "__main__":
    main()
