"""What stands for Qwen3-VL-8B-Instruct where its weights are not at hand? Used by the GPU benchmarks.

python -m benchmarks.gpu.base_8b FOLDER [--tiny]

Writes a model folder of the 8B's shapes whose weights file is a hole of zeros: 17.5 GB long, no place on the disk. The
product loads it as it loads a published one (`random_weights` then gives every weight a random value). Tokenizer
and vocabulary are those of the demonstration's texts. `--tiny` writes a tiny model's folder the same way.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

WEIGHTS_FILE = "model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a tiny model's shapes")
    arguments = parser.parse_args()
    write_base(arguments.folder, arguments.tiny)


def write_base(folder: Path, is_tiny: bool = False) -> None:
    """Write config, tokenizer, processor and a weights file of zeros."""
    from benchmarks.sides import VOCAB, read_demo_texts
    from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint

    build_tiny_checkpoint(folder, read_demo_texts(), size=TinySize(VOCAB))
    (folder / WEIGHTS_FILE).unlink()
    if not is_tiny:
        use_8b_shapes(folder / "config.json")
    write_zero_weights(folder)


def use_8b_shapes(config_json: Path) -> None:
    """Make a tiny Qwen3-VL's config the published one of the 8B, but for the ids of the tokenizer's tokens."""
    from benchmarks.real_models import QWEN3_VL_CONFIG

    tiny = json.loads(config_json.read_text(encoding="utf-8"))
    config = {part: value for part, value in QWEN3_VL_CONFIG.items() if not part.endswith("_token_id")}
    config |= {name: value for name, value in tiny.items() if name.endswith("_token_id")}
    ids = {name: value for name, value in tiny["text_config"].items() if name.endswith("_token_id")}
    config["text_config"] = {**QWEN3_VL_CONFIG["text_config"], **ids}
    config_json.write_text(json.dumps(config), encoding="utf-8")


def write_zero_weights(folder: Path) -> None:
    """Write the safetensors file of the folder's config: a header, and a hole for the values."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from sft.models.model_folder import read_dtype

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    code, n_bytes = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}[read_dtype(folder)]
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in model.state_dict().items():
        start, end = end, end + n_bytes * prod(tensor.shape)
        fields[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(fields).encode()
    with (folder / WEIGHTS_FILE).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


@contextmanager
def random_weights() -> Iterator[None]:
    """Have the product's loader give every weight a random value once it is loaded, for what imports it from here on.

    A GPU multiplies zeros faster than other numbers, and nothing can be learned through them.
    """
    from sft.models import model as product

    load = product.load_model

    def load_random(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        fill_random(model)
        return model

    product.load_model = load_random
    try:
        yield
    finally:
        product.load_model = load


def fill_random(model: Any) -> None:
    """Draw every weight from a normal distribution of width 0.02, the same in every process.

    4-bit weights are quantised as the loader did it.
    """
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            old: Any = module.weight
            value = torch.randn(old.quant_state.shape, dtype=old.quant_state.dtype, device=old.device) * 0.02
            form = {name: getattr(old, name) for name in ("compress_statistics", "quant_type", "quant_storage")}
            parameter: Any = Params4bit(value, requires_grad=False, module=module, **form)
            module.weight = parameter.to(old.device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            elif not isinstance(parameter, Params4bit):
                parameter.normal_(std=0.02)


if __name__ == "__main__":
    main()
