"""Base model, quantisation and LoRA: what is loaded, what is trained, and whether a saved adapter is whole."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from sft.errors import UserError
from sft.hub import find_base_model
from sft.settings import ModelSettings

ADAPTER_FILE = "adapter_model.safetensors"
PARTS = ("language", "merger", "vision")


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its parts. Each value is a regex that matches whole module names of linear layers."""

    linears: Mapping[str, str]
    not_quantised: tuple[str, ...] = ("model.visual", "lm_head")


_LANGUAGE_LINEARS = r"model\.language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"

# Suffix lists such as "q_proj, up_proj" hit different parts in different families (Qwen2.5-VL's vision MLP, for one):
# one anchored regex a part instead. Names are those of transformers 5.
FAMILIES: Mapping[str, Family] = {
    "qwen3_vl": Family(
        {
            "language": _LANGUAGE_LINEARS,
            "merger": r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]",
            "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
        }
    ),
    "qwen2_5_vl": Family(
        {
            "language": _LANGUAGE_LINEARS,
            "merger": r"model\.visual\.merger\.mlp\.[02]",
            "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)",
        }
    ),
}


def find_family(model_name_or_path: str, revision: str = "main") -> Family:
    """Read the base model's config and return its family, within seconds and without loading weights.

    Raises:
        UserError: no such folder, the hub cannot be reached, or a family that is not supported.
    """
    find_base_model(model_name_or_path, revision)
    return find_family_of(AutoConfig.from_pretrained(model_name_or_path, revision=revision).model_type)


def find_family_of(model_type: str) -> Family:
    """Return the family of a config's `model_type`.

    Raises:
        UserError: a family that is not supported.
    """
    if model_type not in FAMILIES:
        raise UserError(f"model_name_or_path: found model type {model_type!r}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def load_model(settings: ModelSettings, family: Family) -> PreTrainedModel:
    """Load the base model, its language linears in nf4 where `load_in_4bit` is set, everything else in `dtype`.

    Weights are read from safetensors only. Vision tower, merger and `lm_head` are not quantised.
    """
    dtype = getattr(torch, settings.dtype)
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype if dtype == torch.bfloat16 else torch.uint8,  # ZeRO-3 shards bf16 storage only
        llm_int8_skip_modules=list(family.not_quantised),
    )
    on_gpu = torch.cuda.is_available() and not is_deepspeed_zero3_enabled()  # ZeRO-3 places the weights itself
    model = AutoModelForImageTextToText.from_pretrained(
        settings.model_name_or_path,
        revision=settings.model_revision,
        dtype=dtype,
        attn_implementation=settings.attn_implementation,
        quantization_config=quantisation if settings.load_in_4bit else None,
        device_map={"": PartialState().local_process_index} if settings.load_in_4bit and on_gpu else None,
        use_safetensors=True,
    )
    model.config.use_cache = False
    _keep_quantised_weights(model)
    return model


def _keep_quantised_weights(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference on a CPU with AVX512-BF16.

    Its packed format computes in bf16 whatever the compute dtype is, and the way back rounds the scales again: every
    validation would leave another base model behind, a resumed run would differ from one that went on, and the same
    adapter would answer differently on another CPU (bitsandbytes 0.50, `_convert_weight_packed_for_cpu_inverse`).
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def build_lora_config(settings: ModelSettings, family: Family) -> LoraConfig | None:
    """Return the adapter's configuration, or None where every parameter is trained."""
    if not settings.use_peft:
        return None
    pattern = "|".join(f"(?:{family.linears[part]})" for part in settings.lora_parts)
    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        bias="none",
        target_modules=rf"^(?:{pattern})$",
        modules_to_save=list(settings.lora_modules_to_save) or None,
        task_type="CAUSAL_LM",
    )


def part_of(parameter_name: str) -> str:
    """Return the part of the model a parameter belongs to: language, merger or vision."""
    if "visual." not in parameter_name:
        return "language"
    return "merger" if "merger" in parameter_name else "vision"


def count_parameters(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """Count parameters by part: `{part: {"trainable": n, "total": n}}`. A packed 4-bit byte counts as two."""
    trainable, total = Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        n = shape.numel() if shape is not None else getattr(parameter, "ds_numel", parameter.numel())
        total[part_of(name)] += n
        trainable[part_of(name)] += n if parameter.requires_grad else 0
    return {part: {"trainable": trainable[part], "total": total[part]} for part in PARTS}


def count_quantised(model: torch.nn.Module) -> int:
    """Count the parameters held in 4 bits."""
    shapes = [getattr(getattr(parameter, "quant_state", None), "shape", None) for parameter in model.parameters()]
    return sum(shape.numel() for shape in shapes if shape is not None)


def trained_parts(model: torch.nn.Module) -> set[str]:
    """Return the parts that have at least one trainable parameter."""
    return {part_of(name) for name, p in model.named_parameters() if p.requires_grad}


def check_adapter(folder: Path, model: torch.nn.Module, needs_update: bool = True) -> int:
    """Reopen a saved adapter and compare it with the one in memory: keys, shapes, finite numbers, some `lora_B` set.

    Under ZeRO-3 a process holds a part of each tensor only: shapes are those of the whole. Without `needs_update` an
    adapter that has learned nothing yet passes.

    Returns:
        The number of tensors in the file.

    Raises:
        UserError: the file on disk is not the adapter that was trained.
    """
    from peft import get_peft_model_state_dict

    path = folder / ADAPTER_FILE
    whole = {n: torch.empty(getattr(p, "ds_shape", p.shape), device="meta") for n, p in model.named_parameters()}
    expected = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(model, whole).items()}
    has_update = False
    with open_adapter(folder) as file:
        names = set(file.keys())
        if names != set(expected):
            difference = sorted(names ^ set(expected))[:3]
            raise UserError(
                f"{path}: found {len(names)} tensors; expected {len(expected)}; they differ in {difference}"
            )
        for name in sorted(names):
            tensor = file.get_tensor(name)
            if tuple(tensor.shape) != expected[name]:
                raise UserError(f"{path}: {name}: found shape {tuple(tensor.shape)}; expected {expected[name]}")
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(f"{path}: {name}: found numbers that are not finite; training has diverged")
            has_update = has_update or ("lora_B" in name and bool(tensor.any()))
    if needs_update and not has_update and any("lora_B" in name for name in names):
        raise UserError(f"{path}: found every lora_B zero; expected a trained adapter: nothing was learned")
    return len(names)


def open_adapter(folder: Path) -> Any:
    """Open an adapter's weights as safetensors does.

    Raises:
        UserError: the file is missing or cut off.
    """
    path = folder / ADAPTER_FILE
    if not path.is_file():
        raise UserError(
            f"{path}: found no such file; expected the adapter's weights (after saving: is the disk full?)"
        )
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path}: found a damaged file ({error}); expected safetensors: copy it again") from error


def read_base_model_name(adapter_folder: Path) -> str:
    """Return the base model an adapter was trained on, as its `adapter_config.json` names it."""
    fields: dict[str, Any] = json.loads((adapter_folder / "adapter_config.json").read_text(encoding="utf-8"))
    return fields["base_model_name_or_path"]
