"""What plain `AutoProcessor` makes of the folders this package saves, for an environment that has torchvision.

python tests/official_processors.py     # torch, torchvision, transformers, pillow; from the repository's root

The tests, which have no torchvision, cannot run it. It prints versions and differences, and fails where tokens differ
or a pixel differs by more than rounding (2/255). docs/llama4.md has what it printed.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torchvision
import transformers
from llama4_golden import draw_picture
from transformers import AutoProcessor

from demo.tiny_llama4 import build_tiny_llama4
from demo.tiny_qwen3vl import build_tiny_checkpoint
from sft.models.processors import load_processor, save_processor

BUILDERS = {"llama4": build_tiny_llama4, "qwen3_vl": build_tiny_checkpoint}
SCREENS = [(1280, 800), (1080, 1920), (300, 200)]
BUDGET = 65_536, 131_072  # pixels
LEVEL = 2 * 2 / 255  # two steps of an 8-bit colour: both families normalise to -1 .. 1
BF16 = 2**-8  # Llama-4 normalises in bfloat16


def compare(family, folder):
    """Save a tiny processor, reopen it both ways, compare their inputs for every screen, and return what was found."""
    base = BUILDERS[family](folder / "base", ["Goal: open the study"])
    ours = load_processor(base, *BUDGET)
    save_processor(ours, folder / "saved")
    official = AutoProcessor.from_pretrained(folder / "saved")
    module = type(official).__module__
    assert module.startswith("transformers."), module
    largest, n_different, n_values = 0.0, 0, 0
    for screen in SCREENS:
        content = [{"type": "image"}, {"type": "text", "text": "Goal: open the study"}]
        messages = [{"role": "user", "content": content}]
        texts = [p.apply_chat_template(messages, add_generation_prompt=True) for p in (ours, official)]
        assert texts[0] == texts[1]
        arguments = {"text": texts[:1], "images": [draw_picture(*screen)], "return_tensors": "pt"}
        expected, found = official(**arguments), ours(**arguments)
        names = set(found) & set(expected)
        assert names >= {"input_ids", "attention_mask", "pixel_values"}, (set(found), set(expected))
        for name in names - {"pixel_values"}:
            assert torch.equal(found[name], expected[name]), (screen, name)
        difference = (found["pixel_values"].float() - expected["pixel_values"].float()).abs()
        largest = max(largest, difference.max().item())
        n_different, n_values = n_different + int((difference > 1e-6).sum()), n_values + difference.numel()
        print(family, screen, sorted(found), sorted(expected), expected["pixel_values"].dtype, difference.max().item())
    assert largest <= LEVEL + BF16, largest
    share = n_different / n_values
    return f"{family}: {type(official).__name__}, largest difference {largest:.4f}, {share:.2%} of values differ"


def main():
    print("torch", torch.__version__, "torchvision", torchvision.__version__, "transformers", transformers.__version__)
    with tempfile.TemporaryDirectory() as folder:
        found = [compare(family, Path(folder) / family) for family in BUILDERS]
    print("\n".join(found))


if __name__ == "__main__":
    main()
