"""Folders of Qwen3-VL-8B-Instruct and Qwen2.5-VL-7B-Instruct as they are published, but for the weights.

The configs' values are the published ones; the chat templates are those that TRL ships of both models; the tokenizer
is built from Qwen's own BPE ranks, which the package dashscope ships. What differs from the published folders: no
weights, or random ones, and no files that nothing here reads.
"""

import base64
import json
import math
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2Tokenizer

from demo.tiny_qwen3vl import SPECIAL_TOKENS

# The tokens that follow the learned vocabulary, in the published order: the demo's, then those of tools and code.
ADDED_TOKENS = (
    *SPECIAL_TOKENS,
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
FOLDERS = {"qwen3_vl": "Qwen3-VL-8B-Instruct", "qwen2_5_vl": "Qwen2.5-VL-7B-Instruct"}
_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
# The number format stands in the text part alone.
QWEN3_VL_CONFIG = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    **_IDS,
    "tie_word_embeddings": False,
    "transformers_version": "4.57.0.dev0",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 12288,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "vision_config": {
        "deepstack_visual_indexes": [8, 16, 24],
        "depth": 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4304,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
# A flat config, with the number format's older name.
QWEN2_5_VL_CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    **_IDS,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_token_id": 151654,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}
_PATCHES_OF_16 = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
}
_GENERATION = {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643]}
FILES = {
    "qwen3_vl": {
        "config.json": QWEN3_VL_CONFIG,
        "generation_config.json": {**_GENERATION, "top_p": 0.8, "top_k": 20, "temperature": 0.7},
        "preprocessor_config.json": {
            **_PATCHES_OF_16,
            "size": {"longest_edge": 16777216, "shortest_edge": 65536},
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        "video_preprocessor_config.json": {
            **_PATCHES_OF_16,
            "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
    },
    "qwen2_5_vl": {
        "config.json": QWEN2_5_VL_CONFIG,
        "generation_config.json": {
            **_GENERATION,
            "repetition_penalty": 1.05,
            "temperature": 0.1,
            "top_p": 0.001,
            "top_k": 1,
        },
        "preprocessor_config.json": {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    },
}
# By family: the template in chat_template.json, and that in tokenizer_config.json, a text model's for Qwen2.5-VL.
TEMPLATES = {"qwen3_vl": ("qwen3_vl", "qwen3_vl"), "qwen2_5_vl": ("qwen2_5_vl", "qwen2_5")}


def write_real_folders(out: Path) -> dict[str, Path]:
    """Write both folders; return them by family. Takes some seconds, most of them for the tokenizer."""
    tokenizer = build_qwen_tokenizer()
    return {family: _write_folder(out / name, family, tokenizer) for family, name in FOLDERS.items()}


def write_random_weights(folder: Path, shard_bytes: int = 2_000_000_000) -> int:
    """Write bf16 weights of the shapes that the folder's config asks for; return their bytes.

    Norms are ones, biases zeros, all else normal with a deviation of 0.02. Holds one shard, twice while it is written.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    shards: list[dict[str, torch.Size]] = [{}]
    for name, tensor in model.state_dict().items():
        if shards[-1] and 2 * (tensor.numel() + sum(map(math.prod, shards[-1].values()))) > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor.shape
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    for i, shapes in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _draw(name, shape, generator) for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, file)
    n_bytes = 2 * sum(math.prod(shape) for shapes in shards for shape in shapes.values())
    index = {"metadata": {"total_size": n_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return n_bytes


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    weight = torch.empty(shape, dtype=torch.bfloat16)
    if name.endswith("bias"):
        return weight.zero_()
    return weight.fill_(1) if "norm" in name else weight.normal_(0, 0.02, generator=generator)


def build_qwen_tokenizer() -> Qwen2Tokenizer:
    """Build Qwen's tokenizer of its ranks: a token's merges are the ways to part it into two tokens."""
    rank_of = {}
    for line in (files("dashscope") / "resources" / "qwen.tiktoken").read_bytes().splitlines():
        token, rank = line.split()
        rank_of[base64.b64decode(token)] = int(rank)
    merges = [
        (rank, rank_of[token[:i]], rank_of[token[i:]], token[:i], token[i:])
        for token, rank in rank_of.items()
        for i in range(1, len(token))
        if token[:i] in rank_of and token[i:] in rank_of
    ]
    letter_of = _map_bytes_to_letters()
    spelled = {token: "".join(letter_of[byte] for byte in token) for token in rank_of}
    vocabulary = {spelled[token]: rank for token, rank in rank_of.items()}
    return Qwen2Tokenizer(
        vocab=vocabulary | {token: len(rank_of) + i for i, token in enumerate(ADDED_TOKENS)},
        merges=[(spelled[left], spelled[right]) for *_, left, right in sorted(merges)],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=262_144,
    )


def read_template(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def _write_folder(folder: Path, family: str, tokenizer: Qwen2Tokenizer) -> Path:
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    of_vision, of_text = map(read_template, TEMPLATES[family])
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    contents = {
        **FILES[family],
        "chat_template.json": {"chat_template": of_vision},
        "tokenizer_config.json": {**tokenizer_config, "chat_template": of_text},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder


def _map_bytes_to_letters() -> dict[int, str]:
    """Return the letter that stands for each byte in the files of byte-level BPEs: printable ones for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
