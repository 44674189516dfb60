"""Floating-point operations of a training step or an answer: counted by torch, and by a closed formula to compare."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import bitsandbytes  # noqa: F401  registers its operations
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from sft.models.experts import STOCK_EXPERTS
from sft.models.families import PARTS, part_of
from sft.models.scored_tokens import find_text_model
from sft.models.shapes import CHUNK, TextShape, read_text_shape, read_vision_shape
from sft.models.tree_attention import count_pairs

LANGUAGE = ("language", "experts")
LAST = ("last", "last_experts")  # of the last layer, where it computes supervised tokens alone

log = logging.getLogger("sft")


def _count_product(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """Count (..., M, K) by (..., K, N)."""
    return 2 * prod(a) * b[-1]


def _count_added_product(added: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return _count_product(a, b)


def _count_attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Count scores and their sum over values; key heads may be fewer than query heads (B, heads, T, D)."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _count_attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Count the scores computed anew, their gradient, and those of query, key and value."""
    return 2 * prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


def _count_tree(query: Any, key: Any, value: Any, subtree_end: Any, places: Any, *args: Any, **kwargs: Any) -> int:
    """Count attention over a packed sequence, given as tensors: (n, heads, D)."""
    return 2 * count_pairs(subtree_end, places) * query.shape[1] * (query.shape[2] + value.shape[2])


def _count_blocks_backward(
    grad: Any,
    query: Any,
    key: Any,
    value: Any,
    output: Any,
    log_sum: Any,
    query_borders: Any,
    key_borders: Any,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Count its backward pass on CUDA: attention within blocks that lie side by side."""
    pairs = int((query_borders.diff().long() * key_borders.diff().long()).sum())
    return 2 * pairs * query.shape[1] * (3 * query.shape[2] + 2 * value.shape[2])


def _count_linear(inputs: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(inputs) * weight[0]


def _count_matmul(a: Any, b: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return 2 * prod(out_shape) * a[-1]


def _count_convolution(inputs: Any, weight: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


def _count_gemm_4bit(a: Any, b: Any, shape: Any, *args: Any, **kwargs: Any) -> int:
    """Count bitsandbytes' product: (..., K) by a packed (N, K)."""
    return 2 * prod(a) * shape[0]


def _build_counts() -> Mapping[Any, Any]:
    """Return torch's table with what it lacks or counts only in some of the versions that are supported.

    Products have entries of their own because some callers give `out_dtype` by position, as TRL's fused head does on
    CUDA, which torch 2.13's formulas take for `out_shape` (pytorch#164713); attention, in blocks too, because that of
    torch 2.11 and 2.12 refuses fewer key heads than query heads. In-place products, composed operations outside
    autograd, attention on a CPU and bitsandbytes' product are in no version's table.
    """
    aten, four_bits = torch.ops.aten, torch.ops.bitsandbytes
    names = {
        _count_product: "mm bmm _grouped_mm",
        _count_added_product: "addmm addmm_ baddbmm baddbmm_",
        _count_linear: "linear",
        _count_matmul: "matmul",
        _count_convolution: "conv3d",
        _count_attention: "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_cudnn_attention",
        _count_attention_backward: "_scaled_dot_product_flash_attention_for_cpu_backward "
        "_scaled_dot_product_flash_attention_backward _scaled_dot_product_efficient_attention_backward "
        "_scaled_dot_product_cudnn_attention_backward",
    }
    own = {getattr(aten, name): count for count, listed in names.items() for name in listed.split()}
    # bitsandbytes before 0.50 has a kernel for one token alone, (1, K) by the packed (N, K)
    own |= {four_bits.gemm_4bit: _count_gemm_4bit, four_bits.gemv_4bit: _count_gemm_4bit}
    blocks = {
        torch.ops.sft.attend_tree: _count_tree,
        aten._flash_attention_backward: _count_blocks_backward,
    }
    return {**flop_registry, **{operation: shape_wrapper(count) for operation, count in own.items()}, **blocks}


_COUNTS = _build_counts()


class FlopCounter(TorchDispatchMode):
    """Counts what runs inside with torch's own table (`torch.utils.flop_counter`), a multiply and an add as two.

    torch's `FlopCounterMode` takes composed operations apart, which rounds otherwise: a step measured with it would
    train another model. This one leaves every operation as it is, and runs it whether it can be counted or not:
    `total` is None once one could not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total: int | None = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.total is not None and (count := _COUNTS.get(func._overloadpacket)) is not None:
            try:
                self.total += count(*args, **(kwargs or {}), out_val=out)
            except Exception as error:  # whatever a table of torch's says of it: a figure is missing, not a run
                log.warning("operations are not counted: %s: %s: %s", func, type(error).__name__, error)
                self.total = None
        return out


@dataclass(frozen=True)
class BatchSize:
    """What the formula needs of a batch: padded tokens, pairs of tokens, patches and their pairs, supervised tokens.

    `attended` sums the squared lengths of the sequences, or is what `sft.models.tree_attention.count_pairs` says of a
    packed one; `attended_by_trained` is the part of it whose queries are scored; `patches_attended` sums the squared
    lengths of the screenshots.
    """

    tokens: float = 0
    attended: float = 0
    patches: float = 0
    patches_attended: float = 0
    trained: float = 0
    attended_by_trained: float = 0

    def __add__(self, other: "BatchSize") -> "BatchSize":
        return BatchSize(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))


@dataclass(frozen=True)
class FlopFormula:
    """The closed formula of one model: `step` in operations for a `BatchSize`.

    2 operations a weight and a token in the forward pass; as many again for the gradient of the input where the
    gradient goes through a part, and for that of the weights where they are trained; once more where gradient
    checkpointing computes a part anew, and for `lm_head`, whose logits TRL's fused head never keeps. It scores the
    supervised tokens alone, or every one with `scores_all_tokens`. Of the last layer all but keys and values may be
    computed for the supervised tokens alone: "last" and "last_experts" are those weights, 0 where it is not so; tokens
    that fill up a padded batch are left out. Attention adds 4 a pair of tokens, head and head dimension, and 2.5 times
    that backwards (flash attention computes the scores again); windows of a vision tower add 4 times `window` a patch
    likewise. A layer with a state adds 2 times `scan` a token, and twice that backwards. Of its layer's experts a
    token passes `expert_share`.
    """

    frozen: Mapping[str, int]
    trained: Mapping[str, int]
    attention: Mapping[str, int]
    merge: int
    is_checkpointed: bool
    scores_all_tokens: bool = False
    window: int = 0
    expert_share: float = 0.0
    scan: int = 0

    def step(self, batch: BatchSize) -> float:
        """Count forward and backward pass."""
        total, is_reached = 0.0, False
        for group in (("vision",), ("merger",), (*LANGUAGE, *LAST), ("lm_head",)):
            is_reached = is_reached or any(self.trained[part] for part in group)
            for part in group:
                forward, attention = self._linears(part, batch), self._attention(part, batch)
                scan = 2 * self.scan * batch.tokens if part == "language" else 0.0
                total += forward + attention + scan
                if is_reached:
                    total += forward + 2.5 * attention + 2 * scan
                    total += 2 * self.trained[part] * self._tokens(part, batch)
                    if part == "lm_head" or (self.is_checkpointed and part in ("vision", *LANGUAGE, *LAST)):
                        total += forward + attention + scan
        return total

    def _linears(self, part: str, batch: BatchSize) -> float:
        return 2 * (self.frozen[part] + self.trained[part]) * self._tokens(part, batch)

    def _tokens(self, part: str, batch: BatchSize) -> float:
        patches = batch.patches
        return {
            "vision": patches,
            "merger": patches / self.merge**2,
            "language": batch.tokens,
            "experts": batch.tokens * self.expert_share,
            "last": batch.trained,
            "last_experts": batch.trained * self.expert_share,
            "lm_head": batch.tokens if self.scores_all_tokens else batch.trained,
        }[part]

    def _attention(self, part: str, batch: BatchSize) -> float:
        counts = {
            "vision": batch.patches_attended,
            "language": batch.attended,
            "last": batch.attended_by_trained,
        }
        pairs = counts.get(part, 0)
        windows = self.window * batch.patches if part == "vision" else 0
        return 4 * (self.attention.get(part, 0) * pairs + windows)


def build_formula(
    model: torch.nn.Module, is_checkpointed: bool, scores_alone: bool = False, cuts_last_layer: bool = False
) -> FlopFormula:
    """Read the formula's coefficients off a model: weights of its linear layers, experts and convolutions by part.

    `scores_alone`, `cuts_last_layer`: what `sft.models.scored_tokens` leaves out in this training.
    """
    parts = (*PARTS, *LAST, "lm_head")
    frozen, trained = dict.fromkeys(parts, 0), dict.fromkeys(parts, 0)
    cut = _list_cut_modules(model) if cuts_last_layer else set()
    for name, module in model.named_modules():
        if ".original_module" in name:  # replaced by its trained copy
            continue
        for parameter, n in _list_weights(module):
            part = "lm_head" if "lm_head" in name else part_of(f"{name}.")
            part = dict(zip(LANGUAGE, LAST))[part] if module in cut else part
            (trained if parameter.requires_grad else frozen)[part] += n
    config: Any = model.config
    text, vision = read_text_shape(config.get_text_config()), read_vision_shape(config.vision_config)
    width = config.get_text_config().num_attention_heads * text.head_dim
    attention = {
        "language": (text.n_attention - cuts_last_layer) * width,
        "last": cuts_last_layer * width,
        "vision": (vision.depth - vision.n_windowed) * vision.width,
    }
    return FlopFormula(
        frozen,
        trained,
        attention,
        vision.merge,
        is_checkpointed,
        scores_all_tokens=not scores_alone,
        window=vision.n_windowed * vision.width * vision.window,
        expert_share=text.n_chosen / text.n_experts if text.n_experts else 0.0,
        scan=_count_scan(config.get_text_config(), text),
    )


def _list_cut_modules(model: torch.nn.Module) -> set[torch.nn.Module]:
    """Return the modules of the last layer that compute supervised tokens alone: all but keys and values."""
    layer = find_text_model(model).layers[-1]
    kept = {module for of in (layer.self_attn.k_proj, layer.self_attn.v_proj) for module in of.modules()}
    return set(layer.modules()) - kept


def _count_scan(config: Any, text: TextShape) -> int:
    """Count the multiplications a token takes in the layers with a state, beside their projections.

    Within a chunk every token meets every other (keys with keys and with queries, then values); thrice the state is
    read or written.
    """
    if not text.n_linear:
        return 0
    keys, values, heads = config.linear_key_head_dim, config.linear_value_head_dim, config.linear_num_value_heads
    return text.n_linear * heads * (CHUNK * (2 * keys + values) + 3 * keys * values)


def _list_weights(module: Any) -> list[tuple[Any, int]]:
    """Return the matrices a module multiplies by and how many numbers each has."""
    if isinstance(module, torch.nn.Linear):  # 4-bit layers and LoRA matrices among them
        return [(module.weight, module.in_features * module.out_features)]
    if isinstance(module, torch.nn.Conv3d):
        return [(module.weight, getattr(module.weight, "ds_numel", module.weight.numel()))]  # empty under ZeRO-3
    if isinstance(module, STOCK_EXPERTS):
        return [(p, getattr(p, "ds_numel", p.numel())) for p in module.parameters(recurse=False)]
    return []
