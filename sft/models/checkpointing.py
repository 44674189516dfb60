"""Which results of a layer's forward pass does checkpointing keep? Used where a recipe checkpoints selectively.

Full checkpointing keeps a layer's input and computes all of its inside again in the backward pass. The selective form
also keeps what is dear to compute and small: products by the model's own matrices, and attention. What is left to
compute again are norms, rotary embeddings, activation functions, dropout and LoRA's second product.
"""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

# bitsandbytes is imported with the model; before, its operations are not there.
_PRODUCTS_4BIT = ("bitsandbytes::gemm_4bit", "bitsandbytes::gemv_4bit")
_PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::_grouped_mm": 0}  # by the place of the left factor
_ATTENTION = (
    "sft::attend_tree",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
)


def keep_products(model: torch.nn.Module, rank: int) -> None:
    """Have a model whose checkpointing is enabled keep its layers' products and attention outputs too.

    `rank` is LoRA's (0: no LoRA). A product over so few numbers takes less time than its result takes memory: LoRA's
    second one, as large as the layer's own output. Its first, of `rank` numbers a token, is kept.
    """
    contexts = partial(create_selective_checkpoint_contexts, partial(_choose, rank))
    modules: Any = model.modules()
    for module in modules:
        if hasattr(module, "_gradient_checkpointing_func"):
            checkpoint = module._gradient_checkpointing_func
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=contexts)


def _choose(rank: int, context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operation.name().partition(".")[0]
    place = _PRODUCTS.get(name)
    is_kept = name in _ATTENTION or name in _PRODUCTS_4BIT or (place is not None and args[place].shape[-1] > rank)
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
