"""What a run will take: steps, tokens, sequences and an estimate of GPU memory. Reads configs and data, no weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft.batches.sampler import PackSampler, StepSize
from sft.models.families import find_family_of
from sft.recipe.config import Recipe
from sft.recipe.settings import ModelSettings

# Bytes a weight takes in nf4 with double quantisation: 4 bits, 8 bits every 64 weights, 32 bits every 256 of those.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
BYTES_OF_DTYPE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
ADAPTER_BYTES = 4.0  # an adapter is trained in fp32 whatever the base is held in
EIGHT_BIT_STATE = 2.0  # bytes of a trained parameter's two moments in an 8-bit optimiser; else its own format's
DEEPSPEED_STATE = 12.0  # two moments and a copy of the parameter, all in fp32
CONTEXT_GB = 0.7  # CUDA context and library workspaces
GB = 1e9


@dataclass(frozen=True)
class TokenPlan:
    """Token counts of one epoch.

    `longest` is its longest batch, `longest_alone` what that batch's steps have one by one, `longest_step` the longest
    of all steps, `most_prefixes` the most tokens that screenshots (with what precedes them) have in one batch.
    """

    n_steps: int
    n_tokens_alone: int
    n_tokens_packed: int
    n_sequences: int
    longest: int
    longest_alone: int
    longest_step: int
    most_prefixes: int
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
        longest = max(alone) * batch
        return TokenPlan(
            n_steps=len(sizes),
            n_tokens_alone=sum(alone),
            n_tokens_packed=sum(alone),
            n_sequences=len(sizes),
            longest=longest,
            longest_alone=longest,
            longest_step=max(alone),
            most_prefixes=max(s.n_prefix for s in sizes) * batch,
            n_optimizer_steps=-(-n_batches // accumulation),
        )
    sampler = PackSampler(sizes, recipe.batch.tokens_per_batch, recipe.data_seed, n_ranks, accumulation)
    packs = sampler.plan(0)
    counts = [sampler.count_tokens(pack) for pack in packs]
    return TokenPlan(
        n_steps=len(sizes),
        n_tokens_alone=sum(alone),
        n_tokens_packed=sum(counts),
        n_sequences=len(packs),
        longest=max(counts),
        longest_alone=max(sum(alone[i] for i in pack) for pack in packs),
        longest_step=max(alone),
        most_prefixes=max(sum({sizes[i].image: sizes[i].n_prefix for i in pack}.values()) for pack in packs),
        n_optimizer_steps=-(-len(packs) // (n_ranks * accumulation)),
    )


def estimate_memory(
    recipe: Recipe, model: Any, tokens: TokenPlan, patches_a_token: int, has_deepspeed: bool = False
) -> dict[str, float]:
    """Estimate the GPU memory of one process without sharding, in GB by purpose.

    `model` is `sft.models.model.build_empty_model`'s, so parameter counts are exact; activations are a formula: with
    checkpointing one hidden state a layer and the inside of one layer, without it the inside of every layer.
    """
    settings = recipe.model
    config = model.config
    family = find_family_of(config.model_type)
    memory = _weight_memory(model, settings, family)
    n_trained = _count_trained(model, settings, family)
    n_bytes = BYTES_OF_DTYPE[settings.dtype]
    trained_bytes = ADAPTER_BYTES if settings.use_peft and not has_deepspeed else n_bytes
    state = EIGHT_BIT_STATE if "8bit" in str(recipe.training.get("optim", "")) else 2 * trained_bytes
    memory["trained parameters"] = n_trained * trained_bytes / GB if settings.use_peft else 0.0
    memory["gradients"] = n_trained * trained_bytes / GB
    memory["optimiser state"] = n_trained * (DEEPSPEED_STATE if has_deepspeed else state) / GB
    activations = {
        name: n * n_bytes / GB
        for name, n in _count_activations(recipe, config, tokens, tokens.most_prefixes * patches_a_token).items()
    }
    rollout_gb = _count_cache(recipe, config.get_text_config(), tokens) * n_bytes / GB
    memory |= activations
    memory["validation rollout, beyond"] = max(0.0, rollout_gb - sum(activations.values()))
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
    ]
    if recipe.training.get("use_cpu"):
        return "\n".join(lines)
    lines += [
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

    from sft.models.model import PARTS, part_of

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


def _count_activations(recipe: Recipe, config: Any, tokens: TokenPlan, n_patches: int) -> dict[str, float]:
    """Count the numbers that a training step keeps for its backward pass, by part.

    Of a layer: the inputs of its linears, attention's q, k, v and output. A packed sequence's branches have the keys
    and values of their whole path each, repeated for every head that shares them.
    """
    settings, text, vision = recipe.model, config.get_text_config(), config.vision_config
    is_checkpointed = recipe.training.get("gradient_checkpointing", True)
    n_layers = text.num_hidden_layers
    q, kv = text.num_attention_heads * _head_dim(text), text.num_key_value_heads * _head_dim(text)
    # in Llama-4 a token passes the shared expert and one of its own, together as wide as the MLP of a dense layer
    inner = text.intermediate_size_mlp if text.model_type == "llama4_text" else text.intermediate_size
    layer = tokens.longest * (6 * text.hidden_size + 2 * q + 2 * kv + 4 * inner)
    is_packed = recipe.batch.packing != "none"
    paths = tokens.longest_alone * 2 * (q + kv) if is_packed and settings.attn_implementation == "sdpa" else 0
    hidden = n_layers * tokens.longest * text.hidden_size
    vision_layer = n_patches * (8 * vision.hidden_size + 2 * vision.intermediate_size)
    n_vision_layers = getattr(vision, "depth", None) or vision.num_hidden_layers
    trains_vision = not settings.use_peft or "vision" in settings.lora_parts
    counts = {
        "activations": hidden + 2 * layer if is_checkpointed else n_layers * layer,
        "keys and values by branch": float(paths if is_checkpointed else n_layers * paths),
        "vision activations": float(vision_layer),
    }
    if trains_vision and is_checkpointed:
        counts["vision activations"] += n_vision_layers * n_patches * vision.hidden_size + vision_layer
    elif trains_vision:
        counts["vision activations"] *= n_vision_layers
    if settings.attn_implementation == "eager":
        counts["attention mask"] = float(tokens.longest**2)
    return counts


def _count_cache(recipe: Recipe, text: Any, tokens: TokenPlan) -> int:
    """Count the numbers of the keys and values that the validation rollout's largest batch may need."""
    is_validated = (recipe.data.val_csv or recipe.data.val_split) and recipe.training.get(
        "eval_strategy", "no"
    ) != "no"
    n_tasks = min(recipe.validation.val_rollout_tasks, recipe.validation.val_rollout_batch_size) if is_validated else 0
    n_tokens = n_tasks * (tokens.longest_step + recipe.agent.max_answer_tokens)
    return n_tokens * 2 * text.num_hidden_layers * text.num_key_value_heads * _head_dim(text)


def _head_dim(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
