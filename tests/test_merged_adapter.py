"""An adapter that is merged to answer with: the same numbers to fp32's rounding, and the old bits back afterwards."""

import pytest
import torch
from peft import get_peft_model

from sft.models import merged_adapter
from sft.models.merged_adapter import merge_adapter
from sft.models.model import build_lora_config, find_family, load_model
from sft.recipe.settings import ModelSettings

pytestmark = pytest.mark.slow


def build_model(folder, dtype="float32", **settings):
    """Return a model in evaluation whose adapter is far from zero."""
    settings = ModelSettings(str(folder), dtype=dtype, lora_r=8, lora_alpha=16, **settings)
    family = find_family(str(folder))
    model = get_peft_model(load_model(settings, family), build_lora_config(settings, family)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.02
    return model


@torch.no_grad()
def compute_logits(model):
    ids = torch.arange(1, 40)[None]
    return model.get_base_model()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def read_bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}


@pytest.mark.parametrize("load_in_4bit", [True, False])
def test_merged_logits_are_the_same_and_the_bits_come_back(checkpoint, load_in_4bit):
    model = build_model(checkpoint, load_in_4bit=load_in_4bit)
    bits, expected = read_bits(model), compute_logits(model)
    restore = merge_adapter(model)
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert layers and [layer.merged for layer in layers] == [True] * len(layers)
    called = []
    for layer in layers:
        layer.lora_A["default"].register_forward_hook(lambda *_: called.append(1))
    merged = compute_logits(model)
    assert not called
    assert (merged - expected).abs().max() < 2e-5 * expected.abs().max()
    restore()
    assert torch.equal(compute_logits(model), expected) and called
    assert all(torch.equal(tensor, bits[name]) for name, tensor in read_bits(model).items())


@pytest.mark.parametrize("case", ["bf16", "in training", "short of memory"])
def test_nothing_is_merged_where_it_would_be_another_model(tiny_checkpoints, monkeypatch, case):
    model = build_model(tiny_checkpoints["qwen3_vl"], "bfloat16" if case == "bf16" else "float32")
    if case == "in training":
        model.train()
    if case == "short of memory":
        monkeypatch.setattr(merged_adapter, "read_free_bytes", lambda: 1000)
    restore = merge_adapter(model)
    assert not any(getattr(module, "merged", False) for module in model.modules())
    restore()
