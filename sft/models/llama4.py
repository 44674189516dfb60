"""Llama-4 for LoRA: its experts as linear layers, read and quantised one at a time. Knows no recipes and no data."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import Llama4Config
from transformers.activations import ACT2FN
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.llama4 import modeling_llama4 as stock

from sft.errors import UserError

MakeLinear = Callable[[torch.Tensor], nn.Linear]  # (out, in) weights to a layer that holds them


class Llama4Expert(nn.Module):
    """One expert, made of linear layers, which bitsandbytes quantises and peft adapts; the stock model has none."""

    def __init__(self, gate_up_proj: nn.Linear, down_proj: nn.Linear, activation: str):
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj
        self.act_fn = ACT2FN[activation]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        return self.down_proj(up * self.act_fn(gate))


class Llama4SparseMoe(nn.Module):
    """The stock MoE layer, computed for the chosen experts only; same router, same result.

    The stock layer gives every token to every expert, all but the chosen ones multiplied by zero: with 128 experts
    that is 128 times the arithmetic, and a copy of the hidden states for each expert. `experts` is empty until the
    weights are read.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.top_k, self.hidden_dim = config.num_experts_per_tok, config.hidden_size
        self.router = stock.Llama4Router(config)
        self.shared_expert = stock.Llama4TextMLP(config)
        self.experts = nn.ModuleList()

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B * T, hidden) and the router's logits (B * T, experts)."""
        hidden = hidden_states.reshape(-1, self.hidden_dim)
        scores, logits = self.router(hidden)
        chosen = torch.topk(logits, self.top_k, dim=1).indices.flatten()
        by_expert = torch.argsort(chosen, stable=True)
        n_tokens = torch.bincount(chosen, minlength=len(self.experts)).tolist()
        out = self.shared_expert(hidden)
        for i, slots in enumerate(by_expert.split(n_tokens)):
            expert = self.experts[i]
            if not len(slots) and not any(p.requires_grad for p in expert.parameters()):
                continue  # one that is trained runs on nothing instead: every rank then has its (zero) gradient
            rows = slots // self.top_k
            routed = expert(hidden[rows] * scores[rows, i, None])
            out = out.index_add(0, rows, routed.to(out.dtype))
        return out, logits


class Llama4ForConditionalGeneration(stock.Llama4ForConditionalGeneration):
    """Llama-4 with `Llama4SparseMoe` layers, under the family's own class name."""

    _keys_to_ignore_on_load_unexpected = [r"\.feed_forward\.experts\."]  # `read_experts` reads them

    def __init__(self, config: Llama4Config):
        with _in_place_of_stock_moe():
            super().__init__(config)

    @property
    def base_model(self) -> "_Backbone":  # type: ignore[override]
        """The model up to its head, which TRL's fused head calls; the stock class has no such part."""
        return _Backbone(self)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Run the vision tower in its own number format; the stock class takes pixels in no other."""
        return super().get_image_features(pixel_values=pixel_values.to(self.vision_model.dtype), **kwargs)


class _Backbone:
    _tp_plan = _pp_plan = None

    def __init__(self, owner: Llama4ForConditionalGeneration):
        self._owner = owner

    def __call__(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        inputs_embeds: None = None,  # peft passes it on, unset
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        owner = self._owner
        embedded = owner.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = owner.get_image_features(pixel_values, return_dict=True).last_hidden_state
            pictures = owner.multi_modal_projector(features.flatten(0, -2)).to(embedded.dtype)
            mask = owner.get_placeholder_mask(cast(Any, input_ids), inputs_embeds=embedded, image_features=pictures)
            embedded = embedded.masked_scatter(mask, pictures)
        return owner.language_model.model(inputs_embeds=embedded, **kwargs)


def read_experts(model: Llama4ForConditionalGeneration, folder: Path, make_linear: MakeLinear) -> None:
    """Fill the MoE layers from a checkpoint's safetensors, expert by expert.

    At no time is more than one expert in memory as it stands in the file. Under ZeRO-3 each layer's experts are
    sharded over the ranks before the next layer is read, and a layer is gathered as one (ranks choose different
    experts; gathered one by one they would wait for each other).
    """
    config: Any = model.config.text_config
    with ExitStack() as files:
        read = _open_tensors(folder, files)
        for name, layer in model.named_modules():
            if not isinstance(layer, Llama4SparseMoe):
                continue
            gate_up, down = (read(f"{name}.experts.{part}_proj") for part in ("gate_up", "down"))
            for i in range(config.num_local_experts):
                first, second = (make_linear(whole[i].T.contiguous()) for whole in (gate_up, down))
                layer.experts.append(Llama4Expert(first, second, config.hidden_act))
            if is_deepspeed_zero3_enabled():
                _shard(layer.experts)
    if is_deepspeed_zero3_enabled():
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(model, [Llama4SparseMoe])


def add_empty_experts(model: Llama4ForConditionalGeneration) -> None:
    """Give the MoE layers experts without weights (on the meta device), to count parameters."""
    config: Any = model.config.text_config
    hidden, inner = config.hidden_size, config.intermediate_size
    for layer in model.modules():
        if isinstance(layer, Llama4SparseMoe):
            for _ in range(config.num_local_experts):
                gate_up = nn.Linear(hidden, 2 * inner, bias=False, device="meta")
                down = nn.Linear(inner, hidden, bias=False, device="meta")
                layer.experts.append(Llama4Expert(gate_up, down, config.hidden_act))


def longest_sequence(config: Any) -> int | None:
    """Return how many tokens a sequence may have to be packed, or decoded beside others, exactly; None: any number.

    Llama-4's chunked layers cut the sequence every `attention_chunk_size` tokens, and its layers without rotary
    positions sharpen attention every `floor_scale` tokens, both counted from the sequence's first token, whatever
    positions are given. Below the first border neither does anything; beyond it a packed step would be cut elsewhere
    than alone.
    """
    if config.model_type != "llama4":
        return None
    text = config.text_config
    borders = [text.attention_chunk_size] + ([text.floor_scale] if text.attn_temperature_tuning else [])
    return min(border for border in borders if border) - 1


def _open_tensors(folder: Path, files: ExitStack) -> Callable[[str], Any]:
    """Return what finds a tensor of a checkpoint by name, unread: an index into it reads that part."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        file_of: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    else:
        with safe_open(folder / "model.safetensors", framework="pt") as only:
            file_of = dict.fromkeys(only.keys(), "model.safetensors")
    opened: dict[str, Any] = {}

    def read(name: str) -> Any:
        if name not in file_of:
            raise UserError(f"{folder}: found no tensor {name}; expected Llama-4's weights in bf16 as published")
        if (file := file_of[name]) not in opened:
            opened[file] = files.enter_context(safe_open(folder / file, framework="pt"))
        return opened[file].get_slice(name)

    return read


def _shard(experts: nn.ModuleList) -> None:
    import deepspeed
    from transformers.integrations.deepspeed import deepspeed_config

    deepspeed.zero.Init(module=experts, config_dict_or_path=deepspeed_config())


@contextmanager
def _in_place_of_stock_moe() -> Iterator[None]:
    module: Any = stock
    original = module.Llama4TextMoe
    module.Llama4TextMoe = Llama4SparseMoe
    try:
        yield
    finally:
        module.Llama4TextMoe = original
