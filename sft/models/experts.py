"""Experts of a mixture as linear layers, which bitsandbytes quantises and peft adapts; Qwen's models with such.

The stock models hold all experts of a layer in one parameter of three axes, which neither does. Llama-4, whose whole
layer is another, is in `llama4.py`.
"""

import json
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import Qwen3_5MoeConfig, Qwen3VLMoeConfig
from transformers.activations import ACT2FN
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as qwen3_5_moe
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as qwen3_vl_moe

from sft.errors import UserError
from sft.models.families import find_family_of, list_file_names
from sft.models.shapes import read_text_shape

MakeLinear = Callable[[torch.Tensor], nn.Linear]  # (out, in) weights to a layer that holds them

STOCK_EXPERTS = (qwen3_vl_moe.Qwen3VLMoeTextExperts, qwen3_5_moe.Qwen3_5MoeExperts)  # as full fine-tuning has them
_EXPERTS = r"\.mlp\.experts\."  # `read_experts` reads them


class Expert(nn.Module):
    """One expert, made of linear layers."""

    def __init__(self, gate_up_proj: nn.Linear, down_proj: nn.Linear, activation: str):
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj
        self.act_fn = ACT2FN[activation]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        return self.down_proj(up * self.act_fn(gate))


class LinearExperts(nn.ModuleList):
    """All experts of a layer, each computed for the tokens that chose it; empty until the weights are read.

    `weighs_inputs`: the router's weight multiplies what goes into an expert (Llama-4), not what comes out of it.
    """

    def __init__(self, config: Any, weighs_inputs: bool = False):
        super().__init__()
        shape = read_text_shape(config)
        self.n_experts, self.activation, self.weighs_inputs = shape.n_experts, config.hidden_act, weighs_inputs
        # (out, in) of an expert's two layers
        self.sizes = {
            "gate_up_proj": (2 * shape.expert_width, config.hidden_size),
            "down_proj": (config.hidden_size, shape.expert_width),
        }

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of each token's experts: `hidden` (N, hidden), `chosen` and `weights` (N, k)."""
        flat = chosen.flatten()
        by_expert = torch.argsort(flat, stable=True)
        n_tokens = torch.bincount(flat, minlength=len(self)).tolist()
        out = torch.zeros_like(hidden)
        for expert, slots in zip(self, by_expert.split(n_tokens)):
            if not len(slots) and not any(p.requires_grad for p in expert.parameters()):
                continue  # one that is trained runs on nothing instead: every rank then has its (zero) gradient
            rows, weight = slots // chosen.shape[1], weights.flatten()[slots, None]
            inputs = hidden[rows] * weight if self.weighs_inputs else hidden[rows]
            computed = expert(inputs) if self.weighs_inputs else expert(inputs) * weight
            out = out.index_add(0, rows, computed.to(out.dtype))
        return out

    def add(self, gate_up_proj: nn.Linear, down_proj: nn.Linear) -> None:
        self.append(Expert(gate_up_proj, down_proj, self.activation))


@dataclass(frozen=True)
class Piece:
    """Where a checkpoint holds one expert's linear layer, or a part of its rows, the parts in order.

    `name` is the tensor; `index` the expert's place in it, None where the tensor is this expert's alone.
    """

    name: str
    index: int | None = None


def find_pieces(layer: str, names: Container[str]) -> list[Piece]:
    """Find `...experts.3.gate_up_proj` among a checkpoint's tensors: none where it is not there.

    One tensor holds a layer's experts in the published files and in memory; transformers 5 may save each expert's
    gate and up projection as tensors of their own, as older mixtures were published.
    """
    container, index, which = layer.rsplit(".", 2)
    parts = ("gate_proj", "up_proj") if which == "gate_up_proj" else (which,)
    for experts in list_file_names(container):
        if f"{experts}.{which}" in names:
            return [Piece(f"{experts}.{which}", int(index))]
        alone = [f"{experts}.{index}.{part}.weight" for part in parts]
        if all(name in names for name in alone):
            return [Piece(name) for name in alone]
    return []


def is_transposed(found: Sequence[int], expected: Sequence[int], model_type: str) -> bool:
    """Say whether a file's matrix is (in, out) where (out, in) is `expected`; squares are as the family has them."""
    if expected[0] == expected[1]:
        return find_family_of(model_type).stores_experts_transposed
    return tuple(found) != tuple(expected)


def read_experts(model: Any, folder: Path, make_linear: MakeLinear) -> None:
    """Fill the empty `LinearExperts` of a model from a checkpoint's safetensors, expert by expert.

    At no time is more than one expert in memory as it stands in the file. Under ZeRO-3 each layer's experts are
    sharded over the ranks before the next layer is read, and a layer is gathered as one (ranks choose different
    experts; gathered one by one they would wait for each other).

    Raises:
        UserError: the checkpoint lacks an expert, or has one of another shape.
    """
    with ExitStack() as files:
        tensors = _open_tensors(folder, files)
        for name, experts in list_experts(model):
            for i in range(experts.n_experts):
                linears = {
                    which: make_linear(_read(f"{name}.{i}.{which}", size, tensors, folder, model.config.model_type))
                    for which, size in experts.sizes.items()
                }
                experts.add(**linears)
            if is_deepspeed_zero3_enabled():
                _shard(experts)
    if is_deepspeed_zero3_enabled() and list_experts(model):
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(model, [LinearExperts])


def list_experts(model: nn.Module) -> list[tuple[str, LinearExperts]]:
    """Return the experts of each layer that has any, and their names."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LinearExperts)]


def add_empty_experts(model: nn.Module) -> None:
    """Give a model experts without weights (on the meta device), to count parameters."""
    for _, experts in list_experts(model):
        for _ in range(experts.n_experts):
            linears = {
                which: nn.Linear(n_in, n_out, bias=False, device="meta")
                for which, (n_out, n_in) in experts.sizes.items()
            }
            experts.add(**linears)


@contextmanager
def in_place_of(module: Any, name: str, replacement: type) -> Iterator[None]:
    """Let what is built meanwhile take `replacement` for the class of this name in a modelling module."""
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)


class Qwen3VLMoeForConditionalGeneration(qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL-MoE with `LinearExperts`, under the family's own class name, which is saved with it."""

    _keys_to_ignore_on_load_unexpected = [_EXPERTS]

    def __init__(self, config: Qwen3VLMoeConfig):
        with in_place_of(qwen3_vl_moe, "Qwen3VLMoeTextExperts", LinearExperts):
            super().__init__(config)


class Qwen3_5MoeForConditionalGeneration(qwen3_5_moe.Qwen3_5MoeForConditionalGeneration):
    """Qwen3.5-MoE likewise."""

    _keys_to_ignore_on_load_unexpected = [_EXPERTS, r"^mtp\."]

    def __init__(self, config: Qwen3_5MoeConfig):
        with in_place_of(qwen3_5_moe, "Qwen3_5MoeExperts", LinearExperts):
            super().__init__(config)


class _Tensors:
    """The tensors of a checkpoint by name, unread: an index into one reads that part."""

    def __init__(self, file_of: dict[str, str], folder: Path, files: ExitStack):
        self._file_of, self._folder, self._files = file_of, folder, files
        self._opened: dict[str, Any] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __getitem__(self, name: str) -> Any:
        file = self._file_of[name]
        if file not in self._opened:
            self._opened[file] = self._files.enter_context(safe_open(self._folder / file, framework="pt"))
        return self._opened[file].get_slice(name)


def _open_tensors(folder: Path, files: ExitStack) -> _Tensors:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _Tensors(json.loads(index.read_text(encoding="utf-8"))["weight_map"], folder, files)
    with safe_open(folder / "model.safetensors", framework="pt") as only:
        return _Tensors(dict.fromkeys(only.keys(), "model.safetensors"), folder, files)


def _read(layer: str, size: tuple[int, int], tensors: _Tensors, folder: Path, model_type: str) -> torch.Tensor:
    """Return the (out, in) weight of one expert's layer."""
    pieces = find_pieces(layer, tensors)
    if not pieces:
        container, _, which = layer.rsplit(".", 2)
        raise UserError(
            f"{folder}: found no tensor {container}.{which}; expected the family's weights in bf16 as published"
        )
    found = [tensors[piece.name][piece.index if piece.index is not None else slice(None)] for piece in pieces]
    weight = torch.cat(found) if len(found) > 1 else found[0]
    if is_transposed(weight.shape, size, model_type):
        weight = weight.T.contiguous()
    if tuple(weight.shape) != size:
        raise UserError(f"{folder}: {pieces[0].name}: found an expert of shape {tuple(weight.shape)}; expected {size}")
    return weight


def _shard(experts: nn.ModuleList) -> None:
    import deepspeed
    from transformers.integrations.deepspeed import deepspeed_config

    deepspeed.zero.Init(module=experts, config_dict_or_path=deepspeed_config())
