"""Qwen's mixtures of experts for LoRA, their experts as linear layers. Knows no recipes and no data."""

from transformers import Qwen3_5MoeConfig, Qwen3VLMoeConfig
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as qwen3_5_moe
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as qwen3_vl_moe

from sft.models.experts import LinearExperts, in_place_of

STOCK_EXPERTS = (qwen3_vl_moe.Qwen3VLMoeTextExperts, qwen3_5_moe.Qwen3_5MoeExperts)  # as full fine-tuning has them
_EXPERTS = r"\.mlp\.experts\."  # `read_experts` reads them


class Qwen3VLMoeForConditionalGeneration(qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL-MoE with `LinearExperts`, under the family's own class name, which is saved with it."""

    _keys_to_ignore_on_load_unexpected = [_EXPERTS]

    def __init__(self, config: Qwen3VLMoeConfig):
        with in_place_of(qwen3_vl_moe, "Qwen3VLMoeTextExperts", LinearExperts):
            super().__init__(config)


class Qwen3_5MoeForConditionalGeneration(qwen3_5_moe.Qwen3_5MoeForConditionalGeneration):
    """Qwen3.5-MoE likewise."""

    _keys_to_ignore_on_load_unexpected = [_EXPERTS, r"^mtp\."]

    def __init__(self, config: Qwen3_5MoeConfig):
        with in_place_of(qwen3_5_moe, "Qwen3_5MoeExperts", LinearExperts):
            super().__init__(config)
