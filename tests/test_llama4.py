"""Llama-4 for LoRA: experts in nf4 as good as linear layers, what is trained, and what is refused."""

import json
import re
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import get_peft_model
from transformers import AutoModelForImageTextToText

from demo.tiny_llama4 import TinyLlama4Size, build_tiny_llama4
from sft.errors import UserError
from sft.models.families import FAMILIES
from sft.models.llama4 import Llama4SparseMoe, longest_sequence
from sft.models.model import build_lora_config, check_sequence_lengths, count_parameters, load_model
from sft.recipe.recipe import parse_recipe
from sft.recipe.settings import ModelSettings

FAMILY = FAMILIES["llama4"]
# Four million parameters: two layers with eight experts, a shared expert and a dense layer beside each.
SIZE = TinyLlama4Size(hidden=256, intermediate=256, intermediate_mlp=512, experts=8, head_dim=64, heads=4)
LANGUAGE = "language_model.model.layers"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build_tiny_llama4(tmp_path_factory.mktemp("llama4"), ["Open the study"], SIZE)


@pytest.fixture(scope="module")
def stock(checkpoint):
    return AutoModelForImageTextToText.from_pretrained(checkpoint).eval()


def load(folder, **changes):
    settings = replace(ModelSettings(str(folder), dtype="float32", lora_r=4, lora_dropout=0.0), **changes)
    model = load_model(settings, FAMILY)
    return model, settings


@pytest.fixture(scope="module")
def quantised(checkpoint):
    return load(checkpoint)[0].eval()


def find_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Llama4SparseMoe)}


def test_sparse_experts_give_the_logits_of_the_stock_model(checkpoint, stock):
    model = load(checkpoint, load_in_4bit=False)[0].eval()
    ids = torch.randint(0, 250, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, stock(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert list(find_layers(model)) == [f"{LANGUAGE}.{i}.feed_forward" for i in (1, 3)]


def test_nf4_experts_err_as_much_as_nf4_linear_layers(quantised, stock):
    """Weights and outputs, against the attention and the shared expert of the same model."""
    torch.manual_seed(0)
    hidden = torch.randn(200, SIZE.hidden)

    def measure(linear, weight):
        """Relative error of a 4-bit layer's weights, and of what it makes of `hidden`."""
        found = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
        inputs = hidden[:, : weight.shape[1]]
        with torch.no_grad():
            exact = inputs @ weight.T
            return [
                ((found - weight).norm() / weight.norm()).item(),
                ((linear(inputs) - exact).norm() / exact.norm()).item(),
            ]

    experts, linears = [], []
    for name, layer in find_layers(quantised).items():
        whole = stock.get_submodule(name).experts
        for i, expert in enumerate(layer.experts):
            experts += [measure(expert.gate_up_proj, whole.gate_up_proj[i].T)]
            experts += [measure(expert.down_proj, whole.down_proj[i].T)]
        for part in ("gate_proj", "up_proj", "down_proj"):
            path = f"{name}.shared_expert.{part}"
            linears += [measure(quantised.get_submodule(path), stock.get_submodule(path).weight)]
    assert len(experts) == 2 * 2 * 8
    weights, outputs = (max(errors) for errors in zip(*linears))
    assert 0.05 < weights < 0.15  # what nf4 costs
    assert max(e[0] for e in experts) < 1.1 * weights
    assert max(e[1] for e in experts) < 1.1 * outputs


def test_nf4_experts_take_less_than_three_tenths_of_bf16(quantised):
    held = total = 0
    for layer in find_layers(quantised).values():
        for weight in layer.experts.parameters():
            state = weight.quant_state
            scales = (state.absmax, state.state2.absmax, state.state2.code, state.code, state.offset)
            held += sum(t.numel() * t.element_size() for t in (weight, *scales))
            total += 2 * state.shape.numel()
    assert total == 2 * 2 * 8 * 3 * 256 * 256
    assert held / total <= 0.30


@pytest.fixture(scope="module", params=[("language",), ("language", "experts")], ids=str)
def adapted(request, checkpoint):
    """A 4-bit model whose LoRA is not zero, and what computes its gradients."""
    model, settings = load(checkpoint, lora_parts=request.param)
    model = get_peft_model(model, build_lora_config(settings, FAMILY))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    ids = torch.randint(0, 250, (1, 64), generator=torch.Generator().manual_seed(1))

    def compute_gradients():
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    return model, compute_gradients


@pytest.fixture(scope="module")
def plain_gradients(adapted):
    return adapted[1]()


def test_gradients_reach_every_adapted_matrix(plain_gradients):
    assert all(gradient.any() for gradient in plain_gradients.values())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_through_checkpointing_are_those_without(adapted, plain_gradients, reentrant):
    model, compute_gradients = adapted
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    again = compute_gradients()
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6)


def test_lora_sits_on_attention_and_shared_expert_alone_by_default(checkpoint):
    model, settings = load(checkpoint)
    model = get_peft_model(model, build_lora_config(settings, FAMILY))
    adapted = {name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")}
    attention = {f"{LANGUAGE}.{i}.self_attn.{x}_proj" for i in range(4) for x in "qkvo"}
    dense = {f"{LANGUAGE}.{i}.feed_forward.{x}_proj" for i in (0, 2) for x in ("gate", "up", "down")}
    shared = {f"{LANGUAGE}.{i}.feed_forward.shared_expert.{x}_proj" for i in (1, 3) for x in ("gate", "up", "down")}
    assert adapted == attention | dense | shared
    assert not any(p.requires_grad for name, p in model.named_parameters() if "router" in name or "vision" in name)
    counts = count_parameters(model)
    assert {part: bool(count["trainable"]) for part, count in counts.items()} == {
        "language": True,
        "experts": False,
        "merger": False,
        "vision": False,
    }
    assert counts["experts"]["total"] == 2 * 8 * 3 * 256 * 256


@pytest.mark.parametrize("part", FAMILY.linears)
def test_each_part_is_matched_by_its_own_pattern_and_the_router_by_none(quantised, part):
    names = [name for name, module in quantised.named_modules() if isinstance(module, torch.nn.Linear)]
    matched = {name for name in names if re.fullmatch(FAMILY.linears[part], name)}
    others = {n for other in FAMILY.linears.values() for n in names if re.fullmatch(other, n)} - matched
    assert len(matched) == {"language": 28, "experts": 32, "merger": 3, "vision": 12}[part]
    assert not matched & others
    left = set(names) - matched - others
    routers = {f"{LANGUAGE}.{i}.feed_forward.router" for i in (1, 3)}
    assert left == routers | {"language_model.lm_head", "vision_model.patch_embedding.linear"}


def test_experts_of_a_family_that_has_none_are_refused(tiny_checkpoints):
    settings = ModelSettings(str(tiny_checkpoints["qwen3_vl"]), lora_parts=("experts",))
    with pytest.raises(UserError, match="lora_parts: found experts; expected some of language, merger, vision"):
        build_lora_config(settings, FAMILIES["qwen3_vl"])


def test_full_fine_tuning_is_refused(checkpoint):
    with pytest.raises(UserError, match="use_peft: found false with Llama-4; expected true"):
        load(checkpoint, use_peft=False, load_in_4bit=False)


def test_sequences_across_a_border_of_the_attention_are_refused(checkpoint, tmp_path):
    for file in checkpoint.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"].update(attention_chunk_size=2048, floor_scale=4096)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "recipe.yaml").write_text(f"model_name_or_path: {tmp_path}\ntrain_csv: train.csv\n")
    recipe = parse_recipe([str(tmp_path / "recipe.yaml"), "--max_prompt_tokens", "1000", "--max_answer_tokens", "47"])
    with pytest.raises(UserError, match="^tokens_per_batch: found 4096 tokens; expected at most 2047 with this model"):
        check_sequence_lengths(recipe.model, recipe.longest_sequences())
    check_sequence_lengths(recipe.model, {"tokens_per_batch": 2047})


def test_a_packed_step_beyond_the_border_would_not_be_the_same_step(stock, checkpoint):
    """Why that is refused: the second of two branches begins at token 40 alone, at token 60 in the sequence."""
    assert longest_sequence(stock.config) == SIZE.chunk - 1
    for module in stock.modules():
        if hasattr(module, "floor_scale"):
            module.floor_scale = 50
    ids = torch.arange(60)[None]
    positions = torch.cat([torch.arange(40), torch.arange(20, 40)])[None]
    packed_ids = torch.cat([ids[:, :40], ids[:, 20:40]], dim=1)
    mask = torch.ones(60, 60).tril().bool()
    mask[40:, 20:40] = False
    with torch.no_grad():
        alone = stock(input_ids=ids[:, :40]).logits[0, 20:]
        packed = stock(input_ids=packed_ids, position_ids=positions, attention_mask=mask[None, None]).logits[0, 40:]
        for module in stock.modules():
            if hasattr(module, "floor_scale"):
                module.floor_scale = SIZE.chunk
        whole = stock(input_ids=packed_ids, position_ids=positions, attention_mask=mask[None, None]).logits[0, 40:]
    assert (packed - alone).abs().max() > 1e-3
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-4)
