"""What a run will take: steps, tokens, sequences and an estimate of GPU memory. Reads configs and data, no weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sft.batches.examples import build_step_rows, read_step_sizes
from sft.batches.sampler import PackSampler, StepSize
from sft.data.train_val import TaskSplit
from sft.models.activations import count_kept
from sft.models.families import PARTS, Family, find_family_of, part_of
from sft.models.shapes import count_output_numbers, read_text_shape, read_vision_shape
from sft.recipe.launch import Launch
from sft.recipe.recipe import Recipe, resolves_to_bf16
from sft.recipe.settings import ModelSettings
from sft.recipe.training_keys import find_value

# Bytes a weight takes in nf4 with double quantisation: 4 bits, 8 bits every 64 weights, 32 bits every 256 of those.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
BYTES_OF_DTYPE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
TRAINED_BYTES = 4.0  # what is trained is held in fp32, as are its gradients, whatever the rest is held in
EIGHT_BIT_STATE = 2.0  # bytes of a trained parameter's two moments in an 8-bit optimiser
FP32_STATE = 8.0  # the same in any other
DEEPSPEED_COPY = 4.0  # DeepSpeed trains a copy in fp32 and keeps parameters and gradients in the model's format
CONTEXT_GB = 0.7  # CUDA context and library workspaces
GB = 1e9
# ZeRO-3
RANKS = (8, 16, 32)
CARDS_GB = (40, 80)
CODE_BYTES = 0.5  # of NF4_BYTES: the 4-bit codes. The scales are no parameters, so each rank keeps all of them
MAX_LIVE_ELEMENTS = 1e9  # DeepSpeed's stage3_max_live_parameters; an element of 4-bit storage is one of bfloat16
# The values of gradient_checkpointing that `auto` chooses from, the fastest first.
FORMS: tuple[bool | str, ...] = (False, "selective", True)
# Share of a card that the chosen form may fill by estimate: allocators lose some memory, and formulas miss some.
FILLED = 0.85
SHARDED = ("trained parameters", "gradients", "optimiser state")


@dataclass(frozen=True)
class TokenPlan:
    """Token counts of one epoch.

    `longest` is its longest batch, `longest_step` the longest of all steps, `most_image_tokens` the most tokens
    that screenshots have in one batch.
    """

    n_steps: int
    n_tokens_alone: int
    n_tokens_packed: int
    n_sequences: int
    longest: int
    longest_step: int
    most_image_tokens: int
    n_optimizer_steps: int

    @property
    def packing_factor(self) -> float:
        return self.n_tokens_alone / self.n_tokens_packed


def build_plan(recipe: Recipe, split: TaskSplit, card_gb: float) -> str:
    """Render the plan of a run: on one card, and where that is more than one card holds, under ZeRO-3 as well."""
    from sft.batches.encoder import StepEncoder
    from sft.models.model import build_empty_model
    from sft.models.processors import load_processor

    agent, settings = recipe.agent, recipe.model
    budget = (agent.min_pixels, agent.max_pixels)
    encoder = StepEncoder(load_processor(settings.model_name_or_path, *budget, settings.model_revision), agent)
    rows = build_step_rows(split.train, recipe.data.train_csv, encoder).dataset
    tokens = plan_tokens(recipe, read_step_sizes(rows), n_ranks=1)
    model, patches_a_token = build_empty_model(settings), encoder.layout.patches_a_token
    forms = estimate_forms(recipe, model, tokens, patches_a_token)
    recipe = set_form(recipe, choose_form(recipe, forms, card_gb))
    memory = estimate_memory(recipe, model, tokens, patches_a_token)
    plan = format_plan(recipe, tokens, memory, card_gb)
    if not find_value(recipe.training, "use_cpu"):
        plan += f"\n  {describe_forms(forms, card_gb)}"
    if recipe.data.vision_cache_gb:
        plan += f"\n{format_vision_cache(recipe, split, encoder, model.config)}"
    if sum(memory.values()) <= min(CARDS_GB):
        return plan
    largest_gb = measure_largest_layer(model, settings, find_family_of(model.config.model_type))
    memory = estimate_memory(recipe, model, tokens, patches_a_token, has_deepspeed=True)
    return f"{plan}\n{format_zero3(memory, largest_gb)}"


def plan_tokens(recipe: Recipe, sizes: list[StepSize], n_ranks: int) -> TokenPlan:
    """Count what one epoch holds under the recipe's packing."""
    alone = [size.n_tokens for size in sizes]
    accumulation = find_value(recipe.training, "gradient_accumulation_steps")
    if recipe.batch.packing == "none":
        batch = find_value(recipe.training, "per_device_train_batch_size")
        n_batches = -(-len(sizes) // (batch * n_ranks))
        longest = max(alone) * batch
        return TokenPlan(
            n_steps=len(sizes),
            n_tokens_alone=sum(alone),
            n_tokens_packed=sum(alone),
            n_sequences=len(sizes),
            longest=longest,
            longest_step=max(alone),
            most_image_tokens=max(size.n_image for size in sizes) * batch,
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
        longest_step=max(alone),
        most_image_tokens=max(sum({sizes[i].image: sizes[i].n_image for i in pack}.values()) for pack in packs),
        n_optimizer_steps=-(-len(packs) // (n_ranks * accumulation)),
    )


def estimate_memory(
    recipe: Recipe, model: Any, tokens: TokenPlan, patches_a_token: int, has_deepspeed: bool = False
) -> dict[str, float]:
    """Estimate the GPU memory of one process without sharding, in GB by purpose.

    `model` is `sft.models.model.build_empty_model`'s, so parameter counts are exact; activations are a formula: what
    the form of checkpointing keeps of every layer (`sft.models.activations`), and the inside of one that it computes
    again.
    """
    settings, training, config = recipe.model, recipe.training, model.config
    family = find_family_of(config.model_type)
    n_bytes = BYTES_OF_DTYPE[settings.dtype]
    is_full = not settings.use_peft
    memory = _weight_memory(model, settings, family, settings.dtype if has_deepspeed or not is_full else "float32")
    n_trained, n_cast = _count_trained(model, settings, family)
    trained_bytes = n_bytes if has_deepspeed else TRAINED_BYTES
    state = EIGHT_BIT_STATE if "8bit" in find_value(training, "optim") else FP32_STATE
    memory["trained parameters"] = 0.0 if is_full else n_trained * trained_bytes / GB
    memory["gradients"] = n_trained * trained_bytes / GB
    memory["optimiser state"] = n_trained * (state + DEEPSPEED_COPY * has_deepspeed) / GB
    has_autocast = not has_deepspeed and (resolves_to_bf16(training) or find_value(training, "fp16"))
    memory["16-bit copies by autocast"] = n_cast * 2 * has_autocast / GB
    n_patches = tokens.most_image_tokens * patches_a_token
    activations = _estimate_activations(recipe, model, tokens, n_patches)
    # the input in fp32, as the norm computes, and what it makes of it
    activations["final norm"] = 2 * tokens.longest * config.get_text_config().hidden_size * 4 / GB
    rollout_gb = _count_cache(recipe, config.get_text_config(), tokens) * n_bytes / GB
    memory |= activations
    memory["validation rollout, beyond"] = max(0.0, rollout_gb - sum(activations.values()))
    n_fetched = find_value(training, "gradient_accumulation_steps") + 1  # an optimiser step's batches and the next one
    pixel_bytes = 2 if recipe.computes_in_bf16 else 4
    n_numbers: float = _count_pixels(config.vision_config)
    if recipe.data.vision_cache_gb:  # kept outputs are in the place of pixels
        n_numbers = max(n_numbers, count_output_numbers(config) / patches_a_token)
    memory["pixels of fetched batches"] = n_fetched * n_patches * n_numbers * pixel_bytes / GB
    memory["CUDA context"] = CONTEXT_GB
    return memory


def estimate_forms(
    recipe: Recipe, model: Any, tokens: TokenPlan, patches_a_token: int, launch: Launch | None = None
) -> dict[bool | str, float]:
    """Estimate the memory of one process, in GB, by the value of `gradient_checkpointing`."""
    estimates: dict[bool | str, float] = {}
    launch = launch or Launch("single", 1)
    for form in FORMS:
        if form == "selective" and launch.engine == "zero3":
            continue  # refused there: see `check_support`
        has_deepspeed = launch.engine.startswith("zero")
        memory = estimate_memory(set_form(recipe, form), model, tokens, patches_a_token, has_deepspeed)
        if launch.engine == "zero3":
            family = find_family_of(model.config.model_type)
            memory = estimate_rank(memory, measure_largest_layer(model, recipe.model, family), launch.n_processes)
        estimates[form] = sum(memory.values())
    return estimates


def choose_form(recipe: Recipe, forms: Mapping[bool | str, float], card_gb: float | None) -> bool | str:
    """Return the recipe's `gradient_checkpointing`; for `auto` the fastest form that a card of `card_gb` holds.

    Without a card (None) that is no checkpointing: a CPU's memory is seldom short.
    """
    wanted: bool | str = find_value(recipe.training, "gradient_checkpointing")
    if wanted != "auto":
        return wanted
    if card_gb is None or find_value(recipe.training, "use_cpu"):
        return False
    return next((form for form, gb in forms.items() if gb <= FILLED * card_gb), True)


def set_form(recipe: Recipe, form: bool | str) -> Recipe:
    """Return the recipe with another `gradient_checkpointing`."""
    return replace(recipe, training={**recipe.training, "gradient_checkpointing": form})


def describe_forms(forms: Mapping[bool | str, float], card_gb: float) -> str:
    """Say what each form takes, and which is the fastest to fit."""
    sizes = ", ".join(f"{_name(form)} {gb:.1f}" for form, gb in forms.items())
    fastest = next((form for form, gb in forms.items() if gb <= FILLED * card_gb), None)
    chosen = "none fits, auto takes true" if fastest is None else f"auto takes {_name(fastest)}"
    limit = f"{FILLED:.0%} of {card_gb:g}".replace("%", " %")
    return f"gradient_checkpointing (GB): {sizes}; with at most {limit} {chosen}"


def _name(form: bool | str) -> str:
    return str(form).lower()


def format_plan(recipe: Recipe, tokens: TokenPlan, memory: Mapping[str, float], card_gb: float) -> str:
    """Render the plan as lines of text."""
    epochs = find_value(recipe.training, "num_train_epochs")
    total = sum(memory.values())
    lines = [
        f"steps                 {tokens.n_steps:>12,}",
        f"tokens one by one     {tokens.n_tokens_alone:>12,}",
        f"tokens as trained     {tokens.n_tokens_packed:>12,}   ({tokens.packing_factor:.2f} times fewer)",
        f"sequences per epoch   {tokens.n_sequences:>12,}",
        f"optimiser steps       {tokens.n_optimizer_steps:>12,}   per epoch, {epochs:g} epochs",
        f"longest batch         {tokens.longest:>12,}   tokens",
    ]
    if find_value(recipe.training, "use_cpu"):
        return "\n".join(lines)
    lines += [
        "",
        "GPU memory, estimated (GB)",
        *(f"  {name:<27} {gb:>8.2f}" for name, gb in memory.items()),
        f"  {'total':<27} {total:>8.2f}   of {card_gb:g}: " + ("fits" if total <= card_gb else "does not fit"),
    ]
    if total > card_gb:
        lines.append("  lower tokens_per_batch or max_pixels, or set gradient_checkpointing: true")
        if not recipe.model.use_peft:
            lines.append("  train an adapter (use_peft: true), or share the model out with ZeRO-3")
    return "\n".join(lines)


def format_vision_cache(recipe: Recipe, split: TaskSplit, encoder: Any, config: Any) -> str:
    """Render what the vision tower's outputs for all screenshots take on disk, and the share that is kept."""
    screenshots = {step.image_sha256: step.image_path for task in (*split.train, *split.val) for step in task.steps}
    n_tokens = sum(encoder.count_image_tokens(path) for path in screenshots.values())
    is_short = recipe.model.dtype != "float32" or resolves_to_bf16(recipe.training) or recipe.training.get("fp16")
    gb, allowed = n_tokens * count_output_numbers(config) * (2 if is_short else 4) / GB, recipe.data.vision_cache_gb
    kept = "all are kept" if gb <= allowed else f"{allowed / gb:.0%} are kept"
    on_disk = f"GB on disk for {len(screenshots):,} screenshots"
    return f"vision outputs        {gb:>12,.2f}   {on_disk}; of {allowed:g}: {kept}"


def estimate_rank(memory: Mapping[str, float], largest_gb: float, n_ranks: int) -> dict[str, float]:
    """Estimate the memory of one rank of `n_ranks`, in GB by purpose.

    `memory` is `estimate_memory`'s with DeepSpeed; `largest_gb` the layer that is gathered whole.
    """
    shards = scales = own = 0.0
    for name, gb in memory.items():
        if name.endswith("nf4"):
            shards += gb * CODE_BYTES / NF4_BYTES / n_ranks
            scales += gb * (1 - CODE_BYTES / NF4_BYTES)
        elif name in SHARDED or name.endswith(tuple(BYTES_OF_DTYPE)):
            shards += gb / n_ranks
        else:
            own += gb
    gathered = largest_gb + MAX_LIVE_ELEMENTS * BYTES_OF_DTYPE["bfloat16"] / GB
    return {"shards": shards, "4-bit scales": scales, "gathered": gathered, "activations": own}


def measure_largest_layer(model: Any, settings: ModelSettings, family: Family) -> float:
    """Return the GB of the largest module that ZeRO-3 gathers at once: all experts of a layer, or one matrix."""
    import torch

    from sft.models.experts import list_experts

    def measure(name: str, module: Any) -> float:
        is_nf4 = settings.load_in_4bit and isinstance(module, torch.nn.Linear) and family.quantises(name)
        weight = CODE_BYTES if is_nf4 else BYTES_OF_DTYPE[settings.dtype]
        return weight * sum(p.numel() for p in module.parameters(recurse=False)) / GB

    sizes = {name: measure(name, module) for name, module in model.named_modules()}
    layers = [name for name, _ in list_experts(model)]
    whole = [sum(gb for name, gb in sizes.items() if name.startswith(f"{layer}.")) for layer in layers[:1]]
    return max([*sizes.values(), *whole])


def format_zero3(memory: Mapping[str, float], largest_gb: float) -> str:
    """Render what each rank of 8, 16 and 32 holds, and which cards hold it."""
    plans = {n: estimate_rank(memory, largest_gb, n) for n in RANKS}
    lines = ["", "GPU memory per rank under ZeRO-3, estimated (GB)"]
    lines.append("  cards " + "".join(f"{name:>14}" for name in (*plans[RANKS[0]], "total")))
    for n, plan in plans.items():
        total = sum(plan.values())
        fits = ", ".join(f"{card} GB: {'fits' if total <= card else 'does not fit'}" for card in CARDS_GB)
        lines.append(f"  {n:>5} " + "".join(f"{gb:>14.2f}" for gb in (*plan.values(), total)) + f"   {fits}")
    return "\n".join(lines)


def _weight_memory(model: Any, settings: ModelSettings, family: Family, dtype: str) -> dict[str, float]:
    import torch

    linears = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and family.quantises(name)
    }
    sizes: dict[str, float] = {}
    for part in PARTS:
        for is_nf4 in (True, False):
            label = f"{part}, {'nf4' if is_nf4 else dtype}"
            per_weight = NF4_BYTES if is_nf4 else BYTES_OF_DTYPE[dtype]
            n = sum(
                p.numel()
                for name, p in model.named_parameters()
                if part_of(name) == part and (settings.load_in_4bit and name in linears) == is_nf4
            )
            if n:
                sizes[label] = n * per_weight / GB
    return sizes


def _count_trained(model: Any, settings: ModelSettings, family: Family) -> tuple[int, int]:
    """Count the parameters that are trained, and those of them that autocast keeps a 16-bit copy of.

    These are the weights of linear layers, but for `lm_head`: TRL's fused head casts it piece by piece.
    """
    import torch

    n_trained = n_cast = 0
    for name, module in model.named_modules():
        is_linear = isinstance(module, torch.nn.Linear)
        if not settings.use_peft:
            n_trained += sum(p.numel() for p in module.parameters(recurse=False))
            n_cast += module.weight.numel() if is_linear and "lm_head" not in name else 0
            continue
        if any(re.fullmatch(family.linears[part], name) for part in settings.lora_parts):
            n_lora = settings.lora_r * (module.in_features + module.out_features)
            n_trained, n_cast = n_trained + n_lora, n_cast + n_lora
        if name.rpartition(".")[2] in settings.lora_modules_to_save:
            n_trained += sum(p.numel() for p in module.parameters())
            n_cast += module.weight.numel() if is_linear and "lm_head" not in name else 0
    return n_trained, n_cast


def _estimate_activations(recipe: Recipe, model: Any, tokens: TokenPlan, n_patches: int) -> dict[str, float]:
    """Estimate what a training step keeps for its backward pass, in GB by part.

    Of a vision layer: the inputs of its linears, attention's q, k, v and output.
    """
    settings, n_bytes = recipe.model, BYTES_OF_DTYPE[recipe.model.dtype]
    vision = read_vision_shape(model.config.vision_config)
    form = find_value(recipe.training, "gradient_checkpointing")
    kept = count_kept(model, settings, find_family_of(model.config.model_type), n_bytes)
    language = {False: kept.none, "selective": kept.selective + kept.inside, True: kept.full + kept.inside}[form]
    layer = n_patches * (8 * vision.width + 2 * vision.mlp_width)
    trains_vision = not settings.use_peft or "vision" in settings.lora_parts
    layers = float(layer)
    if trains_vision and form:
        kept_of_layer = 7 * vision.width + vision.mlp_width if form == "selective" else vision.width
        layers += vision.depth * n_patches * kept_of_layer + layer
    elif trains_vision:
        layers *= vision.depth
    sizes = {"activations": tokens.longest * language / GB, "vision activations": layers * n_bytes / GB}
    if settings.attn_implementation == "eager":
        sizes["attention mask"] = tokens.longest**2 * n_bytes / GB
    return sizes


def _count_cache(recipe: Recipe, text: Any, tokens: TokenPlan) -> int:
    """Count the numbers of keys, values and states that the validation rollout's largest batch may need."""
    has_tasks = recipe.data.val_csv or recipe.data.val_split
    is_validated = has_tasks and find_value(recipe.training, "eval_strategy") != "no"
    n_tasks = min(recipe.validation.val_rollout_tasks, recipe.validation.val_rollout_batch_size) if is_validated else 0
    n_tokens = n_tasks * (tokens.longest_step + recipe.agent.max_answer_tokens)
    shape = read_text_shape(text)
    keys_and_values = n_tokens * 2 * shape.n_attention * text.num_key_value_heads * shape.head_dim
    return keys_and_values + n_tasks * 2 * shape.n_linear * shape.state  # states are in fp32: two numbers each


def _count_pixels(vision: Any) -> int:
    """Count the numbers of a patch in `pixel_values`."""
    return 3 * vision.patch_size**2 * getattr(vision, "temporal_patch_size", 1)
