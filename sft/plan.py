"""What a run will take: steps, tokens, sequences and an estimate of GPU memory. Reads configs and data, no weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft.config import Recipe
from sft.sampler import PackSampler, StepSize
from sft.settings import ModelSettings

# Bytes a weight takes in nf4 with double quantisation: 4 bits, 8 bits every 64 weights, 32 bits every 256 of those.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
BYTES_OF_DTYPE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Bytes of optimiser state a trained parameter: two moments, in the parameter's own format unless the name says 8 bit.
EIGHT_BIT_STATE = 2.0
CONTEXT_GB = 0.7  # CUDA context and library workspaces
GB = 1e9


@dataclass(frozen=True)
class TokenPlan:
    """Token counts of one epoch; `longest` is its longest batch, `longest_prefixes` the screenshots' share of it."""

    n_steps: int
    n_tokens_alone: int
    n_tokens_packed: int
    n_sequences: int
    longest: int
    longest_prefixes: int
    n_optimizer_steps: int

    @property
    def packing_factor(self) -> float:
        return self.n_tokens_alone / self.n_tokens_packed


def plan_tokens(recipe: Recipe, sizes: list[StepSize], n_ranks: int) -> TokenPlan:
    """Count what one epoch holds under the recipe's packing."""
    alone = [s.n_prefix + s.n_own for s in sizes]
    accumulation = recipe.training.get("gradient_accumulation_steps", 1)
    if recipe.batch.packing == "none":
        batch = recipe.training.get("per_device_train_batch_size", 8)
        n_batches = -(-len(sizes) // (batch * n_ranks))
        prefixes = max(s.n_prefix for s in sizes) * batch
        n_optimizer_steps = -(-n_batches // accumulation)
        return TokenPlan(
            len(sizes), sum(alone), sum(alone), len(sizes), max(alone) * batch, prefixes, n_optimizer_steps
        )
    seed = recipe.training.get("seed", 42)
    sampler = PackSampler(sizes, recipe.batch.tokens_per_batch, seed, n_ranks, accumulation)
    packs = sampler.plan(0)
    counts = [sampler.count_tokens(pack) for pack in packs]
    largest = packs[counts.index(max(counts))]
    prefixes = sum({sizes[i].image: sizes[i].n_prefix for i in largest}.values())
    n_optimizer_steps = -(-len(packs) // (n_ranks * accumulation))
    return TokenPlan(len(sizes), sum(alone), sum(counts), len(packs), max(counts), prefixes, n_optimizer_steps)


def estimate_memory(recipe: Recipe, longest: int, n_patches: int) -> dict[str, float]:
    """Estimate the GPU memory of one process without sharding, in GB by purpose.

    The model is built from its config without weights, so parameter counts are exact; activations are a formula:
    with checkpointing one hidden state a layer and the inside of one layer, without it the inside of every layer.
    `longest` counts the tokens of the longest batch, `n_patches` the patches of its screenshots.
    """
    from sft.model import build_empty_model, find_family_of

    settings = recipe.model
    model = build_empty_model(settings)
    config = model.config
    family = find_family_of(config.model_type)
    memory = _weight_memory(model, settings, family)
    n_trained = _count_trained(model, settings, family)
    n_bytes = BYTES_OF_DTYPE[settings.dtype]
    state = EIGHT_BIT_STATE if "8bit" in str(recipe.training.get("optim", "")) else 2 * n_bytes
    memory["trained parameters"] = n_trained * n_bytes / GB if settings.use_peft else 0.0
    memory["gradients"] = n_trained * n_bytes / GB
    memory["optimiser state"] = n_trained * state / GB
    text, vision = config.get_text_config(), config.vision_config
    checkpointing = recipe.training.get("gradient_checkpointing", True)
    memory["activations"] = n_bytes / GB * _activation_numbers(text, longest, checkpointing)
    inside_vision = n_patches * (8 * vision.hidden_size + 2 * vision.intermediate_size)
    memory["vision activations"] = n_bytes / GB * inside_vision
    memory["attention mask"] = longest**2 / GB if recipe.batch.packing != "none" else 0.0
    memory["CUDA context"] = CONTEXT_GB
    return memory


def format_plan(recipe: Recipe, tokens: TokenPlan, memory: Mapping[str, float], card_gb: float) -> str:
    """Render the plan as lines of text."""
    epochs = recipe.training.get("num_train_epochs", 3)
    total = sum(memory.values())
    lines = [
        f"steps                 {tokens.n_steps:>12,}",
        f"tokens one by one     {tokens.n_tokens_alone:>12,}",
        f"tokens as trained     {tokens.n_tokens_packed:>12,}   ({tokens.packing_factor:.2f} times fewer)",
        f"sequences an epoch    {tokens.n_sequences:>12,}",
        f"optimiser steps       {tokens.n_optimizer_steps:>12,}   an epoch, {epochs:g} epochs",
        f"longest batch         {tokens.longest:>12,}   tokens",
        "",
        "GPU memory, estimated (GB)",
        *(f"  {name:<27} {gb:>8.2f}" for name, gb in memory.items()),
        f"  {'total':<27} {total:>8.2f}   of {card_gb:g}: " + ("fits" if total <= card_gb else "does not fit"),
    ]
    if total > card_gb:
        lines.append("  lower tokens_per_batch or max_pixels, or keep gradient_checkpointing on")
    return "\n".join(lines)


def _weight_memory(model: Any, settings: ModelSettings, family: Any) -> dict[str, float]:
    import torch

    from sft.model import PARTS, part_of

    linears = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and family.quantises(name)
    }
    sizes: dict[str, float] = {}
    for part in PARTS:
        for is_nf4 in (True, False):
            label = f"{part}, {'nf4' if is_nf4 else settings.dtype}"
            per_weight = NF4_BYTES if is_nf4 else BYTES_OF_DTYPE[settings.dtype]
            n = sum(
                p.numel()
                for name, p in model.named_parameters()
                if part_of(name) == part and (settings.load_in_4bit and name in linears) == is_nf4
            )
            if n:
                sizes[label] = n * per_weight / GB
    return sizes


def _count_trained(model: Any, settings: ModelSettings, family: Any) -> int:
    import re

    if not settings.use_peft:
        return sum(p.numel() for p in model.parameters())
    n = 0
    for name, module in model.named_modules():
        if any(re.fullmatch(family.linears[part], name) for part in settings.lora_parts):
            n += settings.lora_r * (module.in_features + module.out_features)
        if name.rpartition(".")[2] in settings.lora_modules_to_save:
            n += sum(p.numel() for p in module.parameters())
    return n


def _activation_numbers(text: Any, n_tokens: int, checkpointing: bool) -> float:
    """Count the numbers kept for the backward pass: inputs of a layer's linears, attention's q, k, v and output."""
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = head_dim * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    # in Llama-4 a token passes the shared expert and one of its own, together as wide as the MLP of a dense layer
    inner = text.intermediate_size_mlp if text.model_type == "llama4_text" else text.intermediate_size
    inside = n_tokens * (6 * text.hidden_size + attention + 4 * inner)
    if checkpointing:
        return text.num_hidden_layers * n_tokens * text.hidden_size + 2 * inside
    return text.num_hidden_layers * inside
