"""Whatever checkpointing keeps, gradients have the same bits; what it keeps is not computed again."""

from collections import Counter

import pytest
import torch
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from trajectory_samples import TINY_AGENT

from sft.batches.collator import PackingCollator
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_step_rows
from sft.models.checkpointing import keep_products
from sft.models.model import build_lora_config, find_family, load_model
from sft.models.processors import load_processor
from sft.models.tree_attention import use_tree_attention
from sft.recipe.settings import ModelSettings

RANK = 4


class Calls(TorchDispatchMode):
    """Counts operations by name, products by how many numbers they sum."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket._qualified_op_name
        if name == "aten::mm":
            name += " over the rank" if args[0].shape[-1] == RANK else ""
        self.names[name] += 1
        return func(*args, **(kwargs or {}))


def build_batch(checkpoint, tasks, tasks_csv):
    """Six steps on two screenshots, packed: two trees side by side."""
    encoder = StepEncoder(load_processor(checkpoint, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels), TINY_AGENT)
    rows = build_step_rows(tasks[:2], str(tasks_csv), encoder, show_progress=False).dataset
    batch = PackingCollator(encoder)(list(rows))
    batch["attention_mask"] = batch.pop("subtree_end")[:, None, None]
    return batch


def build_model(folder, **settings):
    """A model with LoRA, dropout included, whose every LoRA matrix has a gradient."""
    model_settings = ModelSettings(str(folder), dtype="float32", lora_r=RANK, lora_dropout=0.1, **settings)
    family = find_family(str(folder))
    torch.manual_seed(1)
    model = load_model(model_settings, family)
    if model_settings.use_peft:
        model = get_peft_model(model, build_lora_config(model_settings, family))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    use_tree_attention(model.config)
    return model.train()


@pytest.fixture
def batch(checkpoint, tasks, tasks_csv):
    return build_batch(checkpoint, tasks, tasks_csv)


@pytest.fixture
def qwen3_vl(tiny_checkpoints, tasks, tasks_csv):
    """One family's folder, and its batch."""
    return tiny_checkpoints["qwen3_vl"], build_batch(tiny_checkpoints["qwen3_vl"], tasks, tasks_csv)


def choose_form(model, form):
    model.gradient_checkpointing_disable()
    if form != "none":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if form == "selective":
        keep_products(model, RANK if hasattr(model, "peft_config") else 0)


def compute_gradients(model, batch):
    """Return loss, gradients, and the operations of the backward pass."""
    model.zero_grad()
    torch.manual_seed(0)
    loss = model(**batch, use_cache=False).loss
    with Calls() as calls:
        loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, calls.names


FORMS = {
    "QLoRA": {},
    "LoRA": {"load_in_4bit": False},
    "LoRA on the vision tower too": {"lora_parts": ("language", "merger", "vision")},
}


@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
def test_every_form_of_checkpointing_gives_the_gradients_of_none(checkpoint, batch, settings):
    """To the bit, packed, with dropout."""
    model = build_model(checkpoint, **settings)
    found = {}
    for form in ("none", "true", "selective"):
        choose_form(model, form)
        found[form] = compute_gradients(model, batch)
    loss, gradients, _ = found["none"]
    assert gradients.keys() == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert all(gradient.any() for name, gradient in gradients.items() if "lora_B" in name)
    for form in ("true", "selective"):
        assert torch.equal(found[form][0], loss), form
        assert found[form][1].keys() == gradients.keys()
        assert found[form][1].keys() == gradients.keys(), form
        for name, gradient in found[form][1].items():
            assert torch.equal(gradient, gradients[name]), (form, name)


def test_full_fine_tuning_has_the_same_gradients_too(qwen3_vl):
    checkpoint, batch = qwen3_vl
    model = build_model(checkpoint, use_peft=False, load_in_4bit=False)
    gradients = []
    for form in ("none", "selective"):
        choose_form(model, form)
        gradients.append(compute_gradients(model, batch)[1])
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


PRODUCTS = ("bitsandbytes::gemm_4bit", "aten::mm", "sft::attend_tree")


def test_selective_form_computes_no_product_and_no_attention_again(qwen3_vl, monkeypatch):
    """But LoRA's second products, over the rank alone; 4-bit weights are as a GPU has them."""
    monkeypatch.setattr("sft.models.model.dequantise_once", lambda model: False)
    checkpoint, batch = qwen3_vl
    model = build_model(checkpoint)
    calls = {}
    for form in ("none", "true", "selective"):
        choose_form(model, form)
        calls[form] = compute_gradients(model, batch)[2]
    n_layers = model.config.text_config.num_hidden_layers
    again = {name: calls["true"][name] - calls["selective"][name] for name in PRODUCTS}
    assert again == {"bitsandbytes::gemm_4bit": 7 * n_layers, "aten::mm": 7 * n_layers, "sft::attend_tree": n_layers}
    more = {name: calls["selective"][name] - calls["none"][name] for name in PRODUCTS}
    # checkpointing has the first layer's queries, keys and values differentiated down to the embeddings
    assert more == {"bitsandbytes::gemm_4bit": 0, "aten::mm": 3, "sft::attend_tree": 0}
    over_rank = "aten::mm over the rank"
    assert 0 < calls["selective"][over_rank] - calls["none"][over_rank] <= 7 * n_layers + 1
