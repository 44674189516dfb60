"""Tiny Llama-4 checkpoints: real architecture, tokenizer and files, few parameters. Knows nothing of training."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Llama4Config, Llama4ForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llama4.processing_llama4 import (
    chat_template as CHAT_TEMPLATE,
)  # Meta's, as transformers has it

from demo.tiny_bpe import train_bpe

# Llama-4's control tokens; they follow the learned vocabulary, as in the published tokenizer.
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|finetune_right_pad|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
)

# The published tokenizer's pre-tokenisation (that of Llama-3 with case-aware words).
PRETOKENIZE_REGEX = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TinyLlama4Size:
    """Dimensions of a tiny model. Widths are multiples of 64, the block of nf4 quantisation.

    Layers count from 1: every `moe_step`-th has experts, every `no_rope_interval`-th has full attention without
    rotary positions, the others attend within chunks of `chunk` tokens.
    """

    vocab: int = 512
    hidden: int = 64
    layers: int = 4
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 32
    intermediate: int = 128  # of an expert and of the shared expert
    intermediate_mlp: int = 192  # of a layer without experts
    experts: int = 4
    moe_step: int = 2  # 1 in Scout, 2 in Maverick
    qk_norm: bool = False  # True in Scout
    no_rope_interval: int = 4
    chunk: int = 8192
    vision_hidden: int = 64
    vision_layers: int = 2
    vision_heads: int = 2
    projector: int = 128
    tile: int = 56  # pixels a side; 336 in the published models
    max_tiles: int = 16


def build_tiny_llama4(
    folder: str | Path, texts: Iterable[str], size: TinyLlama4Size | None = None, seed: int = 0
) -> Path:
    """Write a hub-style checkpoint folder with random fp32 weights and a tokenizer trained on `texts`; return it."""
    folder, size = Path(folder), size or TinyLlama4Size()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(texts, size.vocab)
    torch.manual_seed(seed)
    model = Llama4ForConditionalGeneration(build_config(tokenizer, size))
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eom|>", "<|eot|>"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    for name, fields in _processor_configs(size).items():
        (folder / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return folder


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with Llama-4's pre-tokenizer; fewer than `vocab_size` entries where the texts are few."""
    bpe = train_bpe(texts, PRETOKENIZE_REGEX, vocab_size - len(SPECIAL_TOKENS))
    bpe.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot|>",
        pad_token="<|finetune_right_pad|>",
        model_max_length=10_485_760,
    )


def build_config(tokenizer: PreTrainedTokenizerFast, size: TinyLlama4Size) -> Llama4Config:
    """Return the config of a tiny model with the tokenizer's control tokens."""
    text = {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "intermediate_size": size.intermediate,
        "intermediate_size_mlp": size.intermediate_mlp,
        "num_local_experts": size.experts,
        "interleave_moe_layer_step": size.moe_step,
        "use_qk_norm": size.qk_norm,
        "no_rope_layer_interval": size.no_rope_interval,
        "attention_chunk_size": size.chunk,
        "floor_scale": size.chunk,
        "max_position_embeddings": 32_768,
        "initializer_range": 0.15,  # wide enough that random weights answer each picture and goal differently
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": size.vision_hidden,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.vision_heads,
        "intermediate_size": 4 * size.vision_hidden,  # the pixel shuffle's output, as in the published models
        "image_size": size.tile,
        "patch_size": 14,
        "projector_input_dim": size.projector,
        "projector_output_dim": size.projector,
        "vision_output_dim": size.projector,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    ids = {
        f"{name}_token_index": tokenizer.convert_tokens_to_ids(token)
        for name, token in (("boi", "<|image_start|>"), ("eoi", "<|image_end|>"), ("image", "<|patch|>"))
    }
    return Llama4Config(text_config=text, vision_config=vision, dtype="float32", **ids)


def _processor_configs(size: TinyLlama4Size) -> dict[str, dict[str, Any]]:
    """Return the processor's files with the published values, but for the size of a tile."""
    return {
        "preprocessor_config.json": {
            "image_processor_type": "Llama4ImageProcessorFast",
            "processor_class": "Llama4Processor",
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "max_patches": size.max_tiles,
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "resize_to_max_canvas": False,
            "size": {"height": size.tile, "width": size.tile},
        },
        "processor_config.json": {
            "processor_class": "Llama4Processor",
            "patch_size": 14,
            "pixel_shuffle_ratio": 0.5,
            "fake_image_token": "<|image|>",
            "image_token": "<|image|>",
        },
    }
