"""4-bit weights on a CPU, dequantised once and not at every call, for training and rollout. The same bits come out."""

import logging
import os
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch.nn.functional import linear

LARGEST_SHARE = 0.5  # of the memory that is free: activations, and what else the machine does, need the rest

log = logging.getLogger("sft")


class DequantisedLinear4bit(Linear4bit):
    """A 4-bit layer that also holds its weights as it computes with them; saved, counted and merged as before.

    Off the CPU, under autocast, and once something has put another weight in the place of the one it has read (merging
    an adapter does), it computes as bitsandbytes does.
    """

    _read: tuple[Any, torch.Tensor]  # 4-bit weight, and its numbers: in a tuple, which no state dict looks into

    @property
    def numbers(self) -> torch.Tensor:
        """The weights (out, in) that the layer computes with; an adapter that is merged for a while sets others."""
        return self._read[1]

    @numbers.setter
    def numbers(self, numbers: torch.Tensor) -> None:
        self._read = (self._read[0], numbers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, dequantised = self._read
        if self.weight is not weight or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        bias = None if self.bias is None else self.bias.to(dequantised.dtype)
        return linear(x.to(dequantised.dtype), dequantised, bias).to(x.dtype)


def dequantise_once(model: torch.nn.Module, largest_share: float = LARGEST_SHARE) -> bool:
    """Dequantise the 4-bit layers of a model on a CPU for good, all or, where memory is short, none; say which.

    The numbers take 8 times the memory of their 4 bits in fp32, 4 times in 16 bits: they must fit in `largest_share`
    of the memory that is free.
    """
    layers = [module for module in model.modules() if type(module) is Linear4bit and _is_read_alike(module)]
    if not layers:
        return False
    n_bytes = sum(layer.in_features * layer.out_features * layer.compute_dtype.itemsize for layer in layers)
    free = read_free_bytes()
    if n_bytes > largest_share * free:
        log.info(
            "4-bit weights are dequantised at every call: once, they would take %.1f GB of %.1f GB of free memory",
            n_bytes / 1e9,
            free / 1e9,
        )
        return False
    log.info("4-bit weights are dequantised once: %.1f GB of %.1f GB of free memory", n_bytes / 1e9, free / 1e9)
    for layer in layers:
        weight: Any = layer.weight
        layer.__class__ = DequantisedLinear4bit
        cast(DequantisedLinear4bit, layer)._read = (weight, dequantize_4bit(weight.data, weight.quant_state))
    return True


def read_free_bytes() -> float:
    """Return the memory that this process can have: its share of the machine's, or of what a container's limit leaves.

    The processes of a training on one machine share it out alike.
    """
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        free = min(free, int(text) - used + int(stat["inactive_file"]))  # cached files make way
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _is_read_alike(layer: Any) -> bool:
    """Say whether a layer is quantised, on a CPU, and computes in the type that it was quantised from.

    In any other type bitsandbytes dequantises to that one forwards, and to the original one backwards.
    """
    state = getattr(layer.weight, "quant_state", None)
    return state is not None and layer.weight.device.type == "cpu" and layer.compute_dtype == state.dtype
