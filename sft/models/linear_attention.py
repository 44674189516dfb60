"""Layers that carry a state along the sequence (Qwen3.5's gated delta nets), over packed sequences and padded rows.

The stock layer knows one sequence a row, from its first token to its last. It would carry the state of one branch of
a packed sequence into the next, and let padding in the middle of a row decay what the prompt before it has left.
"""

from types import MethodType
from typing import Any, Protocol

import torch
from torch.nn import functional as F
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen3_5
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as qwen3_5_moe

from sft.models.tree_attention import read_nodes

LAYERS = (qwen3_5.Qwen3_5GatedDeltaNet, qwen3_5_moe.Qwen3_5MoeGatedDeltaNet)
LANGUAGE_MODELS = (qwen3_5.Qwen3_5TextModel, qwen3_5_moe.Qwen3_5MoeTextModel)


class _States(Protocol):
    """transformers' cache, as far as these layers use it."""

    def get_conv_state(self, layer_idx: int, state_idx: int) -> torch.Tensor | None: ...

    def get_recurrent_state(self, layer_idx: int, state_idx: int) -> torch.Tensor | None: ...

    def update_conv_state(self, columns: torch.Tensor, layer_idx: int, conv_kernel_size: int) -> torch.Tensor: ...

    def update_recurrent_state(self, state: torch.Tensor, layer_idx: int) -> torch.Tensor: ...


def carry_states(model: torch.nn.Module) -> None:
    """Let the gated delta nets of a model, where it has any, treat each step of a batch as they treat it alone.

    Their part of a packed sequence's mask reaches them by a hook: the stock model gives them padding masks only.
    """
    for module in model.modules():
        if isinstance(module, LAYERS):
            module.forward = MethodType(_forward, module)
        elif isinstance(module, LANGUAGE_MODELS):
            module.register_forward_pre_hook(_pass_tree, with_kwargs=True)


def _pass_tree(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give attention its mask of a packed sequence, and the other layers that sequence's `subtree_end`."""
    mask = kwargs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 4:
        end = mask if mask.dtype == torch.int64 else _read_subtree_end(mask)
        kwargs = {**kwargs, "attention_mask": {"full_attention": mask, "linear_attention": end}}
    return args, kwargs


def _read_subtree_end(mask: torch.Tensor) -> torch.Tensor:
    """Return (1, 1, 1, T) `subtree_end` of a dense mask: token k is seen by those from k to the end of its subtree."""
    n_seeing = (mask == 0).sum(dim=2, keepdim=True)
    return n_seeing + torch.arange(mask.shape[-1], device=mask.device)


def _forward(
    layer: Any,
    hidden_states: torch.Tensor,
    cache_params: _States | None = None,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Compute the layer: `hidden_states` (B, T, hidden), no mask, one of padding (B, T), or a tree (1, 1, 1, T)."""
    if attention_mask is not None and attention_mask.ndim == 4:
        return _run_tree(layer, hidden_states, attention_mask)
    has_state = cache_params is not None and cache_params.get_conv_state(layer.layer_idx, state_idx=0) is not None
    if attention_mask is not None and has_state:
        return _continue_padded(layer, hidden_states, cache_params, attention_mask)
    return type(layer).forward(layer, hidden_states, cache_params, attention_mask, **kwargs)


def _run_tree(layer: Any, hidden: torch.Tensor, subtree_end: torch.Tensor) -> torch.Tensor:
    """Compute node by node: each begins with the state and the last columns that its parent ended with."""
    nodes = read_nodes(subtree_end)
    sizes = [node.size for node in nodes]
    n_before = layer.conv_kernel_size - 1  # columns that a convolution sees before its own
    columns, decay, step = _project(layer, hidden)
    start = columns.new_zeros(*columns.shape[:2], n_before)
    tails: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    outputs = []
    parts = zip(nodes, columns.split(sizes, dim=2), decay.split(sizes, dim=1), step.split(sizes, dim=1))
    for node, own, node_decay, node_step in parts:
        parent = node.path[-2] if len(node.path) > 1 else None
        seen = torch.cat([start if parent is None else tails[parent], own], dim=2)
        state = None if parent is None else states[parent]
        output, state = _scan(layer, _convolve(layer, seen)[:, :, n_before:], node_decay, node_step, state)
        outputs.append(output)
        tails.append(seen[:, :, -n_before:])
        states.append(state)
    return _finish(layer, torch.cat(outputs, dim=1), hidden)


def _continue_padded(layer: Any, hidden: torch.Tensor, cache: Any, mask: torch.Tensor) -> torch.Tensor:
    """Continue from the cache with rows that are padded on the left, as if the padding were not there.

    A padding token neither decays nor changes the state; the columns the cache ended with are moved past it.
    """
    columns, decay, step = _project(layer, hidden)
    keep = mask[..., None].to(decay.dtype)
    before = cache.get_conv_state(layer.layer_idx, state_idx=0).to(columns.dtype)
    n_before = before.shape[2]
    n_padding = (mask == 0).sum(dim=1, keepdim=True)
    place = torch.arange(n_before + mask.shape[1], device=mask.device)[None]
    source = torch.where(place < n_padding + n_before, (place - n_padding).clamp(min=0), place)
    seen = torch.cat([before, columns], dim=2).gather(2, source[:, None].expand(-1, columns.shape[1], -1))
    state = cache.get_recurrent_state(layer.layer_idx, state_idx=0)
    convolved = _convolve(layer, seen)[:, :, n_before:]
    output, state = _scan(layer, convolved, decay * keep, step * keep.to(step.dtype), state)
    cache.update_conv_state(seen[:, :, -n_before:], layer.layer_idx, conv_kernel_size=layer.conv_kernel_size)
    cache.update_recurrent_state(state, layer.layer_idx)
    return _finish(layer, output, hidden)


def _project(layer: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the columns to convolve (B, channels, T), and decay (log) and step size (B, T, heads)."""
    decay = -layer.A_log.float().exp() * F.softplus(layer.in_proj_a(hidden).float() + layer.dt_bias)
    return layer.in_proj_qkv(hidden).transpose(1, 2), decay, layer.in_proj_b(hidden).sigmoid()


def _convolve(layer: Any, columns: torch.Tensor) -> torch.Tensor:
    weight, bias = layer.conv1d.weight.squeeze(1), layer.conv1d.bias
    return qwen3_5.causal_conv1d_fn(columns, weight, bias, activation=layer.activation)


def _scan(
    layer: Any, columns: torch.Tensor, decay: torch.Tensor, step: torch.Tensor, state: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the heads read (B, T, heads, head_dim) and the state after the last token."""
    query, key, value = columns.transpose(1, 2).split([layer.key_dim, layer.key_dim, layer.value_dim], dim=-1)
    heads = (*query.shape[:2], -1)
    return qwen3_5.torch_chunk_gated_delta_rule(
        query.reshape(*heads, layer.head_k_dim),
        key.reshape(*heads, layer.head_k_dim),
        value.reshape(*heads, layer.head_v_dim),
        g=decay,
        beta=step,
        initial_state=state,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )


def _finish(layer: Any, read: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    gate = layer.in_proj_z(hidden).reshape(-1, layer.head_v_dim)
    return layer.out_proj(layer.norm(read.reshape(-1, layer.head_v_dim), gate).reshape(*hidden.shape[:2], -1))
