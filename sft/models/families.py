"""Model families: where each keeps its parts, as names of layers. Knows no weights and no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sft.errors import UserError

PARTS = ("language", "experts", "merger", "vision")


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its parts. Each value is a regex that matches whole module names of linear layers."""

    linears: Mapping[str, str]
    not_quantised: tuple[str, ...] = ("model.visual", "lm_head")
    stores_experts_transposed: bool = False  # what a square matrix of an expert is in the family's files

    def quantises(self, name: str) -> bool:
        """Say whether the linear layer of this name is held in 4 bits under `load_in_4bit`."""
        return not name.startswith(self.not_quantised) and not name.endswith(self.not_quantised)


_LAYER = r"model\.language_model\.layers\.\d+\."
_ATTENTION = r"self_attn\.(q|k|v|o)_proj"
_MLP = r"mlp\.(gate|up|down)_proj"
# The decay and the step size of a gated delta net (in_proj_a, in_proj_b) come from a few numbers a token: left alone.
_DELTA_NET = r"linear_attn\.(in_proj_qkv|in_proj_z|out_proj)"
_QWEN_EXPERTS = _LAYER + r"mlp\.experts\.\d+\.(gate_up|down)_proj"
_QWEN2_MERGER = r"model\.visual\.merger\.mlp\.[02]"
_QWEN3_VISION = r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])"
_QWEN3_MERGER = r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]"
_QWEN3_5_GATES = ("linear_attn.in_proj_a", "linear_attn.in_proj_b", "mlp.shared_expert_gate")

# How transformers 5 names modules, and what the same weights are called in files that older versions wrote.
FILE_NAMES = (("model.language_model.", "model."), ("model.visual.", "visual."))

# Suffix lists such as "q_proj, up_proj" hit different parts in different families (Qwen2.5-VL's vision MLP, for one):
# one anchored regex a part instead. Names are those of transformers 5.
FAMILIES: Mapping[str, Family] = {
    "qwen2_vl": Family(
        {
            "language": f"{_LAYER}({_ATTENTION}|{_MLP})",
            "merger": _QWEN2_MERGER,
            "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])",
        }
    ),
    "qwen2_5_vl": Family(
        {
            "language": f"{_LAYER}({_ATTENTION}|{_MLP})",
            "merger": _QWEN2_MERGER,
            "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)",
        }
    ),
    "qwen3_vl": Family(
        {"language": f"{_LAYER}({_ATTENTION}|{_MLP})", "merger": _QWEN3_MERGER, "vision": _QWEN3_VISION}
    ),
    # The MLP is that of layers without experts, of which the published models have none.
    "qwen3_vl_moe": Family(
        {
            "language": f"{_LAYER}({_ATTENTION}|{_MLP})",
            "experts": _QWEN_EXPERTS,
            "merger": _QWEN3_MERGER,
            "vision": _QWEN3_VISION,
        }
    ),
    "qwen3_5": Family(
        {
            "language": f"{_LAYER}({_ATTENTION}|{_DELTA_NET}|{_MLP})",
            "merger": _QWEN3_MERGER,
            "vision": _QWEN3_VISION,
        },
        not_quantised=("model.visual", "lm_head", *_QWEN3_5_GATES),
    ),
    "qwen3_5_moe": Family(
        {
            "language": rf"{_LAYER}({_ATTENTION}|{_DELTA_NET}|mlp\.shared_expert\.(gate|up|down)_proj)",
            "experts": _QWEN_EXPERTS,
            "merger": _QWEN3_MERGER,
            "vision": _QWEN3_VISION,
        },
        not_quantised=("model.visual", "lm_head", *_QWEN3_5_GATES),
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
        stores_experts_transposed=True,
    ),
}


def find_family_of(model_type: object) -> Family:
    """Return the family of a config's `model_type`.

    Raises:
        UserError: a family that is not supported.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"model_name_or_path: found model type {model_type!r}; expected one of {', '.join(FAMILIES)}: choose a "
            "model of one of these families (docs/models.md says what was tested with each, and how to add one)"
        )
    return FAMILIES[model_type]


def list_file_names(name: str) -> list[str]:
    """Return what a module or weight may be called in a checkpoint: as transformers 5 names it, then as older ones."""
    return [name, *(name.replace(new, old, 1) for new, old in FILE_NAMES if name.startswith(new))]


def part_of(parameter_name: str) -> str:
    """Return the part of the model a parameter belongs to: language, experts, merger or vision."""
    if re.search(r"merger|vision_adapter|multi_modal_projector", parameter_name):
        return "merger"
    if re.search(r"visual\.|vision_model\.", parameter_name):
        return "vision"
    return "experts" if ".experts." in parameter_name else "language"
