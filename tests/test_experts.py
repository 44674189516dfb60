"""Experts as linear layers: the stock model's results from every form a file may have, and back into that form."""

import shutil

import pytest
import torch
from bitsandbytes.nn import Params4bit
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from sft.errors import UserError
from sft.export.merge import load_adapter, merge_weights
from sft.models.experts import list_experts
from sft.models.model import build_lora_config, count_parameters, find_family, load_model
from sft.recipe.settings import ModelSettings

FAMILIES = ("llama4", "qwen3_vl_moe", "qwen3_5_moe")
HIDDEN, EXPERTS = 64, 4
IDS = torch.randint(0, 250, (2, 60), generator=torch.Generator().manual_seed(0))


def write_with_experts_apart(weights):
    """Each expert's projections as tensors of their own, as older mixtures were published and transformers 5 saves."""
    found = {}
    for name, weight in weights.items():
        if ".experts." not in name:
            found[name] = weight
            continue
        experts, _, which = name.rpartition(".")
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[which]
        for i, matrix in enumerate(weight):
            matrix = matrix if (matrix.shape[1] == HIDDEN) == (which == "gate_up_proj") else matrix.T
            for part, rows in zip(parts, matrix.chunk(len(parts))):
                found[f"{experts}.{i}.{part}.weight"] = rows.contiguous()
    return found


def write_turned(weights):
    """(experts, in, out) where the family publishes (experts, out, in), and the other way round."""
    return {n: w.transpose(1, 2).contiguous() if ".experts." in n else w for n, w in weights.items()}


FORMS = {"published": dict, "apart": write_with_experts_apart, "turned": write_turned}
# transformers opens Llama-4 in its published form alone; of Qwen's mixtures each in those it was ever written in.
CASES = [("llama4", "published"), ("qwen3_vl_moe", "published"), ("qwen3_vl_moe", "turned")]
CASES += [("qwen3_5_moe", "published"), ("qwen3_5_moe", "apart")]


@pytest.fixture(params=CASES, ids="-".join)
def checkpoint(request, tiny_checkpoints, tmp_path):
    family, form = request.param
    folder = shutil.copytree(tiny_checkpoints[family], tmp_path / "base")
    path = folder / "model.safetensors"
    weights = FORMS[form](load_file(path))
    path.unlink()
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def load(folder, **changes):
    settings = ModelSettings(str(folder), dtype="float32", lora_r=4, lora_dropout=0.0, **changes)
    family = find_family(str(folder))
    return load_model(settings, family).eval(), build_lora_config(settings, family)


def read_logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_linear_experts_give_the_logits_of_the_stock_model(checkpoint):
    stock = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    model, _ = load(checkpoint, load_in_4bit=False)
    torch.testing.assert_close(read_logits(model), read_logits(stock), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in stock.parameters())


def test_merged_experts_are_the_adapter_s_in_the_form_of_the_base(checkpoint, tmp_path):
    model, lora = load(checkpoint, load_in_4bit=False, lora_parts=("language", "experts"))
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(tmp_path / "adapter")
    merged = tmp_path / "merged"
    merged.mkdir()
    merge_weights(checkpoint, load_adapter(tmp_path / "adapter"), merged, torch.float32)
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, merged))
    assert {name: t.shape for name, t in after.items()} == {name: t.shape for name, t in before.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {n for n in before if ".experts." in n} <= changed
    assert not any("router" in name or "mlp.gate." in name or "visual" in name for name in changed)
    found = read_logits(AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32))
    torch.testing.assert_close(found, read_logits(model), rtol=1e-4, atol=1e-4)


def test_experts_are_read_and_quantised_one_at_a_time(checkpoint, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "sft.models.model.Params4bit", lambda data, **kw: sizes.append(data.numel()) or Params4bit(data, **kw)
    )
    model, _ = load(checkpoint)
    layers = list_experts(model)
    (inner,) = {experts.sizes["down_proj"][1] for _, experts in layers}
    assert set(sizes) == {2 * inner * HIDDEN, inner * HIDDEN}
    assert len(sizes) == 2 * EXPERTS * len(layers) == 2 * EXPERTS * 2
    assert count_parameters(model)["experts"]["total"] == 3 * inner * HIDDEN * EXPERTS * 2
    quantised = [p for name, p in model.named_parameters() if ".experts." in name]
    assert all(type(p) is Params4bit for p in quantised) and len(quantised) == len(sizes)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_matrix_of_the_chosen_experts_and_no_router(tiny_checkpoints, family):
    model, lora = load(tiny_checkpoints[family], lora_parts=("language", "experts"))
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.any() for gradient in trained.values())
    assert not any("gate.weight" in name or "router" in name or "shared_expert_gate" in name for name in trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_without_an_expert_names_the_tensor(tiny_checkpoints, tmp_path, family):
    folder = shutil.copytree(tiny_checkpoints[family], tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    gone = sorted(name for name in weights if name.endswith("experts.down_proj"))[-1]
    del weights[gone]
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"found no tensor {gone}"):
        load(folder)
