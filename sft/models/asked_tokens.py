"""Which tokens does the last layer compute in a rollout? Those whose next token is asked for, and no others.

Of a prompt the last token's logits are asked for, and those of the tokens that are guessed behind it. The others leave
their keys and values in the last layer, and nothing else of it is ever read: not their queries, nor their MLP. Logits
are the same up to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from sft.models.scored_tokens import compute_keys, find_last_layer


@contextmanager
def asked_alone(model: Any) -> Iterator[None]:
    """Let the last decoder layer meanwhile compute the last `logits_to_keep` tokens alone, where it can."""
    if (layer := find_last_layer(model)) is None:
        yield
        return
    stock = type(layer)

    def note(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        layer.n_asked = kwargs.get("logits_to_keep", 0)

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    layer.__class__ = type(stock.__name__, (_AskedLayer, stock), {})
    try:
        yield
    finally:
        layer.__class__ = stock
        handle.remove()
        del layer.n_asked


class _AskedLayer(GradientCheckpointingLayer):
    """A decoder layer of any family, with a cache, whose output is that of the last `n_asked` tokens alone."""

    n_asked = 0  # all

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        mask, n_asked = kwargs["attention_mask"], self.n_asked
        n_others = hidden_states.shape[1] - n_asked
        if not n_asked or n_others <= 0 or getattr(mask, "ndim", 0) != 4:  # which says what each query sees
            return super().forward(hidden_states, *args, **kwargs)
        rotation = kwargs["position_embeddings"]
        others = self.input_layernorm(hidden_states[:, :n_others])
        key, value = compute_keys(self.self_attn, others, _cut(rotation, slice(n_others)))
        kwargs["past_key_values"].update(key, value, self.self_attn.layer_idx)
        kwargs |= {
            "attention_mask": mask[:, :, -n_asked:],
            "position_embeddings": _cut(rotation, slice(-n_asked, None)),
            "position_ids": None,  # the angles say the places
        }
        return super().forward(hidden_states[:, -n_asked:], *args, **kwargs)


def _cut(rotation: Any, tokens: slice) -> Any:
    """Cut angles (B, T, ...) to some tokens; most families have two tensors of them, Llama-4 one."""
    return rotation[:, tokens] if isinstance(rotation, torch.Tensor) else tuple(part[:, tokens] for part in rotation)
