"""What the plan counts for the backward pass is what a model really keeps."""

import json

import pytest
import torch
from conftest import FAMILIES
from peft import get_peft_model
from trajectory_samples import TINY_AGENT

from demo.tiny_llama4 import build_tiny_llama4
from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint
from sft.models import checkpointing
from sft.models.activations import count_kept
from sft.models.model import build_empty_model, build_lora_config, find_family, load_model
from sft.models.tree_attention import use_tree_attention
from sft.prompts import build_system_text
from sft.recipe.settings import ModelSettings

N_TOKENS, RANK = 512, 8


@pytest.fixture(scope="module", params=FAMILIES)
def settings(request, tmp_path_factory):
    """Of a model wide enough that what is not counted, such as copies of LoRA's weights, is little beside the rest."""
    folder, texts = tmp_path_factory.mktemp(request.param), [build_system_text(TINY_AGENT)]
    if request.param == "llama4":
        build_tiny_llama4(folder, texts)
    else:
        size = TinySize(layers=4, hidden=256, intermediate=768, heads=4, kv_heads=2, head_dim=64)
        build_tiny_checkpoint(folder, texts, request.param, size)
        config = json.loads((folder / "config.json").read_text())
        if request.param == "qwen3_vl_moe":  # has no shared expert, whatever the tiny config says
            config["text_config"].pop("shared_expert_intermediate_size", None)
        (folder / "config.json").write_text(json.dumps(config))
    # plain LoRA has the copies that QLoRA has on a CPU alone: there PEFT does not see that autocast is on
    return ModelSettings(str(folder), dtype="bfloat16", load_in_4bit=False, lora_r=RANK, lora_dropout=0.0)


@pytest.fixture
def model(settings):
    family = find_family(settings.model_name_or_path)
    model = get_peft_model(load_model(settings, family), build_lora_config(settings, family)).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    use_tree_attention(model.config)
    return model


@pytest.fixture
def kept(settings):
    return count_kept(build_empty_model(settings), settings, find_family(settings.model_name_or_path), n_bytes=2)


def run_layers(model):
    """Compute the language model for a prefix with two branches, as training does on a GPU: under autocast in bf16."""
    ids = torch.randint(5, 50, (1, N_TOKENS))
    end = torch.full((1, 1, 1, N_TOKENS), N_TOKENS)
    end[..., N_TOKENS // 2 : 3 * N_TOKENS // 4] = 3 * N_TOKENS // 4
    decoder = model.base_model.model.get_decoder()
    with torch.autocast("cpu", torch.bfloat16):
        return getattr(decoder, "model", decoder)(input_ids=ids, attention_mask=end, use_cache=False).last_hidden_state


def measure_saved(model):
    """Return the bytes of what autograd keeps of a forward pass, parameters left out, each tensor once."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = tensor, storage.nbytes()  # the tensor, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run_layers(model)
    return sum(n for _, n in saved.values())


def test_bytes_kept_without_checkpointing_are_those_of_the_formula(model, kept):
    found = measure_saved(model) / N_TOKENS
    assert found == pytest.approx(kept.none, rel=0.1)


def test_bytes_kept_by_the_selective_form_are_those_of_the_formula(model, kept, monkeypatch):
    """Layers' inputs are what autograd keeps; all else is in the form's own store."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    n_bytes, choose = [], checkpointing._choose

    def record(rank, context, *args, **kwargs):
        policy = choose(rank, context, *args, **kwargs)
        if policy is checkpointing.CheckpointPolicy.MUST_SAVE:
            outputs = context.op_output if isinstance(context.op_output, tuple) else (context.op_output,)
            n_bytes.extend(tensor.nbytes for tensor in outputs)
        return policy

    monkeypatch.setattr(checkpointing, "_choose", record)
    checkpointing.keep_products(model, RANK)
    run_layers(model)
    assert sum(n_bytes) / N_TOKENS == pytest.approx(kept.selective - kept.full, rel=0.05)
