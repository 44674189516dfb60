"""Each family on two processes ends with the adapter of one that has the same global batch: DDP, ZeRO-2, ZeRO-3."""

import pytest
import torch
from conftest import FAMILIES
from test_distributed import COMMON, ENGINES, LORA, load_weights
from training_runs import load_adapter, printed, read_losses, start_attempts, write_recipe

from sft.models.families import FAMILIES as LAYERS

pytestmark = pytest.mark.slow

NEW = [family for family in FAMILIES if family not in ("qwen3_vl", "qwen2_5_vl", "llama4")]  # those have their own
SHORT = (*COMMON, "--max_steps", "2")


@pytest.fixture(scope="module", params=NEW)
def family(request):
    pytest.importorskip("deepspeed")
    return request.param


@pytest.fixture(scope="module")
def recipe(family, tiny_checkpoints, tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp(family), tiny_checkpoints[family])


@pytest.fixture(scope="module")
def settings(family):
    """LoRA on language and, where there are any, experts."""
    parts = [part for part in ("language", "experts") if part in LAYERS[family].linears]
    return (*SHORT, "--lora_parts", f"[{', '.join(parts)}]")


@pytest.fixture(scope="module")
def attempt(recipe):
    with start_attempts(recipe) as attempt:
        yield attempt


@pytest.fixture(scope="module")
def one_process(attempt, tmp_path_factory):
    """Train once in one process with each set of settings; return the output folder."""
    folders = {}

    def train(*settings):
        if settings not in folders:
            folders[settings] = tmp_path_factory.mktemp("one")
            arguments = [*settings, "--gradient_accumulation_steps", "2"]
            assert attempt(folders[settings], {"arguments": arguments}) == [0], printed(folders[settings])
        return folders[settings]

    return train


def assert_same_end(folder, other, load=load_adapter):
    assert read_losses(folder) == pytest.approx(read_losses(other), rel=1e-5)
    first, second = load(folder), load(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_qlora_ends_the_same_on_two_processes(attempt, one_process, settings, tmp_path, engine):
    """Packed, with LoRA on the experts too: the processes' tokens choose different ones."""
    assert attempt(tmp_path, {**ENGINES[engine], "arguments": settings}) == [[0, 0]], printed(tmp_path)
    assert_same_end(tmp_path, one_process(*settings))


def test_lora_ends_the_same_under_zero3(attempt, one_process, settings, tmp_path):
    settings = (*settings, *LORA)
    assert attempt(tmp_path, {**ENGINES["zero3"], "arguments": settings}) == [[0, 0]], printed(tmp_path)
    assert_same_end(tmp_path, one_process(*settings))


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_full_fine_tuning_ends_the_same_on_two_processes(attempt, one_process, tmp_path, engine):
    settings = (*SHORT, *LORA, "--use_peft", "false")
    assert attempt(tmp_path, {**ENGINES[engine], "arguments": settings}) == [[0, 0]], printed(tmp_path)
    assert_same_end(tmp_path, one_process(*settings), load_weights)


def test_4_bit_weights_stored_as_bf16_train_under_zero3(attempt, one_process, recipe, tmp_path):
    """LoRA on the language layers; experts, where there are any, are in 4 bits too."""
    settings = (*SHORT, "--dtype", "bfloat16")
    assert attempt(tmp_path, {**ENGINES["zero3"], "arguments": settings}) == [[0, 0]], printed(tmp_path)
    one = one_process(*settings)
    first, second = load_adapter(tmp_path), load_adapter(one)
    assert {name: t.shape for name, t in first.items()} == {name: t.shape for name, t in second.items()}
    assert read_losses(tmp_path) == pytest.approx(read_losses(one), rel=1e-2)
