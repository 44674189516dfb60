"""Llama-4 for LoRA: its layers of experts and the part up to its head. Knows no recipes and no data."""

from typing import Any, cast

import torch
from torch import nn
from transformers import Llama4Config
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.llama4 import modeling_llama4 as stock

from sft.models.experts import LinearExperts, in_place_of


class Llama4SparseMoe(nn.Module):
    """The stock MoE layer, computed for the chosen experts only; same router, same result.

    The stock layer gives every token to every expert, all but the chosen ones multiplied by zero: with 128 experts
    that is 128 times the arithmetic, and a copy of the hidden states for each expert.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.top_k, self.hidden_dim = config.num_experts_per_tok, config.hidden_size
        self.router = stock.Llama4Router(config)
        self.shared_expert = stock.Llama4TextMLP(config)
        self.experts = LinearExperts(config, weighs_inputs=True)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B * T, hidden) and the router's logits (B * T, experts)."""
        hidden = hidden_states.reshape(-1, self.hidden_dim)
        scores, logits = self.router(hidden)
        chosen = torch.topk(logits, self.top_k, dim=1).indices
        return self.shared_expert(hidden) + self.experts(hidden, chosen, scores.gather(1, chosen)), logits


class Llama4ForConditionalGeneration(stock.Llama4ForConditionalGeneration):
    """Llama-4 with `Llama4SparseMoe` layers, under the family's own class name."""

    _keys_to_ignore_on_load_unexpected = [r"\.feed_forward\.experts\."]  # `read_experts` reads them

    def __init__(self, config: Llama4Config):
        with in_place_of(stock, "Llama4TextMoe", Llama4SparseMoe):
            super().__init__(config)

    @property
    def base_model(self) -> "_Backbone":  # type: ignore[override]
        """The model up to its head, which TRL's fused head calls; the stock class has no such part."""
        return _Backbone(self)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Run the vision tower in its own number format; the stock class takes pixels in no other."""
        kwargs.pop("vision_feature_select_strategy", None)  # transformers 5.17 asks for it and makes no use of it
        return self.vision_model(pixel_values.to(self.vision_model.dtype), **kwargs)


class _Backbone:
    _tp_plan = _pp_plan = None

    def __init__(self, owner: Llama4ForConditionalGeneration):
        self._owner = owner

    def __call__(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        inputs_embeds: None = None,  # peft passes it on, unset
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        owner = self._owner
        embedded = owner.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = owner.get_image_features(pixel_values, return_dict=True).last_hidden_state
            pictures = owner.multi_modal_projector(features.flatten(0, -2)).to(embedded.dtype)
            mask = owner.get_placeholder_mask(cast(Any, input_ids), inputs_embeds=embedded, image_features=pictures)
            embedded = embedded.masked_scatter(mask, pictures)
        return owner.language_model.model(inputs_embeds=embedded, **kwargs)


def longest_sequence(config: Any) -> int | None:
    """Return how many tokens a sequence may have to be packed, or decoded beside others, exactly; None: any number.

    Llama-4's chunked layers cut the sequence every `attention_chunk_size` tokens, and its layers without rotary
    positions sharpen attention every `floor_scale` tokens, both counted from the sequence's first token, whatever
    positions are given. Below the first border neither does anything; beyond it a packed step would be cut elsewhere
    than alone.
    """
    if config.model_type != "llama4":
        return None
    text = config.text_config
    borders = [text.attention_chunk_size] + ([text.floor_scale] if text.attn_temperature_tuning else [])
    return min(border for border in borders if border) - 1
