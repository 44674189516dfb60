"""Model families: where each keeps its parts, as names of layers. Knows no weights and no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft.errors import UserError

PARTS = ("language", "experts", "merger", "vision")


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its parts. Each value is a regex that matches whole module names of linear layers."""

    linears: Mapping[str, str]
    not_quantised: tuple[str, ...] = ("model.visual", "lm_head")

    def quantises(self, name: str) -> bool:
        """Say whether the linear layer of this name is held in 4 bits under `load_in_4bit`."""
        return not name.startswith(self.not_quantised) and not name.endswith(self.not_quantised)


_LANGUAGE_LINEARS = r"model\.language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"

# Suffix lists such as "q_proj, up_proj" hit different parts in different families (Qwen2.5-VL's vision MLP, for one):
# one anchored regex a part instead. Names are those of transformers 5.
FAMILIES: Mapping[str, Family] = {
    "qwen3_vl": Family(
        {
            "language": _LANGUAGE_LINEARS,
            "merger": r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]",
            "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
        }
    ),
    "qwen2_5_vl": Family(
        {
            "language": _LANGUAGE_LINEARS,
            "merger": r"model\.visual\.merger\.mlp\.[02]",
            "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)",
        }
    ),
    # Every token passes attention and the shared expert, or the one MLP of a layer without experts: "language".
    "llama4": Family(
        {
            "language": r"language_model\.model\.layers\.\d+\."
            r"(self_attn\.(q|k|v|o)_proj|feed_forward\.(shared_expert\.)?(gate|up|down)_proj)",
            "experts": r"language_model\.model\.layers\.\d+\.feed_forward\.experts\.\d+\.(gate_up|down)_proj",
            "merger": r"vision_model\.vision_adapter\.mlp\.fc[12]|multi_modal_projector\.linear_1",
            "vision": r"vision_model\.model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.fc[12])",
        },
        not_quantised=("vision_model", "multi_modal_projector", "language_model.lm_head", "feed_forward.router"),
    ),
}


def find_family_of(model_type: str) -> Family:
    """Return the family of a config's `model_type`.

    Raises:
        UserError: a family that is not supported.
    """
    if model_type not in FAMILIES:
        raise UserError(f"model_name_or_path: found model type {model_type!r}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def part_of(parameter_name: str) -> str:
    """Return the part of the model a parameter belongs to: language, experts, merger or vision."""
    if re.search(r"merger|vision_adapter|multi_modal_projector", parameter_name):
        return "merger"
    if re.search(r"visual\.|vision_model\.", parameter_name):
        return "vision"
    return "experts" if ".experts." in parameter_name else "language"


def find_vision_width(vision: Any) -> int:
    """Return the width of the layers of a vision config's tower; Qwen2-VL's `hidden_size` is the language model's."""
    return getattr(vision, "embed_dim", None) or vision.hidden_size
