"""Tiny Qwen-VL checkpoints: real architecture, tokenizer and files, few parameters. Knows nothing of training."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import normalizers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    GenerationConfig,
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen3_5Tokenizer,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as PRETOKENIZE_REGEX_3_5

from demo.tiny_bpe import train_bpe

Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]
QwenTokenizer = Qwen2Tokenizer | Qwen3_5Tokenizer

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

# Of Qwen3.5, behind the others and, as there, no control tokens: an answer may hold them.
THINKING_TOKENS = ("<think>", "</think>")

# The published templates, from TRL's copies of them: by which family's model was published with it.
TEMPLATE_FILES = {
    "qwen2_vl": "qwen2_5_vl.jinja",  # the two families' are the same to the byte
    "qwen3_vl_moe": "qwen3_vl.jinja",
    "qwen3_5": "qwen3_5_nothink.jinja",  # of 2B and smaller
    "qwen3_5_moe": "qwen3_5_think.jinja",  # of 4B and larger
}

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
    experts: int = 4  # of each layer, in the families that have any
    experts_per_token: int = 2
    expert_intermediate: int = 192
    linear_key_heads: int = 2  # Qwen3.5's layers without attention
    linear_value_heads: int = 4
    linear_head_dim: int = 16


def build_tiny_checkpoint(
    folder: str | Path, texts: Iterable[str], family: Family = "qwen3_vl", size: TinySize | None = None, seed: int = 0
) -> Path:
    """Write a hub-style checkpoint folder with random fp32 weights and a tokenizer trained on `texts`; return it."""
    folder, size = Path(folder), size or TinySize()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(texts, size.vocab, family)
    model = build_model(tokenizer, family, size, seed)
    save_checkpoint(folder, model, tokenizer, family)
    return folder


def build_tokenizer(texts: Iterable[str], vocab_size: int, family: Family = "qwen3_vl") -> QwenTokenizer:
    """Train a byte-level BPE with Qwen's pre-tokenizer; fewer than `vocab_size` entries where the texts are few."""
    is_qwen3_5 = family.startswith("qwen3_5")
    added = SPECIAL_TOKENS + (THINKING_TOKENS if is_qwen3_5 else ())
    regex = PRETOKENIZE_REGEX_3_5 if is_qwen3_5 else PRETOKENIZE_REGEX
    bpe = train_bpe(texts, regex, vocab_size - len(added), normalizers.NFC())
    learned = json.loads(bpe.to_str())["model"]
    first = len(learned["vocab"])
    tokenizer = (Qwen3_5Tokenizer if is_qwen3_5 else Qwen2Tokenizer)(
        vocab=learned["vocab"] | {token: first + i for i, token in enumerate(added)},
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=262_144,
    )
    if is_qwen3_5:
        tokenizer.add_tokens(list(THINKING_TOKENS))
    return tokenizer


def build_model(tokenizer: QwenTokenizer, family: Family, size: TinySize, seed: int) -> PreTrainedModel:
    """Build the family's `...ForConditionalGeneration` with random fp32 weights."""
    torch.manual_seed(seed)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "im_end")}
    text = _text_config(size, family) | {"eos_token_id": ids["im_end"], "pad_token_id": tokenizer.pad_token_id}
    config = CONFIG_MAPPING[family](
        text_config=text,
        vision_config=_vision_config(size, family),
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=size.tie_embeddings,
        dtype="float32",
    )
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
    for name, parameter in model.named_parameters():
        if name.endswith("linear_attn.A_log"):
            # Drawn at random a state would be forgotten within a token; this one outlasts a prompt in some heads.
            parameter.data.uniform_(0.001, 0.2).log_()
    return model


def read_template(family: Family) -> str:
    """Return the family's chat template as published; for the first two families what it writes of our turns."""
    if family not in TEMPLATE_FILES:
        return CHAT_TEMPLATE
    return (files("trl") / "chat_templates" / TEMPLATE_FILES[family]).read_text(encoding="utf-8")


def save_checkpoint(folder: Path, model: PreTrainedModel, tokenizer: QwenTokenizer, family: Family) -> None:
    """Write weights, configs, tokenizer, processor configs and chat template as a hub checkpoint has them."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    if family in ("qwen3_vl_moe", "qwen3_5_moe"):
        _write_experts_as_published(folder, model, family)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(read_template(family), encoding="utf-8")
    image, video = _processor_configs(family)
    for name, fields in (("preprocessor_config.json", image), ("video_preprocessor_config.json", video)):
        (folder / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _write_experts_as_published(folder: Path, model: PreTrainedModel, family: Family) -> None:
    """Write the weights again with a layer's experts as the published files have them: in one tensor.

    Qwen3-VL-MoE's are (experts, in, out), Qwen3.5's (experts, out, in); transformers 5 saves models that it built
    itself otherwise.
    """
    is_transposed = family == "qwen3_vl_moe"
    weights = {
        name: (weight.transpose(1, 2) if is_transposed and ".mlp.experts." in name else weight).contiguous()
        for name, weight in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _text_config(size: TinySize, family: Family) -> dict[str, Any]:
    is_qwen3_5 = family.startswith("qwen3_5")
    # Qwen3.5 turns a part of each head: a quarter of 256 numbers there, here half of 32.
    half = size.head_dim // 4 if is_qwen3_5 else size.head_dim // 2
    height = width = half * 5 // 16  # 20 of 64 in Qwen3-VL-8B, 11 and 10 of 32 in Qwen3.5; time takes the rest
    config: dict[str, Any] = {
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
    }
    if family.startswith("qwen3"):
        config["head_dim"] = size.head_dim
        config["rope_parameters"]["mrope_interleaved"] = True
    if family in TEMPLATE_FILES:
        config["initializer_range"] = 0.15  # wide enough that random weights answer each picture and goal differently
    if is_qwen3_5:
        config["rope_parameters"]["partial_rotary_factor"] = 0.5
        config |= {
            "full_attention_interval": 2,  # 4 in the published models: three linear layers, then attention
            "linear_num_key_heads": size.linear_key_heads,
            "linear_num_value_heads": size.linear_value_heads,
            "linear_key_head_dim": size.linear_head_dim,
            "linear_value_head_dim": size.linear_head_dim,
        }
    if family.endswith("_moe"):
        config |= {
            "num_experts": size.experts,
            "num_experts_per_tok": size.experts_per_token,
            "moe_intermediate_size": size.expert_intermediate,
            "shared_expert_intermediate_size": size.intermediate,
        }
    return config


def _vision_config(size: TinySize, family: Family) -> dict[str, Any]:
    shared = {"depth": size.vision_depth, "num_heads": size.vision_heads}
    if family == "qwen2_vl":  # its tower's width is `embed_dim`; `hidden_size` is that of the language model
        ratio = size.vision_intermediate // size.vision_hidden
        return shared | {"embed_dim": size.vision_hidden, "hidden_size": size.hidden, "mlp_ratio": ratio}
    shared |= {
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_intermediate,
        "out_hidden_size": size.hidden,
    }
    if family == "qwen2_5_vl":
        return shared | {"patch_size": 14, "fullatt_block_indexes": [size.vision_depth - 1]}
    deepstack = {} if family.startswith("qwen3_5") else {"deepstack_visual_indexes": list(size.deepstack)}
    return (
        shared
        | deepstack
        | {
            "patch_size": 16,
            "num_position_embeddings": size.vision_grid**2,
            "hidden_act": "gelu_pytorch_tanh",
        }
    )


def _processor_configs(family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the image and the video preprocessor config, with the published values of the family."""
    if family.startswith("qwen3"):
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
            "processor_class": "Qwen2VLProcessor" if family == "qwen2_vl" else "Qwen2_5_VLProcessor",
        }
        image = video = {"min_pixels": 3_136, "max_pixels": 12_845_056}
        video_type = "Qwen2VLVideoProcessor"
    return (
        {**shared, **image, "image_processor_type": "Qwen2VLImageProcessorFast"},
        {**shared, **video, "video_processor_type": video_type},
    )
