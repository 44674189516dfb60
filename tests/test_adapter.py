"""Saved adapters: one that is missing, cut off, changed or untrained is refused."""

import json
import shutil

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from test_forged_states import Payload

from sft.errors import UserError
from sft.export.__main__ import find_base_folder
from sft.models.limits import check_adapter_config
from sft.models.model import (
    build_lora_config,
    check_adapter,
    find_family,
    load_for_inference,
    load_model,
)
from sft.models.model_folder import find_base_name
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


SLOW = r"(?:\w+\.?)+!"  # on a name of 45 characters it tries every way to cut it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": SLOW}, r"found the pattern .* \(it takes longer than 0.5 s\)"),
        ({"exclude_modules": SLOW}, "found the pattern"),
        ({"rank_pattern": {SLOW: 4}}, "found the pattern"),
        ({"alpha_pattern": {SLOW: 4}}, "found the pattern"),
        ({"modules_to_save": [SLOW]}, "found the pattern"),
        ({"layers_pattern": SLOW, "layers_to_transform": [0]}, "found the pattern"),
        ({"target_modules": "("}, r"found the pattern '\('"),
        ({"r": 10**9}, "found rank 1000000000; expected at most 4, as its weights have"),
        ({"r": "1e9"}, "found r '1e9'"),
        ({"rank_pattern": {"q_proj": 10**9}}, "found rank 1000000000; expected at most 4"),
        ({"rank_pattern": "q_proj"}, "found .* as patterns"),
        ({"megatron_config": {"a": 1}, "megatron_core": "this"}, "found megatron_config"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_config_that_asks_for_what_its_weights_do_not_is_refused(trained, tmp_path, changes, message, monkeypatch):
    monkeypatch.setattr("sft.models.limits.LONGEST_S", 0.5)
    folder = shutil.copytree(trained[1], tmp_path / "adapter")
    names = [name for name, _ in trained[0].base_model.model.named_modules()]
    check_adapter_config(folder, names)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=rf"adapter_config.json: {message}"):
        check_adapter_config(folder, names)


def test_pickled_adapter_is_not_opened(trained, tmp_path):
    folder, proof = shutil.copytree(trained[1], tmp_path / "adapter"), tmp_path / "was_run"
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"payload": Payload(proof)}, folder / "adapter_model.bin")
    settings = ModelSettings(trained[0].peft_config["default"].base_model_name_or_path, dtype="float32")
    with pytest.raises(UserError, match=r"adapter_model.safetensors: found no such file"):
        load_for_inference(settings, folder)
    assert not proof.exists()


@pytest.mark.parametrize(
    "base", ["https://example.org/m", "file:///etc", "../..", "/etc", "no/such/base", "~/x", "a\0b"]
)
def test_base_that_is_no_model_is_refused_without_asking_anybody(trained, tmp_path, base, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a request")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    folder = shutil.copytree(trained[1], tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    with pytest.raises(UserError, match="expected"):
        find_base_folder(find_base_name(folder), "main")
    with pytest.raises(UserError, match="expected"):
        load_for_inference(ModelSettings(find_base_name(folder), dtype="float32"), folder)


def test_zero_adapter_is_refused_though_embeddings_are_saved_with_it(tiny_checkpoints, tmp_path):
    model = _load(tiny_checkpoints["qwen3_vl"], lora_modules_to_save=("embed_tokens",))
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="found every lora_B zero"):
        check_adapter(tmp_path, model)


def test_adapter_of_another_model_is_refused(trained, tiny_checkpoints):
    other = _load(tiny_checkpoints["qwen3_vl"], lora_r=8)
    with pytest.raises(UserError, match=r"found shape \(4, \d+\); expected \(8, \d+\)"):
        check_adapter(trained[1], other)
