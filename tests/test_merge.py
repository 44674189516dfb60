"""Every kind of adapter, merged into bases as they are published, is the model that the adapter is on its base."""

import gc
import json
import weakref
from dataclasses import asdict, replace

import pytest
import torch
from conftest import build_tiny
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from trajectory_samples import TINY_AGENT
from transformers import AutoConfig

import sft.export.merge
from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint
from eval.rollouts import export_check
from sft.errors import UserError
from sft.export import __main__ as export
from sft.models.families import FAMILIES
from sft.models.model import build_lora_config, load_for_inference, load_model
from sft.models.processors import load_processor, save_processor
from sft.recipe.settings import ModelSettings

BOTH = ("embed_tokens", "lm_head")


def _build_adapter(folder, base, family, modules=(), parts=("language",)):
    """Write what a training leaves behind, its adapter far from the base in every part; return the folder."""
    settings = ModelSettings(
        str(base), dtype="float32", load_in_4bit=False, lora_r=4, lora_parts=parts, lora_modules_to_save=modules
    )
    model = get_peft_model(load_model(settings, FAMILIES[family]), build_lora_config(settings, FAMILIES[family]))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_processor(load_processor(base, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels), folder)
    (folder / "agent_config.json").write_text(json.dumps(asdict(TINY_AGENT)))
    (folder / "recipe.yaml").write_text(f"model_name_or_path: {base}\ndtype: float32\nload_in_4bit: false\n")
    return folder


def _build_tied(folder, family):
    texts = ["Open the study in OHIF Viewer", "CLICK SCROLL ZOOM TEXT SEGMENT COMPLETE"]
    return build_tiny_checkpoint(folder, texts, family, TinySize(tie_embeddings=True))


def _write_as_published(base):
    """Write a tiny Qwen2.5-VL as the Hub has it: one flat config, `torch_dtype`, and weights by their older names."""
    config = json.loads((base / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat = {k: v for k, v in text.items() if k not in ("model_type", "dtype", "tie_word_embeddings")}
    config |= {**flat, "rope_scaling": scaling, "rope_theta": rope["rope_theta"], "torch_dtype": config.pop("dtype")}
    (base / "config.json").write_text(json.dumps(config))
    weights = load_file(base / "model.safetensors")
    older = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in weights.items()
    }
    assert "visual.blocks.0.attn.qkv.weight" in older and "model.layers.0.mlp.up_proj.weight" in older
    save_file(older, base / "model.safetensors", {"format": "pt"})
    return base


def _export(adapter, to, *arguments):
    export.main(["--model_path", str(adapter), "--to", str(to), *arguments])
    (row,) = json.loads((to / "export_report.json").read_text())["logits"]
    return row


@pytest.mark.slow
@pytest.mark.parametrize("modules", [(), ("embed_tokens",), ("lm_head",), BOTH], ids="-".join)
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_what_is_trained_in_full_on_a_tied_base_is_untied_by_the_export(tmp_path, family, modules):
    base = _build_tied(tmp_path / "base", family)
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    row = _export(_build_adapter(tmp_path / "adapter", base, family, modules), tmp_path / "merged")
    assert row["max_gap"] < 1e-4 and row["same_choice"] == 1
    config = json.loads((tmp_path / "merged/config.json").read_text())
    is_tied = not modules
    assert [config["tie_word_embeddings"], AutoConfig.from_pretrained(tmp_path / "merged").tie_word_embeddings] == [
        is_tied
    ] * 2
    weights = load_file(tmp_path / "merged/model.safetensors")
    assert ("lm_head.weight" in weights) == (not is_tied)
    if modules:
        assert config["text_config"]["tie_word_embeddings"] is False
        (embedding,) = (tensor for name, tensor in weights.items() if name.endswith("embed_tokens.weight"))
        assert not torch.equal(weights["lm_head.weight"], embedding)


@pytest.mark.slow
@pytest.mark.parametrize("modules", [(), ("embed_tokens",), ("lm_head",)], ids="-".join)
def test_base_as_published_by_older_transformers_is_merged(tmp_path, modules):
    base = _write_as_published(_build_tied(tmp_path / "base", "qwen2_5_vl"))
    adapter = _build_adapter(tmp_path / "adapter", base, "qwen2_5_vl", modules, ("language", "merger", "vision"))
    row = _export(adapter, tmp_path / "merged")
    assert row["max_gap"] < 1e-4 and row["same_choice"] == 1
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert "torch_dtype" not in config and config["dtype"] == "float32"
    assert config["tie_word_embeddings"] is (not modules)
    names = set(load_file(tmp_path / "merged/model.safetensors"))
    assert "visual.blocks.0.attn.qkv.weight" in names, "the names of the files stay"


def test_trained_head_takes_the_place_of_a_copy_of_the_tied_one_in_the_base_s_files(tmp_path):
    base = _build_tied(tmp_path / "base", "qwen3_vl")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    row = _export(_build_adapter(tmp_path / "adapter", base, "qwen3_vl", ("lm_head",)), tmp_path / "merged")
    assert row["max_gap"] < 1e-4
    assert json.loads((tmp_path / "merged/config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "llama4"])
def test_lora_on_language_merger_and_vision_is_merged(tiny_checkpoints, tmp_path, family):
    parts = ("language", "merger", "vision")
    adapter = _build_adapter(tmp_path / "adapter", tiny_checkpoints[family], family, parts=parts)
    row = _export(adapter, tmp_path / "merged")
    assert row["max_gap"] < 1e-3 * row["spread"] and row["same_choice"] == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_of_the_number_format_passes_and_every_dtype_of_the_config_is_that_one(tmp_path, dtype):
    base = build_tiny(tmp_path / "base", ["Open the study"], "qwen3_vl")
    config = json.loads((base / "config.json").read_text())
    config["torch_dtype"] = config["text_config"]["torch_dtype"] = "float64"  # left behind by an older version
    (base / "config.json").write_text(json.dumps(config))
    row = _export(_build_adapter(tmp_path / "adapter", base, "qwen3_vl"), tmp_path / "merged", "--dtype", dtype)
    print(dtype, row)
    config = json.loads((tmp_path / "merged/config.json").read_text())
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    assert {part[key] for part in parts for key in ("dtype", "torch_dtype") if key in part} == {dtype}
    assert config["dtype"] == config["text_config"]["dtype"] == dtype


def test_merge_that_is_another_model_is_refused_and_leaves_nothing(tmp_path, tiny_checkpoints, monkeypatch):
    adapter = _build_adapter(tmp_path / "adapter", tiny_checkpoints["qwen3_vl"], "qwen3_vl")
    right = sft.export.merge.load_adapter
    monkeypatch.setattr(
        "sft.export.merge.load_adapter", lambda folder: replace(right(folder), scale=0.9 * right(folder).scale)
    )
    with pytest.raises(UserError, match="the merge is another model, and nothing was written"):
        _export(adapter, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_full_model_is_told_that_it_needs_no_merge(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/agent_config.json").write_text(json.dumps(asdict(TINY_AGENT)))
    with pytest.raises(UserError, match="found no adapter_config.json; expected an adapter: a full model needs no"):
        _export(tmp_path / "full", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_gap_that_is_no_number_is_refused():
    row = {"form": "adapter on the float32 base", "mean_gap": float("nan"), "same_choice": 1.0, "spread": 1.0}
    with pytest.raises(UserError, match="the merge is another model"):
        export_check.check_logits(row, "float32")


@pytest.mark.slow
def test_no_model_is_in_memory_when_the_next_is_loaded(tmp_path, tiny_checkpoints, monkeypatch):
    living = []

    def load(*arguments):
        gc.collect()
        assert [model for model in (reference() for reference in living) if model is not None] == []
        model = load_for_inference(*arguments)
        living.append(weakref.ref(model))
        return model

    monkeypatch.setattr(export_check, "load_for_inference", load)
    adapter = _build_adapter(tmp_path / "adapter", tiny_checkpoints["qwen3_vl"], "qwen3_vl")
    recipe = adapter / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("load_in_4bit: false", "load_in_4bit: true"))
    export.main(["--model_path", str(adapter), "--to", str(tmp_path / "merged")])
    assert len(living) == 3


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"use_dora": True}, "found use_dora; expected plain LoRA"),
        ({"rank_pattern": {"q_proj": 8}}, "found rank_pattern; expected plain LoRA"),
        ({"lora_bias": True}, "found lora_bias; expected plain LoRA"),
        ({"bias": "all"}, "found bias 'all'; expected none"),
        ({"peft_type": "LOHA"}, "found peft_type 'LOHA'; expected LORA"),
        ({"r": None}, "found r None; expected the rank of LoRA"),
        ({"lora_alpha": "16"}, "found lora_alpha '16'; expected a number"),
    ],
    ids=["dora", "rank_pattern", "lora_bias", "bias", "loha", "no rank", "alpha"],
)
def test_adapter_whose_merge_is_another_sum_or_unknown_is_refused(tmp_path, tiny_checkpoints, change, found):
    adapter = _build_adapter(tmp_path / "adapter", tiny_checkpoints["qwen3_vl"], "qwen3_vl")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=found):
        _export(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
