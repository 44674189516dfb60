"""Attention over a packed sequence, node by node of its tree of prefixes. Knows no models and no data.

A dense mask would let SDPA compute every pair of tokens and throw most of them away: two screenshots side by side, or
sixteen branches, see nothing of one another. Here each node of the tree (a stretch of tokens without a fork) attends
to its ancestors and itself, which are just the pairs that count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_tree"


@dataclass(frozen=True)
class Node:
    """A stretch of `size` tokens and its `path`: the nodes from the root to it, itself the last.

    `n_before` counts the tokens of its ancestors.
    """

    size: int
    path: tuple[int, ...]
    n_before: int

    @property
    def is_causal(self) -> bool:
        """Whether the whole path is computed as one causal sequence and the ancestors' part thrown away.

        That takes (n_before + size)^2 / 2 pairs and no mask; the node's own rows under a mask take all of their
        size * (n_before + size). The cheaper of the two is never more than a third above the pairs that count.
        """
        return self.n_before < self.size


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
    nodes, masks = _find_nodes(attention_mask)
    sizes = [node.size for node in nodes]
    queries, keys, values = (tensor.split(sizes, dim=2) for tensor in (query, key, value))
    outputs = []
    for node, node_query, mask in zip(nodes, queries, masks):
        if node.is_causal:
            node_query = _join(queries, node.path)
        node_key, node_value = _join(keys, node.path), _join(values, node.path)
        output = sdpa_attention_forward(module, node_query, node_key, node_value, mask, **kwargs)[0]
        outputs.append(output[:, -node.size :])
    return torch.cat(outputs, dim=1), None


def find_nodes(subtree_end: Sequence[int]) -> list[Node]:
    """Return the nodes of the tree in the order of their tokens."""
    starts = [i for i, end in enumerate(subtree_end) if i == 0 or end != subtree_end[i - 1]]
    nodes: list[Node] = []
    open_nodes: list[int] = []
    ends: list[int] = []  # where the subtree of each open node ends
    for start, stop in zip(starts, [*starts[1:], len(subtree_end)]):
        while ends and ends[-1] <= start:
            ends.pop()
            open_nodes.pop()
        n_before = sum(nodes[i].size for i in open_nodes)
        ends.append(subtree_end[start])
        open_nodes.append(len(nodes))
        nodes.append(Node(stop - start, tuple(open_nodes), n_before))
    return nodes


def count_pairs(subtree_end: torch.Tensor) -> int:
    """Return how many pairs of tokens attention computes for a packed sequence, as torch counts operations.

    That is without regard to what a mask or causality leaves out.
    """
    nodes = find_nodes(subtree_end.flatten().tolist())
    return sum((node.n_before + node.size) * (node.size + node.n_before * node.is_causal) for node in nodes)


def _join(parts: Sequence[torch.Tensor], path: Sequence[int]) -> torch.Tensor:
    return parts[path[0]] if len(path) == 1 else torch.cat([parts[i] for i in path], dim=2)


@lru_cache(maxsize=1)  # every layer asks with the same tensor
def _find_nodes(subtree_end: torch.Tensor) -> tuple[list[Node], list[torch.Tensor | None]]:
    """Return the nodes and the mask of each: its tokens by the path's, or None where the path is plainly causal."""
    nodes = find_nodes(subtree_end.flatten().tolist())
    masks: list[torch.Tensor | None] = []
    for node in nodes:
        visible = torch.ones(node.size, node.n_before + node.size, dtype=torch.bool, device=subtree_end.device)
        masks.append(None if node.is_causal else visible.tril(node.n_before)[None, None])
    return nodes, masks
