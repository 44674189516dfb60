"""Tiny Qwen-VL checkpoints: real architecture, tokenizer and files, few parameters. Knows nothing of training."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import normalizers
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from demo.tiny_bpe import train_bpe

Family = Literal["qwen3_vl", "qwen2_5_vl"]

# Qwen's control tokens in Qwen's order; they follow the learned vocabulary, as in the published tokenizers.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# What the published Qwen3-VL-Instruct template writes for turns of text, images and videos (tools left out).
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' or 'video' in part %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@dataclass(frozen=True)
class TinySize:
    """Dimensions of a tiny model. Widths are multiples of 64, the block of nf4 quantisation."""

    vocab: int = 512
    hidden: int = 64
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 32
    intermediate: int = 128
    vision_hidden: int = 64
    vision_depth: int = 2
    vision_heads: int = 2
    vision_intermediate: int = 128
    vision_grid: int = 16  # learned positions a side; resampled to each image's patch grid
    deepstack: tuple[int, ...] = (0,)  # vision layers whose features are added to the first language layers
    tie_embeddings: bool = False


def build_tiny_checkpoint(
    folder: str | Path, texts: Iterable[str], family: Family = "qwen3_vl", size: TinySize | None = None, seed: int = 0
) -> Path:
    """Write a hub-style checkpoint folder with random fp32 weights and a tokenizer trained on `texts`; return it."""
    folder, size = Path(folder), size or TinySize()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(texts, size.vocab)
    model = build_model(tokenizer, family, size, seed)
    save_checkpoint(folder, model, tokenizer, family)
    return folder


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE with Qwen's pre-tokenizer; fewer than `vocab_size` entries where the texts are few."""
    bpe = train_bpe(texts, PRETOKENIZE_REGEX, vocab_size - len(SPECIAL_TOKENS), normalizers.NFC())
    learned = json.loads(bpe.to_str())["model"]
    first = len(learned["vocab"])
    return Qwen2Tokenizer(
        vocab=learned["vocab"] | {token: first + i for i, token in enumerate(SPECIAL_TOKENS)},
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=262_144,
    )


def build_model(tokenizer: Qwen2Tokenizer, family: Family, size: TinySize, seed: int) -> PreTrainedModel:
    """Build the family's `...ForConditionalGeneration` with random fp32 weights."""
    torch.manual_seed(seed)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "im_end")}
    shared = {
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["video_pad"],
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        "tie_word_embeddings": size.tie_embeddings,
        "dtype": "float32",
    }
    text = _text_config(size, eos_token_id=ids["im_end"], pad_token_id=tokenizer.pad_token_id)
    if family == "qwen3_vl":
        text |= {"head_dim": size.head_dim}
        text["rope_parameters"] |= {"mrope_interleaved": True}
        vision = _vision_config(size) | {
            "patch_size": 16,
            "num_position_embeddings": size.vision_grid**2,
            "deepstack_visual_indexes": list(size.deepstack),
            "hidden_act": "gelu_pytorch_tanh",
        }
        return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **shared))
    vision = _vision_config(size) | {"patch_size": 14, "fullatt_block_indexes": [size.vision_depth - 1]}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **shared))


def save_checkpoint(folder: Path, model: PreTrainedModel, tokenizer: Qwen2Tokenizer, family: Family) -> None:
    """Write weights, configs, tokenizer, processor configs and chat template as a hub checkpoint has them."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    image, video = _processor_configs(family)
    for name, fields in (("preprocessor_config.json", image), ("video_preprocessor_config.json", video)):
        (folder / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _text_config(size: TinySize, **token_ids: int) -> dict[str, Any]:
    half = size.head_dim // 2
    height = width = half * 5 // 16  # 20 of 64 in Qwen3-VL-8B; time takes the rest
    return {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": 32_768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,  # 5,000,000 in the 8B, for contexts a hundred times as long
            "mrope_section": [half - height - width, height, width],
        },
        "bos_token_id": None,
        **token_ids,
    }


def _vision_config(size: TinySize) -> dict[str, Any]:
    return {
        "depth": size.vision_depth,
        "hidden_size": size.vision_hidden,
        "num_heads": size.vision_heads,
        "intermediate_size": size.vision_intermediate,
        "out_hidden_size": size.hidden,
    }


def _processor_configs(family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the image and the video preprocessor config, with the published values of the family."""
    if family == "qwen3_vl":
        shared: dict[str, Any] = {
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "Qwen3VLProcessor",
        }
        image = {"size": {"longest_edge": 16_777_216, "shortest_edge": 65_536}}
        video = {"size": {"longest_edge": 25_165_824, "shortest_edge": 4_096}}
        video_type = "Qwen3VLVideoProcessor"
    else:
        shared = {
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "processor_class": "Qwen2_5_VLProcessor",
        }
        image = video = {"min_pixels": 3_136, "max_pixels": 12_845_056}
        video_type = "Qwen2VLVideoProcessor"
    return (
        {**shared, **image, "image_processor_type": "Qwen2VLImageProcessorFast"},
        {**shared, **video, "video_processor_type": video_type},
    )
