"""Attention over a packed sequence, a tree of prefixes, in two calls of a kernel. Knows no models and no data.

A dense mask would let SDPA compute every pair of tokens and throw most of them away: two screenshots side by side, or
sixteen branches, see nothing of one another. Here the tree is cut into chains, each of which runs from a fork to a
leaf and is plainly causal. What a chain sees above its fork is one dense block, the same for all chains that hang on
the fork. So one call computes all chains and a second one all blocks; their softmaxes are joined by their logarithmic
sums. Flash attention's backward pass, given the joined outputs and sums, returns each call's share of the gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_tree"
Rows = slice | torch.Tensor  # of a tensor's first dimension
Range = tuple[int, int]  # from the first token to behind the last


@dataclass(frozen=True)
class Node:
    """A stretch of `size` tokens without a fork and its `path`: the nodes from the root to it, itself the last."""

    size: int
    path: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Tokens that attend to the same keys: causally to themselves, or to all of others. Ranges of tokens."""

    queries: tuple[Range, ...]
    keys: tuple[Range, ...]


@dataclass(frozen=True)
class _Call:
    """What one call of a kernel computes: blocks whose queries and keys follow one another in these rows.

    `n_queries`, `n_keys`: lengths of the blocks; `query_borders`, `key_borders`: (n blocks + 1,) int32, where they
    begin and end. No row of `queries` comes twice; one of `keys` may.
    """

    queries: Rows
    keys: Rows
    n_queries: list[int]
    n_keys: list[int]
    query_borders: torch.Tensor
    key_borders: torch.Tensor
    is_causal: bool


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
    dropout: float = 0.0,
    scaling: float | None = None,
    places: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `attention_mask` says: integers are a packed sequence's `subtree_end`, all else is SDPA's own.

    `query`: (B, heads, T, D); `key`, `value`: (B, key heads, T, D); B is 1 for a packed sequence. Returns
    (B, T, heads, D), as SDPA's function does. With `places` (B, n) the queries are those of n tokens of each row, in
    ascending order where the sequence is packed.
    """
    mask = attention_mask
    if mask is not None and mask.dtype == torch.int64:
        calls = _plan_calls(mask, places)
        inputs = _cast_as_autocast_does(query, key, value)
        if calls and not dropout and _has_kernel(*inputs):
            rows = [tensor[0].transpose(0, 1) for tensor in inputs]
            return _TreeAttention.apply(*rows, mask, places, scaling)[None], None
        mask = _keep_mask(mask) if calls else None
    if places is not None:
        mask = _take_queries(mask, places, key.shape[2])
    return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)


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
        ends.append(subtree_end[start])
        open_nodes.append(len(nodes))
        nodes.append(Node(stop - start, tuple(open_nodes)))
    return nodes


@lru_cache(maxsize=1)  # every layer asks with the same tensor
def read_nodes(subtree_end: torch.Tensor) -> list[Node]:
    """Return the nodes of a packed sequence; reading the tensor waits for the GPU."""
    return find_nodes(subtree_end.flatten().tolist())


def find_blocks(subtree_end: Sequence[int]) -> tuple[list[Block], list[Block]]:
    """Return the chains, which are causal, and for each fork what hangs on it with the path above, which is not.

    A node and its first child follow one another and are one chain; every other child begins its own. So each token's
    path is its chain up to it, and the path of the fork that the chain hangs on.
    """
    nodes = find_nodes(subtree_end)
    ranges: list[Range] = []
    chains: list[Range] = []
    forks: list[int | None] = []  # the node that each chain hangs on
    for i, node in enumerate(nodes):
        start = ranges[-1][1] if ranges else 0
        ranges.append((start, start + node.size))
        parent = node.path[-2] if len(node.path) > 1 else None
        if chains and parent == i - 1:
            chains[-1] = (chains[-1][0], start + node.size)
        else:
            chains.append(ranges[-1])
            forks.append(parent)
    hanging: dict[int, list[Range]] = {}
    for chain, fork in zip(chains, forks):
        if fork is not None:
            hanging.setdefault(fork, []).append(chain)
    above = [Block(tuple(group), tuple(ranges[i] for i in nodes[fork].path)) for fork, group in hanging.items()]
    return [Block((chain,), (chain,)) for chain in chains], above


def choose_queries(
    chains: Sequence[Block], above: Sequence[Block], places: Sequence[int]
) -> tuple[list[Block], list[Block], list[Block]]:
    """Return the blocks that are left where only the tokens at these `places`, in ascending order, ask.

    Of a chain: its stretches of such tokens, which are causal; what each sees of the chain before it; and what is
    above the chain. Ranges of queries count the places, those of keys the tokens.
    """
    starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1] + 1]
    runs = [(i, places[i], places[end - 1] + 1) for i, end in zip(starts, [*starts[1:], len(places)])]

    def cut(first: int, last: int) -> list[tuple[Range, Range]]:
        """Return the stretches between two tokens: as ranges of places, and of tokens."""
        found = [(i - start, max(start, first), min(stop, last)) for i, start, stop in runs]
        return [((i + start, i + stop), (start, stop)) for i, start, stop in found if start < stop]

    own, before = [], []
    for ((first, last),) in (chain.queries for chain in chains):
        for queries, tokens in cut(first, last):
            own.append(Block((queries,), (tokens,)))
            if tokens[0] > first:
                before.append(Block((queries,), ((first, tokens[0]),)))
    hanging = [(tuple(queries for r in block.queries for queries, _ in cut(*r)), block.keys) for block in above]
    return own, before, [Block(queries, keys) for queries, keys in hanging if queries]


def count_pairs(subtree_end: torch.Tensor, places: torch.Tensor | None = None) -> int:
    """Return how many pairs of tokens attention computes for a packed sequence, as torch counts operations.

    That is without regard to what causality leaves out. With `places`, those whose queries are at these places.
    """
    groups = _list_blocks(subtree_end, places)
    return sum(_count(block.queries) * _count(block.keys) for group in groups for block in group)


def _list_blocks(subtree_end: torch.Tensor, places: torch.Tensor | None) -> Sequence[Sequence[Block]]:
    """Return the blocks by the call that computes them, those of chains first; a group may be empty."""
    chains, above = find_blocks(subtree_end.flatten().tolist())
    return (chains, above) if places is None else choose_queries(chains, above, places.flatten().tolist())


class _TreeAttention(torch.autograd.Function):
    """Attention of (n, heads, D) queries to (T, key heads, D) keys and values, call by call.

    The first call holds every query, one after the other.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        subtree_end: torch.Tensor,
        places: torch.Tensor | None,
        scale: float | None,
    ) -> torch.Tensor:
        output, log_sum = torch.ops.sft.attend_tree(query, key, value, subtree_end, places, scale)
        ctx.save_for_backward(query, key, value, output, log_sum)
        ctx.calls, ctx.scale = _plan_calls(subtree_end, places), scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, log_sum = ctx.saved_tensors

        def run(call: _Call) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            q, k = call.queries, call.keys
            parts = grad_output[q], query[q], key[k], value[k], output[q], log_sum[:, q]
            return _attend_backward(*parts, call, ctx.scale)

        own, *others = ctx.calls
        grad_query, *grads = run(own)
        if not others and len(grads[0]) == len(key):
            return grad_query, grads[0], grads[1], None, None, None
        # what many branches add to their prefix: not in 16 bits
        sums = [_spread_rows(grad.to(log_sum.dtype), own.keys, len(key)) for grad in grads]
        for call in others:
            above_query, *above_grads = run(call)
            grad_query[call.queries] += above_query
            for total, grad in zip(sums, above_grads):
                _add_rows(total, call.keys, grad.to(total.dtype))
        return grad_query, sums[0].to(key.dtype), sums[1].to(value.dtype), None, None, None


def _attend_tree(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    subtree_end: torch.Tensor,
    places: torch.Tensor | None,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs (n, heads, D) of all calls, joined, and the logarithms of their sums (heads, n)."""

    def run(call: _Call) -> tuple[torch.Tensor, torch.Tensor]:
        return _attend_forward(query[call.queries], key[call.keys], value[call.keys], call, scale)

    own, *others = _plan_calls(subtree_end, places)
    output, log_sum = run(own)
    for call in others:
        rows = call.queries
        above, above_sum = run(call)
        # what part of the joined softmax is above
        share = torch.sigmoid(above_sum - log_sum[:, rows]).t()[..., None]
        output[rows] = output[rows].mul_(1 - share).add_(above * share)
        log_sum[:, rows] = torch.logaddexp(log_sum[:, rows], above_sum)
    return output, log_sum


# An operation of its own, so that selective checkpointing keeps what all calls give together, in the place of each
# one's outputs, some of which are then changed in place.
_library = torch.library.Library("sft", "FRAGMENT")
_library.define(
    "attend_tree(Tensor query, Tensor key, Tensor value, Tensor subtree_end, Tensor? places, float? scale)"
    " -> (Tensor, Tensor)"
)
_library.impl("attend_tree", _attend_tree, "CompositeExplicitAutograd")


def _attend_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: _Call, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs (T, heads, D) and the logarithms of the sums of exponentials (heads, T) of a call's rows."""
    if _takes_borders(query.device):
        output, log_sum, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, *_describe_varlen(call), 0.0, call.is_causal, False, scale=scale
        )
        return output, log_sum
    results = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*block, 0.0, call.is_causal, scale=scale)
        for block in zip(_split(query, call.n_queries), _split(key, call.n_keys), _split(value, call.n_keys))
    ]
    outputs, log_sums = zip(*results)
    return _join(outputs), torch.cat([log_sum[0] for log_sum in log_sums], dim=1)


def _attend_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    log_sum: torch.Tensor,
    call: _Call,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of a call's queries, keys and values."""
    if _takes_borders(query.device):
        # no dropout, so that the state of its random numbers is never read; the kernel takes `log_sum` for contiguous
        unused = query.new_empty(2, dtype=torch.uint64), query.new_empty(0)
        rows = (grad_output.contiguous(), query, key, value, output.contiguous(), log_sum.contiguous())
        grads = torch.ops.aten._flash_attention_backward(
            *rows, *_describe_varlen(call), 0.0, call.is_causal, *unused, scale=scale
        )
        return grads[0], grads[1], grads[2]
    by_queries = [_split(tensor, call.n_queries) for tensor in (grad_output, query, output)]
    by_keys = [_split(tensor, call.n_keys) for tensor in (key, value)]
    log_sums = [part[None] for part in log_sum.split(call.n_queries, dim=1)]
    blocks = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g, q, k, v, o, log_sums[i], 0.0, call.is_causal, scale=scale
        )
        for i, (g, q, o, k, v) in enumerate(zip(*by_queries, *by_keys))
    ]
    grad_query, grad_key, grad_value = map(_join, zip(*blocks))
    return grad_query, grad_key, grad_value


def _describe_varlen(call: _Call) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Return what the CUDA kernel knows of the blocks: borders, and bounds of their lengths.

    At least 2 queries: with 1, torch takes the blocks of a sequence each for a step of decoding and reshapes them.
    """
    return call.query_borders, call.key_borders, max(2, *call.n_queries), max(call.n_keys)


def _split(rows: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """Cut (T, heads, D) into blocks (1, heads, size, D)."""
    return [part.transpose(0, 1)[None] for part in rows.split(sizes)]


def _join(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Undo `_split`."""
    parts = [block[0].transpose(0, 1) for block in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _takes_borders(device: torch.device) -> bool:
    """Say whether one call of the kernel computes all blocks, given their borders; a CPU's computes one."""
    return device.type == "cuda"


def _has_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Say whether a flash kernel that returns its logarithmic sums takes these; all else is computed under a mask.

    On a GPU it is NVIDIA's from Ampere on, for 16-bit numbers, and heads of up to 256; 192 where a block has less
    shared memory than on the A100, H100 and B200, since backward passes of larger heads were refused there.
    """
    if not query.dtype == key.dtype == value.dtype or not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        return False
    if query.device.type != "cuda":
        return query.device.type == "cpu" and query.dtype.is_floating_point
    if torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
        return False
    capability = torch.cuda.get_device_capability(query.device)
    largest = 256 if capability in ((8, 0), (9, 0), (10, 0)) else 192
    return (
        capability >= (8, 0)
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= largest
        and query.shape[1] % key.shape[1] == 0
        and all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    )


def _cast_as_autocast_does(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Cast what autocast would cast before SDPA: a norm in fp32 leaves it queries of another type than values."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors]


def _spread_rows(added: torch.Tensor, rows: Rows, n: int) -> torch.Tensor:
    """Return n rows that hold these at their places, and zeros."""
    if len(added) == n:
        return added
    total = added.new_zeros(n, *added.shape[1:])
    _add_rows(total, rows, added)
    return total


def _add_rows(total: torch.Tensor, rows: Rows, added: torch.Tensor) -> None:
    if isinstance(rows, slice):
        total[rows] += added
    else:
        total.index_add_(0, rows, added)


@lru_cache(maxsize=2)  # every layer asks with the same tensor, the last one perhaps with places beside it
def _plan_calls(subtree_end: torch.Tensor, places: torch.Tensor | None) -> tuple[_Call, ...]:
    """Return the call of the chains and that of what is above them, each where there is any; none for one chain.

    With `places`, those of `choose_queries`.
    """
    own, *others = _list_blocks(subtree_end, places)
    if places is None and len(own) == 1:
        return ()
    device = subtree_end.device
    return (_plan_call(own, True, device), *(_plan_call(group, False, device) for group in others if group))


def _plan_call(blocks: Sequence[Block], is_causal: bool, device: torch.device) -> _Call:
    queries, keys = [block.queries for block in blocks], [block.keys for block in blocks]
    n_queries, n_keys = list(map(_count, queries)), list(map(_count, keys))
    borders = [torch.tensor([0, *sizes]).cumsum(0).to(device, torch.int32) for sizes in (n_queries, n_keys)]
    rows = _rows(queries, device), _rows(keys, device)
    return _Call(*rows, n_queries, n_keys, borders[0], borders[1], is_causal)


def _count(ranges: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def _rows(blocks: Sequence[Sequence[Range]], device: torch.device) -> Rows:
    """Return a slice where all ranges follow one another, which needs no copy, else an index."""
    ranges = [r for ranges in blocks for r in ranges]
    if all(before[1] == after[0] for before, after in zip(ranges, ranges[1:])):
        return slice(ranges[0][0], ranges[-1][1])
    return torch.cat([torch.arange(start, stop) for start, stop in ranges]).to(device)


def build_mask(subtree_end: torch.Tensor) -> torch.Tensor:
    """Spread `subtree_end` (1, 1, 1, T) out into the dense mask (1, 1, T, T), bool: what each query may see."""
    tokens = torch.arange(subtree_end.shape[-1], device=subtree_end.device)
    return (tokens <= tokens[:, None]) & (tokens[:, None] < subtree_end)


_keep_mask = lru_cache(maxsize=1)(build_mask)  # every layer asks with the same tensor


def _take_queries(mask: torch.Tensor | None, places: torch.Tensor, n_keys: int) -> torch.Tensor:
    """Return the rows (B, 1, n, T) of a mask (B, 1, T, T), None being the causal one, at `places` (B, n)."""
    if mask is None:
        return torch.arange(n_keys, device=places.device) <= places[:, None, :, None]
    mask = mask.expand(len(places), -1, -1, -1)
    return mask.gather(2, places[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
