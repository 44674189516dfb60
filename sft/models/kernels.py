"""Which kernels compute a model: attention without cuDNN's, a vision tower in few large operations, compiled norms.

None of it changes a result beyond rounding, a name of a weight, or what is saved.
"""

import inspect
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sft.models.compiled import compile_functions
from sft.models.families import part_of

# transformers hands a vision tower's sequences over all at once, with their borders, where the name says "flash"; else
# one by one.
NAME = "sdpa_for_flash_borders"
SHARED_KEYS = "TRANSFORMERS_SDPA_FORCE_GQA"  # transformers' variable: attention takes keys and values unrepeated


def choose_kernels(model: torch.nn.Module) -> None:
    """Choose the kernels of a model that was just loaded; every path to training and rollout passes here.

    cuDNN's attention is switched off for the whole process. torch 2.11 and later try it first on H100-class cards
    (with cuDNN above 9.15, which torch 2.13 brings). There it was reported to give NaN gradients under masks where the
    number of keys is 64 more than a multiple of 128 (pytorch#196678, trl#7181), and it builds a plan for every new
    shape, 23 to 550 ms each (FunASR#3704): packed training has new shapes in every batch, a rollout at every token.

    Without a GPU, attention under a mask takes keys and values as they are. transformers repeats them for the query
    heads that share them, since CUDA's fast kernels want that; a CPU's gives the same bits without. For 10 answers of
    6 tokens behind 350, with 6 heads of 32 on 2, one CPU core took 3.5 ms, now 0.5.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if not torch.cuda.is_available():
        os.environ[SHARED_KEYS] = "1"
    if torch.cuda.is_available() and not is_deepspeed_zero3_enabled():  # which gathers weights by hooks of modules
        compile_functions(model)
    AttentionInterface.register(NAME, attend_by_length)
    for name, module in model.named_modules():
        if part_of(f"{name}.") != "vision":
            continue
        if type(module) is torch.nn.Conv3d and module.kernel_size == module.stride and module.groups == 1:
            module.__class__ = PatchEmbedding
        if isinstance(module, PreTrainedModel) and any(map(_takes_borders, module.modules())):
            config: Any = module.config
            if config._attn_implementation == "sdpa":
                config._attn_implementation = NAME


class PatchEmbedding(torch.nn.Conv3d):
    """A convolution whose input is one patch a row, computed as the matrix product it is.

    Its bf16 kernels were reported to take 3.7 s a call on an H100, 10 to 18 times a product's time on an H20
    (sglang-omni#539, #132; transformers#45750). On one CPU core the 4,888 patches of a 1920x1080 screenshot took
    0.58 s, now 0.15.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Turn (N, channels, *kernel size) into (N, width, 1, 1, 1)."""
        if input.shape[2:] != self.kernel_size:
            return super().forward(input)
        return linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def attend_by_length(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each of the sequences that lie side by side, those of one length as one batch.

    Qwen2.5-VL's tower attends within windows of at most four lengths, 84 of a 1920x1080 screenshot: 2,356 calls in
    its 32 layers, one by one. `query`, `key`, `value`: (1, heads, T, D); `cu_seq_lens_q`: (n sequences + 1,), their
    borders. Returns (1, T, heads, D).
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    order = _order_by_length(cu_seq_lens_q)
    rows = [tensor if order.tokens is None else tensor.index_select(2, order.tokens) for tensor in (query, key, value)]
    sizes = [n * length for n, length in order.batches]
    outputs = []
    for (n, length), *parts in zip(order.batches, *(tensor.split(sizes, dim=2) for tensor in rows)):
        q, k, v = (part[0].unflatten(1, (n, length)).transpose(0, 1) for part in parts)
        outputs.append(sdpa_attention_forward(module, q, k, v, None, **kwargs)[0].flatten(0, 1))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (output if order.back is None else output.index_select(0, order.back))[None], None


@dataclass(frozen=True)
class _Order:
    """Sequences by length: `batches` are (how many, how long); `tokens` sorts their tokens so and `back` undoes it.

    Both are None where the sequences lie in that order already.
    """

    batches: tuple[tuple[int, int], ...]
    tokens: torch.Tensor | None = None
    back: torch.Tensor | None = None


@lru_cache(maxsize=2)  # every layer asks with one of two tensors: borders of windows, and of whole screenshots
def _order_by_length(borders: torch.Tensor) -> _Order:
    lengths = borders.diff().tolist()
    sequences: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        sequences.setdefault(length, []).append(i)
    batches = tuple((len(group), length) for length, group in sequences.items())
    order = [i for group in sequences.values() for i in group]
    if order == sorted(order):
        return _Order(batches)
    starts = torch.arange(sum(lengths)).split(lengths)
    tokens = torch.cat([starts[i] for i in order])
    return _Order(batches, tokens.to(borders.device), tokens.argsort().to(borders.device))


def _takes_borders(module: torch.nn.Module) -> bool:
    return "cu_seqlens" in inspect.signature(module.forward).parameters
