"""Model: what is quantised, what gets LoRA matrices, which folders are refused, and parts without a gradient."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import get_peft_model
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from sft.errors import UserError
from sft.models.families import FAMILIES, part_of
from sft.models.model import (
    build_empty_model,
    build_lora_config,
    check_saved_modules,
    count_parameters,
    find_family,
    load_model,
    trained_parts,
)
from sft.recipe.settings import ModelSettings
from sft.training.watch import GradientCheck

ATTENTION = tuple(f"self_attn.{x}_proj" for x in "qkvo")
DELTA_NET = ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
SHARED_EXPERT = tuple(name.replace("mlp", "mlp.shared_expert") for name in MLP)
VISION_ATTENTION = ("attn.qkv", "attn.proj")
VISION_MLP = ("mlp.linear_fc1", "mlp.linear_fc2")


def _layers(*names, of="model.language_model.layers", indices=(0, 1)):
    return {f"{of}.{i}.{name}" for i in indices for name in names}


def _blocks(*names):
    return _layers(*names, of="model.visual.blocks")


EXPERTS = _layers(*(f"mlp.experts.{i}.{name}_proj" for i in range(4) for name in ("gate_up", "down")))
QWEN2_MERGER = {"model.visual.merger.mlp.0", "model.visual.merger.mlp.2"}
QWEN3_5_MERGER = {"model.visual.merger.linear_fc1", "model.visual.merger.linear_fc2"}
QWEN3_MERGER = QWEN3_5_MERGER | {name.replace("merger", "deepstack_merger_list.0") for name in QWEN3_5_MERGER}
# Qwen3.5: the first layer carries a state, the second attends.
MIXERS = _layers(*DELTA_NET, indices=[0]) | _layers(*ATTENTION, indices=[1])
# Every linear layer of the tiny models (2 language layers, 2 vision blocks), by the part it belongs to.
LINEARS = {
    "qwen2_vl": {
        "language": _layers(*ATTENTION, *MLP),
        "vision": _blocks(*VISION_ATTENTION, "mlp.fc1", "mlp.fc2"),
        "merger": QWEN2_MERGER,
    },
    "qwen2_5_vl": {
        "language": _layers(*ATTENTION, *MLP),
        "vision": _blocks(*VISION_ATTENTION, *MLP),
        "merger": QWEN2_MERGER,
    },
    "qwen3_vl": {
        "language": _layers(*ATTENTION, *MLP),
        "vision": _blocks(*VISION_ATTENTION, *VISION_MLP),
        "merger": QWEN3_MERGER,
    },
    "qwen3_vl_moe": {
        "language": _layers(*ATTENTION),
        "experts": EXPERTS,
        "vision": _blocks(*VISION_ATTENTION, *VISION_MLP),
        "merger": QWEN3_MERGER,
    },
    "qwen3_5": {
        "language": MIXERS | _layers(*MLP),
        "vision": _blocks(*VISION_ATTENTION, *VISION_MLP),
        "merger": QWEN3_5_MERGER,
    },
    "qwen3_5_moe": {
        "language": MIXERS | _layers(*SHARED_EXPERT),
        "experts": EXPERTS,
        "vision": _blocks(*VISION_ATTENTION, *VISION_MLP),
        "merger": QWEN3_5_MERGER,
    },
}
# Of a few numbers a token, kept as they are: what decays a state and sizes its steps, what weighs the shared expert.
GATES = {
    "qwen3_5": _layers("linear_attn.in_proj_a", "linear_attn.in_proj_b", indices=[0]),
    "qwen3_5_moe": _layers("linear_attn.in_proj_a", "linear_attn.in_proj_b", indices=[0])
    | _layers("mlp.shared_expert_gate"),
}


def _settings(folder, **changes):
    return replace(ModelSettings(str(folder), dtype="float32", lora_r=4, lora_dropout=0.0), **changes)


def _load(folder, **changes):
    settings = _settings(folder, **changes)
    family = find_family(str(folder))
    model = load_model(settings, family)
    config = build_lora_config(settings, family)
    return model if config is None else get_peft_model(model, config)


def _linear_names(model):
    return {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize("family", LINEARS)
def test_patterns_of_the_parts_cover_every_linear_layer_but_head_and_gates_once(tiny_checkpoints, family):
    names = _linear_names(load_model(_settings(tiny_checkpoints[family], load_in_4bit=False), FAMILIES[family]))
    assert names - {"lm_head"} - GATES.get(family, set()) == set().union(*LINEARS[family].values())
    for part in LINEARS[family]:
        matched = {name for name in names if re.fullmatch(FAMILIES[family].linears[part], name)}
        assert matched == LINEARS[family][part]


@pytest.mark.parametrize(
    ("family", "parts"),
    [(family, (part,)) for family in LINEARS for part in LINEARS[family]]
    + [(family, tuple(LINEARS[family])) for family in LINEARS],
    ids=str,
)
def test_lora_matrices_sit_on_exactly_the_layers_of_the_chosen_parts(tiny_checkpoints, family, parts):
    model = _load(tiny_checkpoints[family], lora_parts=parts, load_in_4bit=False)
    adapted = {name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")}
    assert adapted == set().union(*(LINEARS[family][part] for part in parts))
    assert trained_parts(model) == set(parts)
    counts = count_parameters(model)
    assert {part for part, count in counts.items() if count["trainable"]} == set(parts)


@pytest.mark.parametrize("family", LINEARS)
def test_language_layers_and_experts_alone_are_quantised_to_nf4(tiny_checkpoints, family):
    model = load_model(_settings(tiny_checkpoints[family]), FAMILIES[family])
    quantised = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    expected = LINEARS[family]["language"] | LINEARS[family].get("experts", set())
    assert quantised == expected == {n for n in _linear_names(model) if FAMILIES[family].quantises(n)}
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if n.rpartition(".")[0] not in expected)
    layer = model.get_submodule("model.language_model.layers.1.self_attn.q_proj")
    assert layer.weight.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert layer.compute_dtype == torch.float32


def test_inference_leaves_the_quantised_weights_as_they_are_and_computes_as_training_does(checkpoint):
    """On a CPU with AVX512-BF16 bitsandbytes would repack them in bf16, and not the way back exactly."""
    model = load_model(_settings(checkpoint), find_family(str(checkpoint)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        answered = model.eval()(input_ids=ids).logits
    with torch.no_grad():
        trained = model.train()(input_ids=ids).logits
    assert torch.equal(answered, trained)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("family", LINEARS)
def test_quantisation_does_not_change_the_count_of_parameters(tiny_checkpoints, family):
    quantised, plain = (count_parameters(_load(tiny_checkpoints[family], load_in_4bit=on)) for on in (True, False))
    assert quantised == plain
    # rank * (inputs + outputs) of each layer of the part
    model = load_model(_settings(tiny_checkpoints[family], load_in_4bit=False), FAMILIES[family])
    layers = [model.get_submodule(name) for name in LINEARS[family]["language"]]
    assert plain["language"]["trainable"] == 4 * sum(layer.in_features + layer.out_features for layer in layers)


def test_parts_of_parameters_are_told_by_their_names():
    assert part_of("base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.default.weight") == "language"
    assert part_of("lm_head.weight") == "language"
    assert part_of("model.visual.blocks.3.attn.qkv.weight") == "vision"
    assert part_of("model.visual.patch_embed.proj.weight") == "vision"
    assert part_of("model.visual.deepstack_merger_list.0.linear_fc1.weight") == "merger"
    assert part_of("language_model.model.layers.1.feed_forward.shared_expert.up_proj.weight") == "language"
    assert part_of("language_model.model.layers.1.feed_forward.experts.7.down_proj.weight") == "experts"
    assert part_of("vision_model.vision_adapter.mlp.fc1.weight") == "merger"
    assert part_of("multi_modal_projector.linear_1.weight") == "merger"
    assert part_of("vision_model.model.layers.0.self_attn.q_proj.weight") == "vision"


def test_empty_model_is_whole_under_zero3_too(tiny_checkpoints):
    """transformers would have all processes allocate and share it out, where one alone asks for sizes."""
    pytest.importorskip("deepspeed")
    settings = ModelSettings(str(tiny_checkpoints["qwen3_vl"]))
    counts = count_parameters(build_empty_model(settings))
    configuration = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # acts as long as it lives
    assert is_deepspeed_zero3_enabled()
    model = build_empty_model(settings)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert count_parameters(model) == counts
    del configuration
    assert not is_deepspeed_zero3_enabled()


@pytest.mark.parametrize("model_type", ["bert", "qwen9_vl"])  # one that transformers knows, and one it does not
def test_model_of_another_family_is_refused(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    known = "qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe, llama4"
    with pytest.raises(UserError, match=f"found model type '{model_type}'; expected one of {known}: choose a model"):
        find_family(str(tmp_path))
    with pytest.raises(UserError, match="docs/models.md"):
        build_empty_model(_settings(tmp_path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"found no config.json; expected a model folder"),
        (("config.json",), r"found no \*.safetensors; expected the model's weights there: download the model"),
    ],
)
def test_incomplete_model_folder_says_what_is_missing(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=message):
        find_family(str(tmp_path))


def test_hub_model_without_access_stops_at_once_and_points_to_a_local_folder(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"no copy in the local cache, and the Hub is switched off .* --model_name_or_path"
    ):
        find_family("Qwen/Qwen3-VL-8B-Instruct")


def _steps(check, model, parts):
    """Run one backward pass and one step for each entry: the named part gets a gradient, all others get zeros."""
    check.on_train_begin(None, SimpleNamespace(global_step=0), None, model=model)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for step, part in enumerate(parts):
        sum(p.sum() * (part in name) for name, p in trained).backward()
        check.on_step_end(None, SimpleNamespace(global_step=step + 1), None, model=model)


def test_part_that_never_has_a_gradient_stops_the_run_after_three_steps(tiny_checkpoints):
    model = _load(tiny_checkpoints["qwen3_vl"], lora_parts=("language", "vision"), load_in_4bit=False)
    check = GradientCheck()
    with pytest.raises(UserError, match="found no gradient in the vision part after 3 steps; .*use_reentrant: false"):
        _steps(check, model, ["language"] * 3)
    _steps(GradientCheck(), model, ["language"] * 2)


def test_run_goes_on_where_every_trained_part_had_a_gradient_once(tiny_checkpoints):
    model = _load(tiny_checkpoints["qwen3_vl"], lora_parts=("language", "vision"), load_in_4bit=False)
    _steps(GradientCheck(), model, ["language", "visual", "language"])
    assert trained_parts(model) == {"language", "vision"}


def test_name_of_a_module_that_does_not_exist_is_refused(tiny_checkpoints):
    """PEFT passes over it without a word, and what was to be trained in full stays frozen."""
    settings = _settings(tiny_checkpoints["qwen3_vl"], lora_modules_to_save=("embed_tokens", "lm_haed"))
    with pytest.raises(UserError, match="lora_modules_to_save: found lm_haed, which no module of the model is called"):
        check_saved_modules(settings)
    check_saved_modules(replace(settings, lora_modules_to_save=("embed_tokens", "lm_head", "visual.merger")))
