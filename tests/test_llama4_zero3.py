"""Llama-4 on two CPU processes under ZeRO-3: experts sharded as they are read, trained, saved, resumed, rolled out."""

import shutil

import pytest
import torch
from conftest import ROOT
from training_runs import load_adapter, printed, read_losses, write_recipe
from trajectory_samples import build_tasks

from demo.tiny_llama4 import TinyLlama4Size, build_tiny_llama4
from eval.policies.policy import StepRequest
from eval.predictor import load_model_for_inference
from sft.compute.ledger import load_runs
from sft.memory import EMPTY_MEMORY

pytestmark = pytest.mark.slow

ZERO3 = {"config": "accelerate_configs/cpu_zero3.yaml"}
# Experts adapted, which ZeRO-3 takes unquantised only.
LORA = ("--load_in_4bit", "false", "--lora_parts", "[language, experts]", "--gradient_checkpointing", "true")
FOUR_STEPS = ("--lora_dropout", "0", "--max_steps", "4", "--save_steps", "2", "--resume", "auto")
# A published recipe but for its model, data and length, in numbers that tiny weights learn from in two steps.
TWO_STEPS = {
    "val_csv": "null",
    "tokens_per_batch": 700,
    "lora_dropout": 0,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": "false",
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": "true",
}
PUBLISHED = {"maverick": TinyLlama4Size(), "scout": TinyLlama4Size(moe_step=1, qk_norm=True)}
# Experts, attention, shared experts, and the MLP of layers without experts: layers x matrices x height x width.
EXPERTS = {"maverick": 2 * 4 * 3 * 64 * 128, "scout": 4 * 4 * 3 * 64 * 128}
OTHERS = {
    "maverick": 4 * (2 * 64 * 64 + 2 * 64 * 32) + 2 * 3 * 64 * 128 + 2 * 3 * 64 * 192,
    "scout": 4 * (2 * 64 * 64 + 2 * 64 * 32) + 4 * 3 * 64 * 128,
}


@pytest.fixture(scope="module")
def recipe(tiny_checkpoints, tmp_path_factory):
    pytest.importorskip("deepspeed")
    return write_recipe(tmp_path_factory.mktemp("recipe"), tiny_checkpoints["llama4"])


@pytest.fixture(scope="module")
def trained(attempt, tmp_path_factory):
    """The folder of a run of four steps on two ranks, with a checkpoint after two."""
    folder = tmp_path_factory.mktemp("trained")
    assert attempt(folder, {**ZERO3, "arguments": [*LORA, *FOUR_STEPS]}) == [[0, 0]], printed(folder)
    return folder


def test_ranks_that_choose_different_experts_train_every_matrix(trained):
    adapter = load_adapter(trained)
    experts = {name for name in adapter if ".experts." in name}
    assert len(experts) == 2 * 4 * 2 * 2  # layers, experts, linears of each, A and B
    assert all(torch.isfinite(tensor).all() and tensor.any() for tensor in adapter.values())
    losses = read_losses(trained)
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_two_ranks_resume_where_they_stopped(attempt, trained, tmp_path):
    shutil.copytree(trained / "checkpoint-2", tmp_path / "checkpoint-2")
    assert attempt(tmp_path, {**ZERO3, "arguments": [*LORA, *FOUR_STEPS]}) == [[0, 0]], printed(tmp_path)
    whole, resumed = load_adapter(trained), load_adapter(tmp_path)
    halfway = load_adapter(trained / "checkpoint-2")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(halfway[name], tensor) for name, tensor in whole.items())


def test_what_two_ranks_trained_is_rolled_out_by_one_process(trained, tasks, tiny_checkpoints):
    request = StepRequest("", 0, "Open the study of DOE001", EMPTY_MEMORY, tasks[0].steps[0].image_path)
    tuned = load_model_for_inference(trained).policy.answer([request])[0]
    agent = trained / "agent_config.json"
    base = load_model_for_inference(tiny_checkpoints["llama4"], agent_config=agent).policy.answer([request])[0]
    assert tuned.n_answer_tokens > 0 and tuned.prompt_text == base.prompt_text
    assert tuned.text != base.text


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe_trains_a_tiny_model_with_experts_in_4_bits(attempt, tmp_path, tasks_csv, name):
    """bf16 arithmetic and nf4, as the recipe asks: the run ends as one process with the same global batch does."""
    base = build_tiny_llama4(tmp_path / "base", [row["Output"] for row in build_tasks(4)], PUBLISHED[name])
    settings = {**TWO_STEPS, "model_name_or_path": base, "train_csv": tasks_csv}
    arguments = [f"--{key}={value}" for key, value in settings.items()]
    recipe = ROOT / f"recipes/llama4_{name}.yaml"
    two, one = tmp_path / "two", tmp_path / "one"
    assert attempt(two, {**ZERO3, "arguments": arguments}, recipe=recipe) == [[0, 0]], printed(two)
    accumulated = [*arguments, "--gradient_accumulation_steps=2"]
    assert attempt(one, {"arguments": accumulated}, recipe=recipe) == [0], printed(one)
    assert read_losses(two) == pytest.approx(read_losses(one), rel=1e-2)
    adapter, expected = load_adapter(two), load_adapter(one)
    assert {n: t.shape for n, t in adapter.items()} == {n: t.shape for n, t in expected.items()}
    assert not any(".experts." in n for n in adapter) and any(".shared_expert." in n for n in adapter)
    assert all(t.any() for n, t in adapter.items() if "lora_B" in n)
    for folder in (two, one):
        (run,) = load_runs(folder)
        assert run.figures["quantised_parameters"] == EXPERTS[name] + OTHERS[name]
        assert run.figures["parameters"]["experts"] == {"trainable": 0, "total": EXPERTS[name]}
