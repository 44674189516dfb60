"""What ZeRO-3 leaves on each card of a group. Arithmetic on the plan of one card; nothing here was measured."""

from collections.abc import Mapping
from typing import Any

from sft.plan import BYTES_OF_DTYPE, GB, NF4_BYTES
from sft.recipe.settings import ModelSettings

RANKS = (8, 16, 32)
CARDS_GB = (40, 80)
CODE_BYTES = 0.5  # of NF4_BYTES: the 4-bit codes. The scales are no parameters, so each rank keeps all of them
MAX_LIVE_ELEMENTS = 1e9  # DeepSpeed's stage3_max_live_parameters; an element of 4-bit storage is one of bfloat16
SHARDED = ("trained parameters", "gradients", "optimiser state")


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


def measure_largest_layer(model: Any, settings: ModelSettings, family: Any) -> float:
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
