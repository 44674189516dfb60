"""An adapter merged into its base for a while, to answer with: W + s B A computed once and not at every call.

Only where the base is computed in fp32 on a CPU: the sum is then right to fp32's rounding. In 4 bits or bf16 it would
be rounded to another model. The base's own weights are put back as they were: nothing is subtracted.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from peft.tuners.lora.layer import Linear as LoraLinear
from transformers.integrations import is_deepspeed_zero3_enabled

from sft.models.dequantised import LARGEST_SHARE, DequantisedLinear4bit, read_free_bytes
from sft.models.fused_lora import find_plain_adapter

log = logging.getLogger("sft")


@torch.no_grad()
def merge_adapter(model: torch.nn.Module) -> Callable[[], None]:
    """Merge LoRA into the layers of a model that compute in fp32 on a CPU, and return what undoes it, bit for bit.

    For a model in evaluation and outside of autocast. Where memory is short nothing is merged: the merged weights must
    fit in `LARGEST_SHARE` of what is free.
    """
    found = [] if is_deepspeed_zero3_enabled() else list(_find_layers(model))
    n_bytes = sum(weight.nbytes for *_, weight in found)
    if n_bytes > LARGEST_SHARE * read_free_bytes():
        log.info("the adapter is not merged to answer with: its weights would take %.1f GB", n_bytes / 1e9)
        return lambda: None
    for layer, name, weight in found:
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        _set_weight(layer.get_base_layer(), torch.addmm(weight, b, a, alpha=layer.scaling[name]))
        layer.merged_adapters.append(name)  # by which PEFT knows that the base is all there is to compute

    def restore() -> None:
        for layer, _, weight in found:
            _set_weight(layer.get_base_layer(), weight)
            layer.merged_adapters.clear()

    return restore


def _find_layers(model: torch.nn.Module) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """Find the layers in which W + s B A is all that PEFT would compute: layer, name of the adapter, and W."""
    for module in model.modules():
        if not isinstance(module, (LoraLinear, LoraLinear4bit)) or module.training:
            continue
        layer: Any = module
        name = find_plain_adapter(layer)
        if name is None:
            continue
        weight = _read_weight(layer.get_base_layer())
        if weight is None:
            continue
        parts = (weight, layer.lora_A[name].weight, layer.lora_B[name].weight)
        if all(part.dtype == torch.float32 and part.device.type == "cpu" for part in parts):
            yield layer, name, weight


def _read_weight(base: Any) -> torch.Tensor | None:
    """Return the weights (out, in) that a layer computes with; None, where it has no such plain ones."""
    if isinstance(base, DequantisedLinear4bit):
        return base.numbers
    return base.weight.data if type(base) is torch.nn.Linear else None


def _set_weight(base: Any, weight: torch.Tensor) -> None:
    if isinstance(base, DequantisedLinear4bit):
        base.numbers = weight
    else:
        base.weight.data = weight
