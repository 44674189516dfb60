"""Attention over a packed sequence, node by node of its tree of prefixes. Knows no models and no data.

A dense mask would let SDPA compute every pair of tokens and throw most of them away: two screenshots side by side, or
sixteen branches, see nothing of one another. Here each node of the tree (a stretch of tokens without a fork) attends
to its ancestors and itself, which are just the pairs that count.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_tree"
MAX_NODE = 256  # a masked SDPA computes all pairs of a node's tokens, so that half of them are wasted


def use_tree_attention(config: PretrainedConfig) -> None:
    """Let a model whose text part computes SDPA also take `subtree_end` (1, 1, 1, T) int64 as attention mask."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config.get_text_config()._attn_implementation = NAME


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `attention_mask` says: integers are a packed sequence's `subtree_end`, all else is SDPA's own.

    `query`: (1, heads, T, D); `key`, `value`: (1, key heads, T, D). Returns (1, T, heads, D), as SDPA's function does.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    sizes, paths, masks = _find_nodes(attention_mask)
    queries, keys, values = (tensor.split(sizes, dim=2) for tensor in (query, key, value))
    outputs = []
    for node_queries, path, mask in zip(queries, paths, masks):
        node_keys, node_values = (torch.cat([parts[i] for i in path], dim=2) for parts in (keys, values))
        outputs.append(sdpa_attention_forward(module, node_queries, node_keys, node_values, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def find_paths(subtree_end: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Return the size of each node, in the order of its tokens, and the nodes from the root to it, itself the last.

    A stretch of more than `MAX_NODE` tokens below a root is several nodes, one after another.
    """
    starts = [i for i, end in enumerate(subtree_end) if i == 0 or end != subtree_end[i - 1]]
    sizes: list[int] = []
    paths: list[list[int]] = []
    path: list[tuple[int, int]] = []  # each open node and where its subtree ends
    for start, stop in zip(starts, [*starts[1:], len(subtree_end)]):
        while path and path[-1][1] <= start:
            path.pop()
        longest = MAX_NODE if path else stop - start
        for chunk in range(start, stop, longest):
            path.append((len(sizes), subtree_end[start]))
            paths.append([node for node, _ in path])
            sizes.append(min(longest, stop - chunk))
    return sizes, paths


def count_pairs(subtree_end: torch.Tensor) -> int:
    """Return how many pairs of tokens attention computes for a packed sequence, those that a node masks among them."""
    sizes, paths = find_paths(subtree_end.flatten().tolist())
    return sum(size * sum(sizes[i] for i in path) for size, path in zip(sizes, paths))


@lru_cache(maxsize=1)  # every layer asks with the same tensor
def _find_nodes(subtree_end: torch.Tensor) -> tuple[list[int], list[list[int]], list[torch.Tensor | None]]:
    """Return sizes and paths, and the mask of each node (its tokens, the path's); a root is plainly causal."""
    sizes, paths = find_paths(subtree_end.flatten().tolist())
    masks: list[torch.Tensor | None] = []
    for size, path in zip(sizes, paths):
        before = sum(sizes[i] for i in path[:-1])
        visible = torch.ones(size, before + size, dtype=torch.bool, device=subtree_end.device)
        masks.append(visible.tril(before)[None, None] if before else None)
    return sizes, paths, masks
