"""LoRA's sum in one product: W x + s B (A x) as `addmm`, in the place of PEFT's clone, product, scaling and addition.

The same parameters under the same names, and the same sum with fewer roundings on its way.
"""

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from peft.tuners.lora.layer import Linear as LoraLinear


class SummedLinear(torch.nn.Linear):
    """LoRA's B, which also takes what its product is added to.

    In a forward pass of its own, so that ZeRO-3's hooks gather the weight for it.
    """

    def forward(self, x: torch.Tensor, added: torch.Tensor | None = None, scale: float = 1.0) -> torch.Tensor:
        """Return x (..., r) by B, times `scale`, plus `added` (..., out)."""
        if added is None:
            return super().forward(x)
        total = torch.addmm(added.flatten(0, -2), x.flatten(0, -2), self.weight.t(), alpha=scale)
        return total.view(added.shape)


class FusedLoraLinear(LoraLinear):
    """PEFT's layer on a linear one."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        name = None if args or kwargs else _find_adapter(self)
        is_cast = torch.is_autocast_enabled(x.device.type)
        if name is None or not (is_cast or x.dtype == self.lora_A[name].weight.dtype):
            return super().forward(x, *args, **kwargs)
        return _sum(self, x, name)


class FusedLoraLinear4bit(LoraLinear4bit):
    """PEFT's layer on a 4-bit one, which gives back the type it is given, under autocast too."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        name = None if args or kwargs else _find_adapter(self)
        device = x.device.type
        is_cast = torch.is_autocast_enabled(device)
        if name is None or x.dtype != (
            torch.get_autocast_dtype(device) if is_cast else self.lora_A[name].weight.dtype
        ):
            return super().forward(x, *args, **kwargs)
        return _sum(self, x, name)


_FUSED: Mapping[type, type] = {LoraLinear: FusedLoraLinear, LoraLinear4bit: FusedLoraLinear4bit}


def fuse_lora(model: torch.nn.Module) -> None:
    """Let the LoRA layers of a model compute their sum in one product, wherever PEFT would compute that sum.

    Merged or switched-off adapters, several at once, variants such as DoRA, a bias, and a base of another number
    format than the adapter's are left to PEFT.
    """
    for module in model.modules():
        if type(module) in _FUSED:
            layer: Any = module
            layer.__class__ = _FUSED[type(module)]
            for linear in layer.lora_B.values():
                if type(linear) is torch.nn.Linear and linear.bias is None:
                    linear.__class__ = SummedLinear


def find_plain_adapter(layer: Any) -> str | None:
    """Return the name of the one adapter whose W x + s B A x is all that a LoRA layer computes; else None."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    is_plain = name in layer.lora_B and name not in layer.lora_variant and layer.lora_B[name].bias is None
    return name if is_plain else None


def _find_adapter(layer: Any) -> str | None:
    """Return the name of the adapter whose sum is one product here, None where PEFT computes it."""
    name = find_plain_adapter(layer)
    return name if name is not None and isinstance(layer.lora_B[name], SummedLinear) else None


def _sum(layer: Any, x: torch.Tensor, name: str) -> torch.Tensor:
    reduced = layer.lora_A[name](layer.lora_dropout[name](x))
    total: torch.Tensor = layer.lora_B[name](reduced, layer.base_layer(x), layer.scaling[name])
    return total
