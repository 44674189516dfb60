"""How many bytes of its language layers does a model keep for the backward pass? Counted from shapes, for the plan."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from sft.models.experts import STOCK_EXPERTS
from sft.models.families import Family, part_of
from sft.models.shapes import CHUNK, TextShape, read_text_shape
from sft.recipe.settings import ModelSettings

FP32 = 4


@dataclass(frozen=True)
class Kept:
    """Bytes a token that all language layers keep: by no checkpointing, the selective form and the full one.

    `inside` is what a checkpointed layer holds while its own backward pass runs.
    """

    none: float
    selective: float
    full: float
    inside: float


def count_kept(model: torch.nn.Module, settings: ModelSettings, family: Family, n_bytes: float) -> Kept:
    """Count what `build_empty_model`'s layers keep; `n_bytes` is the size of a number outside fp32.

    Norms compute in fp32 and keep their input so; attention keeps queries, keys, values, outputs and logarithmic sums;
    an MLP keeps gate, its activation and the other factor; a layer with LoRA its input, after dropout and with
    dropout's mask of a byte, and its first product. The selective form keeps a layer's input, products and attention
    outputs (`sft.models.checkpointing`). A layer with a state keeps in fp32 what it convolves and scans, and what a
    token has with the others of its chunk: about six and four numbers each, as measured.
    """
    config: Any = model.config
    text = config.get_text_config()
    shape, n_layers = read_text_shape(text), text.num_hidden_layers
    q, kv = text.num_attention_heads * shape.head_dim, text.num_key_value_heads * shape.head_dim
    sums = FP32 * text.num_attention_heads
    has_head_norms = any(name.endswith(("q_norm", "qk_norm")) for name, _ in model.named_modules())
    n_in, n_out, n_adapters = _count_linears(model, settings, family, shape)
    first_products = n_adapters * settings.lora_r * n_bytes if settings.use_peft else 0.0
    none = (
        FP32 * (2 * n_layers * text.hidden_size + has_head_norms * shape.n_attention * (q + kv))
        + shape.n_attention * (n_bytes * (2 * q + 2 * kv) + sums)
        + bool(shape.n_linear) * shape.n_attention * n_bytes * q  # gates of such a model's attention
        + shape.n_linear * FP32 * (6 * shape.linear_width + 4 * getattr(text, "linear_num_value_heads", 0) * CHUNK)
        + n_layers * n_bytes * (3 * shape.mlp_width + 2 * shape.n_chosen * text.hidden_size)
        + n_in * (n_bytes + bool(settings.use_peft and settings.lora_dropout))
        + first_products
    )
    full = n_layers * n_bytes * text.hidden_size
    selective = full + n_out * n_bytes + first_products + shape.n_attention * (n_bytes * q + sums)
    gradients = n_bytes * 4 * shape.mlp_width  # of the MLP, the widest
    return Kept(none, selective, full, none / n_layers + gradients)


def _count_linears(
    model: torch.nn.Module, settings: ModelSettings, family: Family, shape: TextShape
) -> tuple[float, float, float]:
    """Count the numbers a token gives to layers that keep their input, those that all products give, and adapters.

    Of the experts a token passes its share.
    """
    n_in = n_out = n_adapters = 0.0
    patterns = [family.linears[part] for part in settings.lora_parts] if settings.use_peft else [".*"]
    for name, module in model.named_modules():
        part = part_of(f"{name}.")
        if isinstance(module, STOCK_EXPERTS):
            hidden = module.hidden_dim
            n_in += shape.n_chosen * (hidden + shape.expert_width)
            n_out += shape.n_chosen * (hidden + 2 * shape.expert_width)
        if not isinstance(module, torch.nn.Linear) or part not in ("language", "experts") or "lm_head" in name:
            continue
        share = shape.n_chosen / shape.n_experts if part == "experts" else 1.0
        n_out += share * module.out_features
        if any(re.fullmatch(pattern, name) for pattern in patterns):
            n_in += share * module.in_features
            n_adapters += share
    return n_in, n_out, n_adapters
