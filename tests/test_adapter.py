"""Saved adapters: one that is missing, cut off, changed or untrained is refused."""

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from sft.errors import UserError
from sft.models.model import build_lora_config, check_adapter, find_family, load_model
from sft.recipe.settings import ModelSettings


def _load(folder, **changes):
    settings = ModelSettings(str(folder), dtype="float32", **{"lora_r": 4, **changes})
    family = find_family(str(folder))
    return get_peft_model(load_model(settings, family), build_lora_config(settings, family))


@pytest.fixture(scope="module")
def trained(tiny_checkpoints, tmp_path_factory):
    """An adapter with random lora_B, as after training, and the folder it was saved to."""
    model = _load(tiny_checkpoints["qwen3_vl"])
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def damaged(trained, tmp_path):
    """Return a folder with the adapter after `change(tensors)`."""

    def damage(change):
        tensors = load_file(trained[1] / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        return tmp_path

    return damage


def test_whole_adapter_passes_and_its_tensors_are_counted(trained):
    assert check_adapter(trained[1], trained[0]) == 2 * 14  # A and B of seven linears in each of two layers


def test_missing_adapter_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="adapter_model.safetensors: found no such file"):
        check_adapter(tmp_path, trained[0])


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_truncated_adapter_is_refused(trained, tmp_path, keep):
    data = (trained[1] / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(data[:keep])
    with pytest.raises(UserError, match="found a damaged file"):
        check_adapter(tmp_path, trained[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(sorted(t)[0]), r"found 27 tensors; expected 28; they differ in"),
        (lambda t: t.update(extra=torch.ones(1)), r"found 29 tensors; expected 28; they differ in \['extra'\]"),
        (lambda t: t.update({sorted(t)[0]: torch.ones(3, 3)}), r"found shape \(3, 3\); expected \("),
        (lambda t: t[sorted(t)[1]].fill_(float("nan")), r"found numbers that are not finite"),
        (lambda t: t[sorted(t)[1]].view(-1)[0].fill_(float("inf")), r"found numbers that are not finite"),
        (lambda t: [v.zero_() for k, v in t.items() if "lora_B" in k], r"found every lora_B zero"),
    ],
    ids=["lacks a tensor", "has one more", "has another shape", "is NaN", "has an infinity", "learned nothing"],
)
def test_adapter_that_is_not_the_trained_one_is_refused(trained, damaged, change, message):
    with pytest.raises(UserError, match=message):
        check_adapter(damaged(change), trained[0])


def test_zero_adapter_is_refused_though_embeddings_are_saved_with_it(tiny_checkpoints, tmp_path):
    model = _load(tiny_checkpoints["qwen3_vl"], lora_modules_to_save=("embed_tokens",))
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="found every lora_B zero"):
        check_adapter(tmp_path, model)


def test_adapter_of_another_model_is_refused(trained, tiny_checkpoints):
    other = _load(tiny_checkpoints["qwen3_vl"], lora_r=8)
    with pytest.raises(UserError, match=r"found shape \(4, \d+\); expected \(8, \d+\)"):
        check_adapter(trained[1], other)
