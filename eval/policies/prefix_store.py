"""Keys and values of prompts' beginnings, kept for later batches: the system message and a screenshot."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

CAPACITY = 500_000_000  # bytes, on the model's device; the prefixes that were used longest ago go first

Layers = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer, (heads, T, head_dim)


class PrefixStore:
    """Keys and values of prefixes that were computed; for as long as the model's weights stay the same.

    Where one batch's prefixes alone would not fit, nothing is kept: with a large model they take gigabytes, and few
    screenshots are shown again within a few batches. So a batch takes at most twice the capacity beyond its own cache.
    """

    def __init__(self, capacity: int = CAPACITY):
        self.capacity = capacity
        self._kept: OrderedDict[Hashable, Layers] = OrderedDict()
        self._n_bytes, self._bytes_per_token = 0, 0

    def has_room(self, n_tokens: int) -> bool:
        """Say whether a batch's prefixes may be kept, as far as is known before the first one."""
        return n_tokens * self._bytes_per_token <= self.capacity

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def add(self, keys: Sequence[Hashable], cache: Any, mask: torch.Tensor) -> None:
        """Keep the rows of a cache without its padding; nothing, where a layer has more than keys and values."""
        if {type(layer) for layer in cache.layers} != {DynamicLayer}:
            return
        self._bytes_per_token = sum(t[0, :, 0].nbytes for layer in cache.layers for t in (layer.keys, layer.values))
        if not self.has_room(int(mask.sum())):
            return
        for row, key in enumerate(keys):
            columns = mask[row].nonzero()[:, 0]
            self._kept[key] = [(layer.keys[row][:, columns], layer.values[row][:, columns]) for layer in cache.layers]
            self._n_bytes += _count_bytes(self._kept[key])

    def build_cache(self, keys: Sequence[Hashable]) -> tuple[DynamicCache, torch.Tensor]:
        """Return a cache of these prefixes, a row each, padded on the left, and its (B, T) attention mask."""
        prefixes = [self._kept[key] for key in keys]
        lengths = [prefix[0][0].shape[1] for prefix in prefixes]
        width, cache = max(lengths), DynamicCache()
        for index, layers in enumerate(zip(*prefixes)):
            stacks = [torch.stack([pad(t, (0, 0, width - t.shape[1], 0)) for t in part]) for part in zip(*layers)]
            cache.update(stacks[0], stacks[1], index)
        columns = torch.arange(width, device=stacks[0].device)
        mask = columns >= width - torch.tensor(lengths, device=columns.device)[:, None]
        return cache, mask.to(torch.long)

    def shrink(self, used: Sequence[Hashable]) -> None:
        """Note which prefixes a batch has used, and drop others until the rest fit."""
        for key in used:
            if key in self._kept:
                self._kept.move_to_end(key)
        while self._n_bytes > self.capacity:
            self._n_bytes -= _count_bytes(self._kept.popitem(last=False)[1])


def _count_bytes(layers: Layers) -> int:
    return sum(t.nbytes for pair in layers for t in pair)
