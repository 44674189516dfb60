"""Base model, quantisation and LoRA: what is loaded, what is trained, and whether a saved adapter is whole."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import set_zero3_state

from sft.errors import UserError
from sft.models.dequantised import dequantise_once
from sft.models.experts import (
    MakeLinear,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
    add_empty_experts,
    read_experts,
)
from sft.models.families import FAMILIES, PARTS, Family, find_family_of, part_of
from sft.models.fused_lora import fuse_lora
from sft.models.hub import BESIDE_WEIGHTS, find_base_model, find_folder
from sft.models.kernels import choose_kernels
from sft.models.limits import check_adapter_config
from sft.models.linear_attention import carry_states
from sft.models.llama4 import Llama4ForConditionalGeneration, longest_sequence
from sft.models.model_folder import ADAPTER_FILE, read_header
from sft.recipe.settings import ModelSettings

# Models whose experts are linear layers here; the stock class of any other family, and of these in full fine-tuning.
EXPERT_MODELS: Mapping[str, Any] = {
    "llama4": Llama4ForConditionalGeneration,
    "qwen3_vl_moe": Qwen3VLMoeForConditionalGeneration,
    "qwen3_5_moe": Qwen3_5MoeForConditionalGeneration,
}


def find_family(model_name_or_path: str, revision: str = "main") -> Family:
    """Read the base model's config and return its family, within seconds and without loading weights.

    Raises:
        UserError: no such folder, the hub cannot be reached, or a family that is not supported.
    """
    find_base_model(model_name_or_path, revision)
    return find_family_of(read_config(model_name_or_path, revision).model_type)


def read_config(model_name_or_path: str, revision: str) -> Any:
    """Read a model's config.

    Raises:
        UserError: a family that is not supported, among them those that transformers does not know either.
    """
    fields, _ = PreTrainedConfig.get_config_dict(model_name_or_path, revision=revision)
    find_family_of(str(fields.get("model_type")))
    return AutoConfig.from_pretrained(model_name_or_path, revision=revision, trust_remote_code=False)


def check_sequence_lengths(settings: ModelSettings, lengths: Mapping[str, int]) -> None:
    """Refuse sequences that the model would not treat as it treats the same steps alone (`longest_sequence`).

    `lengths` are tokens by the name of the key that allows them.

    Raises:
        UserError: a key allows more than the model can take.
    """
    longest = longest_sequence(read_config(settings.model_name_or_path, settings.model_revision))
    problems = [
        f"{name}: found {n} tokens; expected at most {longest} with this model: its attention is cut and sharpened by "
        "the place in the sequence, so that a packed or batched step beyond would differ from the same step alone"
        for name, n in lengths.items()
        if longest is not None and n > longest
    ]
    if problems:
        raise UserError("\n".join(problems))


def check_saved_modules(settings: ModelSettings) -> None:
    """Refuse a name in `lora_modules_to_save` that no module of the model has: PEFT would pass over it.

    Raises:
        UserError: the names that were not found.
    """
    if not settings.lora_modules_to_save:
        return
    modules = [name for name, _ in build_empty_model(settings).named_modules()]
    missing = [name for name in settings.lora_modules_to_save if not any(m.endswith(name) for m in modules)]
    if missing:
        raise UserError(
            f"lora_modules_to_save: found {', '.join(missing)}, which no module of the model is called; expected "
            "names such as embed_tokens and lm_head"
        )


def load_model(settings: ModelSettings, family: Family) -> PreTrainedModel:
    """Load the base model, its language linears in nf4 where `load_in_4bit` is set, everything else in `dtype`.

    Weights are read from safetensors only. Vision tower, merger, `lm_head` and a router of experts are not quantised.

    Raises:
        UserError: Llama-4 is to be trained in full.
    """
    dtype = getattr(torch, settings.dtype)
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=_quant_storage(dtype),
        llm_int8_skip_modules=list(family.not_quantised),
    )
    process = PartialState()  # knows `use_cpu`; a rollout makes it here
    on_gpu = process.device.type == "cuda" and not is_deepspeed_zero3_enabled()  # ZeRO-3 places the weights itself
    model_class = choose_model_class(family, settings)
    model = model_class.from_pretrained(
        settings.model_name_or_path,
        revision=settings.model_revision,
        trust_remote_code=False,
        dtype=dtype,
        attn_implementation=settings.attn_implementation,
        quantization_config=quantisation if settings.load_in_4bit else None,
        device_map={"": process.local_process_index} if settings.load_in_4bit and on_gpu else None,
        use_safetensors=True,
    )
    model.config.use_cache = False
    if is_deepspeed_zero3_enabled():
        _forget_unused_renamings(model)
    if model_class is not AutoModelForImageTextToText:
        folder = find_folder(settings.model_name_or_path, settings.model_revision, (*BESIDE_WEIGHTS, "*.safetensors"))
        read_experts(model, folder, build_linear_maker(settings, dtype, model.device))
    carry_states(model)
    _keep_quantised_weights(model)
    if process.device.type == "cpu" and not is_deepspeed_zero3_enabled():
        dequantise_once(model)
    choose_kernels(model)
    if settings.use_peft and "vision" not in settings.lora_parts:
        _keep_gradients_out_of_vision(model)
    return model


def choose_model_class(family: Family, settings: ModelSettings) -> Any:
    """Return the class the model is opened with.

    Raises:
        UserError: Llama-4 is to be trained in full.
    """
    if settings.use_peft:
        return next((c for name, c in EXPERT_MODELS.items() if family is FAMILIES[name]), AutoModelForImageTextToText)
    if family is FAMILIES["llama4"]:
        raise UserError("use_peft: found false with Llama-4; expected true: its experts are trained through LoRA only")
    return AutoModelForImageTextToText


def _forget_unused_renamings(model: Any) -> None:
    """Keep the renamings that met a weight; under ZeRO-3 transformers keeps all, and saves weights by their names."""
    model._weight_conversions = [c for c in getattr(model, "_weight_conversions", None) or [] if c.was_used()]


def build_empty_model(settings: ModelSettings) -> PreTrainedModel:
    """Build the model from its config alone, its layers those that `load_model` gives it, to count parameters.

    No weight takes memory, and under ZeRO-3 no other process is needed: one may build it alone.
    """
    config = read_config(settings.model_name_or_path, settings.model_revision)
    model_class = choose_model_class(find_family_of(config.model_type), settings)
    # the state says that weights are seen to: else transformers has all processes allocate them and share them out
    with set_zero3_state(), torch.device("meta"):
        if model_class is AutoModelForImageTextToText:
            return AutoModelForImageTextToText.from_config(config)
        model = model_class(config)
        add_empty_experts(model)
        return model


def build_linear_maker(settings: ModelSettings, dtype: torch.dtype, device: torch.device) -> MakeLinear:
    """Return what makes a frozen linear layer of weights (out, in): nf4 as `load_model` has it, or plain."""

    def make(weight: torch.Tensor) -> torch.nn.Linear:
        n_out, n_in = weight.shape
        weight = weight.to(dtype)
        if not settings.load_in_4bit:
            linear = torch.nn.Linear(n_in, n_out, bias=False, device="meta")
            linear.weight = torch.nn.Parameter(weight.to(device), requires_grad=False)
            return linear
        quantised: dict[str, Any] = {"quant_type": "nf4", "quant_storage": _quant_storage(dtype)}
        linear = Linear4bit(n_in, n_out, bias=False, compute_dtype=dtype, device="meta", **quantised)
        parameter: Any = Params4bit(weight, requires_grad=False, module=linear, **quantised)
        linear.weight = parameter.to(device)  # quantises
        return linear

    return make


def _quant_storage(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.bfloat16 else torch.uint8  # ZeRO-3 shards bf16 storage only


def _keep_quantised_weights(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference on a CPU with AVX512-BF16.

    Its packed format computes in bf16 whatever the compute dtype is, and the way back rounds the scales again: every
    validation would leave another base model behind, a resumed run would differ from an unbroken one, and the same
    adapter would answer differently on another CPU (bitsandbytes 0.50, `_convert_weight_packed_for_cpu_inverse`).
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _keep_gradients_out_of_vision(model: torch.nn.Module) -> None:
    """Keep checkpointing from asking a frozen vision tower for the gradient of its input.

    With LoRA and checkpointing, transformers (5.23) makes the output of every sub-model's input embedding require a
    gradient. Qwen2.5-VL's and Llama-4's vision towers name theirs, so that the whole tower would be kept, computed
    again and differentiated for a gradient that no one uses.
    """

    def has_none() -> torch.nn.Module:
        raise NotImplementedError("a frozen vision tower")  # which transformers takes for: nothing to mark

    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and part_of(f"{name}.") == "vision":
            cast(Any, module).get_input_embeddings = has_none


def build_lora_config(settings: ModelSettings, family: Family) -> LoraConfig | None:
    """Return the adapter's configuration, or None where every parameter is trained."""
    if not settings.use_peft:
        return None
    if missing := [part for part in settings.lora_parts if part not in family.linears]:
        raise UserError(f"lora_parts: found {', '.join(missing)}; expected some of {', '.join(family.linears)}")
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


def count_parameters(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """Count parameters by part: `{part: {"trainable": n, "total": n}}`. A packed 4-bit byte counts as two."""
    trainable, total = Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        n = shape.numel() if shape is not None else getattr(parameter, "ds_numel", parameter.numel())
        total[part_of(name)] += n
        trainable[part_of(name)] += n if parameter.requires_grad else 0
    return {part: {"trainable": trainable[part], "total": total[part]} for part in PARTS if total[part]}


def count_quantised(model: torch.nn.Module) -> int:
    """Count the parameters held in 4 bits."""
    shapes = [getattr(getattr(parameter, "quant_state", None), "shape", None) for parameter in model.parameters()]
    return sum(shape.numel() for shape in shapes if shape is not None)


def trained_parts(model: torch.nn.Module) -> set[str]:
    """Return the parts that have at least one trainable parameter."""
    return {part_of(name) for name, p in model.named_parameters() if p.requires_grad}


def load_for_inference(settings: ModelSettings, adapter: Path | None) -> torch.nn.Module:
    """Load a model to answer with: the one that `settings` name, and the adapter of a folder on it, if one is given.

    Raises:
        UserError: an adapter that is not whole, or of another base (peft only warns of tensors it does not find).
    """
    model: torch.nn.Module = load_model(settings, find_family(settings.model_name_or_path, settings.model_revision))
    if adapter is not None:
        from peft import PeftModel

        with open_adapter(adapter):
            pass
        check_adapter_config(adapter, [name for name, _ in model.named_modules()])
        try:
            model = PeftModel.from_pretrained(cast(PreTrainedModel, model), str(adapter))
        except (
            RuntimeError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ) as error:  # of a config of any content
            raise UserError(f"{adapter}: found an adapter that does not fit its base model: {error}") from error
        fuse_lora(model)  # as in training, whose validation chose the checkpoint
        check_adapter(adapter, model, needs_update=False)  # training has seen to that; a run of one step has none
    model.eval()
    if torch.cuda.is_available() and not settings.load_in_4bit:
        model.to("cuda")
    return model


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
    read_header(path)
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path}: found a damaged file ({error}); expected safetensors: copy it again") from error
