"""Which tokens does the end of a model compute in training? Those whose next token is an answer's, and no others.

After the last layer a token is read by the head alone, and the head is asked about the tokens before a label alone. So
the last layer needs keys and values of all tokens, and of those few the rest: queries, attention, MLP, final norm and
head. Loss and gradients are the same up to rounding; nothing else is, so that this holds for the loss alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama4 import modeling_llama4 as llama4
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen3_5
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as qwen3_5_moe
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as qwen3_vl_moe

from sft.models.tree_attention import NAME, attend

TEXT_MODELS = (
    qwen2_vl.Qwen2VLTextModel,
    qwen2_5_vl.Qwen2_5_VLTextModel,
    qwen3_vl.Qwen3VLTextModel,
    qwen3_vl_moe.Qwen3VLMoeTextModel,
    qwen3_5.Qwen3_5TextModel,
    qwen3_5_moe.Qwen3_5MoeTextModel,
    llama4.Llama4TextModel,
)
WITHOUT_NORMS = (qwen2_vl.Qwen2VLAttention, qwen2_5_vl.Qwen2_5_VLAttention)
WITH_NORMS = (qwen3_vl.Qwen3VLTextAttention, qwen3_vl_moe.Qwen3VLMoeTextAttention)  # of queries and keys
WITH_GATE = (qwen3_5.Qwen3_5Attention, qwen3_5_moe.Qwen3_5MoeAttention)  # beside the norms
WITH_COMPLEX_ROTATION = (llama4.Llama4TextAttention,)
ATTENTIONS = (*WITHOUT_NORMS, *WITH_NORMS, *WITH_GATE, *WITH_COMPLEX_ROTATION)


@dataclass(frozen=True)
class ScoredTokens:
    """Of each row of a batch the tokens before a label: `places` (B, n), and the `labels` (B, n) they are scored by.

    n is the largest number of any row; a row that has fewer is filled up with tokens whose label is ignored.
    """

    places: torch.Tensor
    labels: torch.Tensor

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """Return these tokens' values (B, n, ...) of those of all: (B, T, ...), or (1, T, ...) for rows alike."""
        n_rows, n_tokens = len(self.places), values.shape[1]
        starts = torch.arange(n_rows, device=self.places.device)[:, None] * n_tokens
        flat = values.expand(n_rows, *values.shape[1:]).flatten(0, 1)
        return flat.index_select(0, (self.places + starts).flatten()).unflatten(0, self.places.shape)


@lru_cache(maxsize=1)  # the meter and the loss ask with the same tensor; the answer waits for the GPU
def find_scored_tokens(labels: torch.Tensor, ignored: int) -> ScoredTokens | None:
    """Find them by the labels (B, T), each of which scores the token before it; None where all are `ignored`."""
    labels = labels[:, 1:]
    is_scored = labels != ignored
    n = int(is_scored.sum(dim=1).max())
    places = (~is_scored).byte().argsort(dim=1, stable=True)[:, :n]
    return ScoredTokens(places, labels.gather(1, places)) if n else None


def prepare_last_layer(model: Any) -> bool:
    """Let the last decoder layer compute scored tokens alone where it is told to; say whether it can.

    It cannot where `find_last_layer` finds none, and with any attention but `tree_attention`'s.
    """
    layer = find_last_layer(model)
    if layer is None or find_text_model(model).config._attn_implementation != NAME:
        return False
    # a class of its own, not a function of the instance: transformers checkpoints what the class defines
    layer.__class__ = type(type(layer).__name__, (_LastLayer, type(layer)), {})
    return True


def find_last_layer(model: Any) -> Any | None:
    """Return the last decoder layer, where some of its tokens can be computed without the others.

    They cannot where it carries a state in the place of attention (Qwen3.5), or where deepstack adds to its output.
    """
    layers = find_text_model(model).layers
    n_deepstack = len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))
    is_attended = isinstance(getattr(layers[-1], "self_attn", None), ATTENTIONS)
    return layers[-1] if is_attended and len(layers) > n_deepstack else None


def find_text_model(model: Any) -> Any:
    """Return the part of a model from embedding to final norm."""
    return next(module for module in model.modules() if isinstance(module, TEXT_MODELS))


@contextmanager
def scored_alone(model: Any, scored: ScoredTokens, in_last_layer: bool) -> Iterator[None]:
    """Let the model's forward pass meanwhile return hidden states (B, n, hidden) of scored tokens alone.

    `in_last_layer`: from there on; else from the final norm on. The tokens are handed to the layer with its inputs, so
    that checkpointing computes the same ones again.
    """
    text = find_text_model(model)

    def name_tokens(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "scored": scored}

    def take(module: torch.nn.Module, args: Any) -> Any:
        return (scored.take(args[0]),)

    if in_last_layer:
        handle = text.layers[-1].register_forward_pre_hook(name_tokens, with_kwargs=True)
    else:
        handle = text.norm.register_forward_pre_hook(take)
    try:
        yield
    finally:
        handle.remove()


class _LastLayer(GradientCheckpointingLayer):
    """A decoder layer of any family whose output may be that of scored tokens alone."""

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, scored: Any = None, **kwargs: Any) -> torch.Tensor:
        if scored is None:
            return super().forward(hidden_states, *args, **kwargs)
        mask, rotation = kwargs["attention_mask"], kwargs["position_embeddings"]
        hidden = scored.take(hidden_states)
        hidden = hidden + _attend(self.self_attn, self.input_layernorm(hidden_states), scored, mask, rotation)
        mlp = self.feed_forward if isinstance(self, llama4.Llama4TextDecoderLayer) else self.mlp
        output = mlp(self.post_attention_layernorm(hidden))
        return hidden + (output[0] if isinstance(output, tuple) else output).view(hidden.shape)


def _attend(layer: Any, hidden: torch.Tensor, scored: ScoredTokens, mask: Any, rotation: Any) -> torch.Tensor:
    """Return the attention's output (B, n, hidden) for scored tokens; `hidden` (B, T, hidden) is that of all."""
    query, gate = layer.q_proj(scored.take(hidden)), None
    key, value = compute_keys(layer, hidden, rotation)
    if isinstance(layer, WITH_GATE):
        query, gate = query.unflatten(-1, (-1, 2, layer.head_dim)).unbind(-2)
    else:
        query = query.unflatten(-1, (-1, layer.head_dim))
    if isinstance(layer, WITH_COMPLEX_ROTATION):
        # attention that is sharpened by the place is not: `longest_sequence` ends before the first place it is
        if layer.use_rope:
            query = _rotate_complex(query, scored.take(rotation))
            query = layer.qk_norm(query) if layer.config.use_qk_norm else query
    else:
        query = query if isinstance(layer, WITHOUT_NORMS) else layer.q_norm(query)
        query = _rotate(query, *map(scored.take, rotation))
    query = query.transpose(1, 2)
    dropout = layer.attention_dropout if layer.training else 0.0
    output, _ = attend(layer, query, key, value, mask, dropout, layer.scaling, scored.places)
    output = output.flatten(2)
    return layer.o_proj(output if gate is None else output * gate.flatten(2).sigmoid())


def compute_keys(layer: Any, hidden: torch.Tensor, rotation: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an attention's keys and values, (B, key heads, T, D) each, of `hidden` (B, T, hidden)."""
    key, value = (
        projection(hidden).unflatten(-1, (-1, layer.head_dim)) for projection in (layer.k_proj, layer.v_proj)
    )
    if isinstance(layer, WITH_COMPLEX_ROTATION):
        if layer.use_rope:
            key = _rotate_complex(key, rotation)
            key = layer.qk_norm(key) if layer.config.use_qk_norm else key
    else:
        key = _rotate(key if isinstance(layer, WITHOUT_NORMS) else layer.k_norm(key), *rotation)
    return key.transpose(1, 2), value.transpose(1, 2)


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate (B, T, heads, D) by angles (B, T, R): the first R numbers of each head, halves as pairs."""
    turned, rest = heads.split([cos.shape[-1], heads.shape[-1] - cos.shape[-1]], dim=-1)
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos[:, :, None] + torch.cat([-second, first], dim=-1) * sin[:, :, None]
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _rotate_complex(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate (B, T, heads, D) by complex numbers (B, T, D / 2), neighbours as pairs."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * angles[:, :, None]).flatten(3).to(heads.dtype)
