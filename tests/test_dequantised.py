"""4-bit weights dequantised once on a CPU: the same bits forwards and backwards, and only where memory allows it."""

import logging
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import get_peft_model
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit

from sft.models import dequantised
from sft.models.dequantised import DequantisedLinear4bit, dequantise_once, read_free_bytes
from sft.models.model import build_lora_config, find_family, load_model
from sft.recipe.settings import ModelSettings


def build_layer(dtype=torch.float32, has_bias=False, quantised_from=None):
    layer = Linear4bit(128, 64, bias=has_bias, compute_dtype=dtype, quant_type="nf4", device="meta")
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    layer.weight = Params4bit(weight.to(quantised_from or dtype), requires_grad=False, quant_type="nf4").to("cpu")
    if has_bias:
        layer.bias = torch.nn.Parameter(torch.linspace(-1, 1, 64), requires_grad=False)
    layer.support_avx512bf16_for_cpu = False
    return layer


def run(layer, inputs):
    inputs = inputs.clone().requires_grad_()
    output = layer(inputs)
    output.square().sum().backward()
    return output.detach(), inputs.grad


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 128), (2, 3, 128), (1, 0, 128), (1, 1, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_and_gradient_have_the_same_bits(dtype, shape, has_bias):
    layer = build_layer(dtype, has_bias)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = run(layer, inputs)
    assert dequantise_once(layer) and type(layer) is DequantisedLinear4bit
    for tensor, other in zip(run(layer, inputs), expected):
        assert torch.equal(tensor, other)


def test_weights_quantised_from_another_type_stay_as_they_are():
    """bitsandbytes computes them in one type forwards and in another backwards."""
    assert not dequantise_once(build_layer(torch.float32, quantised_from=torch.bfloat16))


def test_weight_that_replaces_the_one_read_is_computed_with():
    layer = build_layer()
    dequantise_once(layer)
    layer.weight = Params4bit(torch.eye(64, 128), requires_grad=False, quant_type="nf4").to("cpu")
    assert torch.equal(layer(torch.ones(1, 128)), torch.ones(1, 64))


def test_autocast_computes_as_before():
    layer, inputs = build_layer(), torch.randn(3, 128)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(inputs)
        dequantise_once(layer)
        assert torch.equal(layer(inputs), expected)


@pytest.mark.parametrize(("n_processes", "is_once"), [("1", True), ("2", False)])
def test_all_layers_or_none_by_the_memory_that_is_free(monkeypatch, caplog, n_processes, is_once):
    """Two layers of 64 by 128 in fp32 are 65,536 bytes: half of what is free, where it is not shared."""
    monkeypatch.setattr(dequantised.psutil, "virtual_memory", lambda: SimpleNamespace(available=131_072))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", n_processes)
    model = torch.nn.Sequential(build_layer(), build_layer())
    with caplog.at_level(logging.INFO):
        assert dequantise_once(model) == is_once
    assert {type(layer) for layer in model} == {DequantisedLinear4bit if is_once else Linear4bit}
    assert ("dequantised once" if is_once else "dequantised at every call") in caplog.text


def test_free_memory_is_at_most_the_machine_s():
    assert 0 < read_free_bytes() <= dequantised.psutil.virtual_memory().total


def test_model_is_saved_and_adapted_as_one_that_is_not_dequantised(checkpoint, monkeypatch):
    settings = ModelSettings(str(checkpoint), dtype="float32")
    model = load_model(settings, find_family(str(checkpoint)))
    monkeypatch.setattr("sft.models.model.dequantise_once", lambda model: False)
    stock = load_model(settings, find_family(str(checkpoint)))
    assert {type(m) for m in model.modules()} - {type(m) for m in stock.modules()} == {DequantisedLinear4bit}
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in stock.named_parameters()]
    saved, expected = model.state_dict(), stock.state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, stock.eval()(input_ids=ids).logits)
    adapted = get_peft_model(model, build_lora_config(settings, find_family(str(checkpoint))))
    assert any(isinstance(module, LoraLinear4bit) for module in adapted.modules())
