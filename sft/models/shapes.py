"""What a model's config says of its sizes, whatever the family calls them. For the plan and the formula of FLOPs."""

from dataclasses import dataclass, replace
from typing import Any

CHUNK = 64  # tokens that a gated delta net computes at once


@dataclass(frozen=True)
class TextShape:
    """Sizes of a language model.

    `n_attention` layers attend and `n_linear` carry a state instead, of `state` numbers a sequence, from projections
    of `linear_width` numbers a token. `mlp_width` is what one token passes, `n_experts` how many there are to choose
    `n_chosen` from (0 where there are none).
    """

    head_dim: int
    n_attention: int
    n_linear: int
    mlp_width: int
    n_experts: int = 0
    n_chosen: int = 0
    expert_width: int = 0
    linear_width: int = 0
    state: int = 0


@dataclass(frozen=True)
class VisionShape:
    """Sizes of a vision tower; `merge` patches a side become one token.

    Of its `depth` layers `n_windowed` attend within windows of at most `window` patches, the others to a picture.
    """

    depth: int
    width: int
    mlp_width: int
    merge: int
    n_windowed: int = 0
    window: int = 0


def read_text_shape(text: Any) -> TextShape:
    """Read the sizes of a language model off its config."""
    n_linear = (getattr(text, "layer_types", None) or []).count("linear_attention")
    shape: dict[str, Any] = {
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "n_attention": text.num_hidden_layers - n_linear,
        "n_linear": n_linear,
    }
    if n_linear:
        keys = text.linear_num_key_heads * text.linear_key_head_dim
        values = text.linear_num_value_heads * text.linear_value_head_dim
        shape |= {"linear_width": 2 * keys + values, "state": text.linear_key_head_dim * values}
    if text.model_type == "llama4_text":
        # a token passes the shared expert and one of its own, together as wide as the MLP of a dense layer
        shape |= {"mlp_width": text.intermediate_size_mlp, "n_experts": text.num_local_experts}
        return TextShape(**shape, n_chosen=text.num_experts_per_tok, expert_width=text.intermediate_size)
    if not text.model_type.endswith("_moe_text"):
        return TextShape(**shape, mlp_width=text.intermediate_size)
    shared = getattr(text, "shared_expert_intermediate_size", 0)  # Qwen3-VL has no shared expert
    return TextShape(
        **shape,
        mlp_width=text.num_experts_per_tok * text.moe_intermediate_size + shared,
        n_experts=text.num_experts,
        n_chosen=text.num_experts_per_tok,
        expert_width=text.moe_intermediate_size,
    )


def read_vision_shape(vision: Any) -> VisionShape:
    """Read the sizes of a vision tower off its config."""
    if vision.model_type == "llama4_vision_model":
        merge = round(1 / vision.pixel_shuffle_ratio)  # the ratio of the sides
        return VisionShape(vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size, merge)
    if vision.model_type == "qwen2_vl_vision":  # whose `hidden_size` is the language model's
        width = vision.embed_dim
        return VisionShape(vision.depth, width, int(width * vision.mlp_ratio), vision.spatial_merge_size)
    shape = VisionShape(vision.depth, vision.hidden_size, vision.intermediate_size, vision.spatial_merge_size)
    if vision.model_type != "qwen2_5_vl_vision":
        return shape
    n_windowed = vision.depth - len(vision.fullatt_block_indexes)
    return replace(shape, n_windowed=n_windowed, window=(vision.window_size // vision.patch_size) ** 2)


def count_output_numbers(config: Any) -> int:
    """Count the numbers that a tower gives for one image token, by a model's config."""
    if config.model_type == "llama4":
        return config.vision_config.vision_output_dim
    n_outputs = 1 + len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
    return n_outputs * config.get_text_config().hidden_size
