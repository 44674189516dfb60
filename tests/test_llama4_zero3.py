"""Llama-4 on two CPU processes under ZeRO-3: experts sharded as they are read, trained, saved, resumed, rolled out."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from attempt_samples import load_adapter, printed, read_losses, start_attempts, write_recipe
from conftest import ROOT
from safetensors.torch import load_file
from trajectory_samples import build_tasks, write_trajectories

from demo.tiny_llama4 import build_tiny_llama4
from eval.policy import StepRequest
from eval.predictor import load_model_for_inference
from sft.ledger import load_runs
from sft.memory import EMPTY_MEMORY
from sft.recipe_yaml import load_yaml

ZERO3 = """\
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {zero_stage: 3, zero3_init_flag: true, zero3_save_16bit_model: true}
mixed_precision: "no"
num_machines: 1
num_processes: 2
use_cpu: true
"""
RECIPE = """\
output_dir: {folder}/out
model_name_or_path: {base}
train_csv: {folder}/tasks.csv
dtype: float32
load_in_4bit: false
lora_r: 4
lora_parts: [language, experts]
lora_dropout: 0.0
min_pixels: 16384
max_pixels: 65536
memory_budget_chars: 400
max_prompt_tokens: 2048
max_answer_tokens: 160
tokens_per_batch: 1500
use_cpu: true
bf16: false
max_steps: 4
learning_rate: 1.0e-2
logging_steps: 1
save_strategy: steps
save_steps: 2
report_to: none
gradient_checkpointing: true
"""

TWO_RANKS = {"config": "accelerate_configs/cpu_zero3.yaml"}
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
# Experts, and attention, shared experts and the MLP of layers without experts: layers x matrices x height x width.
EXPERTS = 2 * 4 * 3 * 64 * 128
OTHERS = 4 * (2 * 64 * 64 + 2 * 64 * 32) + 2 * 3 * 64 * 128 + 2 * 3 * 64 * 192


@pytest.fixture(scope="module")
def attempt(tiny_checkpoints, tmp_path_factory):
    pytest.importorskip("deepspeed")
    recipe = write_recipe(tmp_path_factory.mktemp("recipe"), tiny_checkpoints["llama4"])
    with start_attempts(recipe) as attempt:
        yield attempt


def run(*command):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=570
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def launch(folder, *overrides):
    accelerate = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", folder / "zero3.yaml"]
    return run(*accelerate, "sft/run.py", folder / "recipe.yaml", *overrides)


@pytest.fixture(scope="module")
def trained(tiny_checkpoints, tmp_path_factory):
    """The folder of a run of four steps on two ranks, with a checkpoint after two, and what it said."""
    folder = tmp_path_factory.mktemp("zero3")
    write_trajectories(folder, build_tasks(6))
    (folder / "zero3.yaml").write_text(ZERO3)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, base=tiny_checkpoints["llama4"]))
    return folder, launch(folder)


def test_ranks_that_choose_different_experts_train_every_matrix(trained):
    folder, log = trained
    adapter = load_file(folder / "out/adapter_model.safetensors")
    experts = {name for name in adapter if ".experts." in name}
    assert len(experts) == 2 * 4 * 2 * 2  # layers, experts, linears of each, A and B
    assert all(torch.isfinite(tensor).all() and tensor.any() for tensor in adapter.values())
    history = json.loads((folder / "out/trainer_state.json").read_text())["log_history"]
    losses = [row["loss"] for row in history if "loss" in row]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert "experts" in log


def test_two_ranks_resume_where_they_stopped(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "out/checkpoint-2", tmp_path / "out/checkpoint-2")
    launch(folder, "--output_dir", tmp_path / "out", "--resume", "auto")
    whole, resumed = (load_file(path / "out/adapter_model.safetensors") for path in (folder, tmp_path))
    halfway = load_file(folder / "out/checkpoint-2/adapter_model.safetensors")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(halfway[name], tensor) for name, tensor in whole.items())


def test_what_two_ranks_trained_is_rolled_out_by_one_process(trained, tasks, tiny_checkpoints):
    folder, _ = trained
    request = StepRequest("", 0, "Open the study of DOE001", EMPTY_MEMORY, tasks[0].steps[0].image_path)
    tuned = load_model_for_inference(folder / "out").policy.answer([request])[0]
    agent = folder / "out/agent_config.json"
    base = load_model_for_inference(tiny_checkpoints["llama4"], agent_config=agent).policy.answer([request])[0]
    assert tuned.n_answer_tokens > 0 and tuned.prompt_text == base.prompt_text
    assert tuned.text != base.text


def test_maverick_recipe_trains_a_tiny_model_with_experts_in_4_bits(attempt, tmp_path, tasks_csv):
    """bf16 arithmetic and nf4, as the recipe asks: the run ends as one process with the same global batch does."""
    base = build_tiny_llama4(tmp_path / "base", [row["Output"] for row in build_tasks(4)])
    settings = {**TWO_STEPS, "model_name_or_path": base, "train_csv": tasks_csv}
    arguments = [f"--{key}={value}" for key, value in settings.items()]
    recipe = ROOT / "recipes/llama4_maverick.yaml"
    two, one = tmp_path / "two", tmp_path / "one"
    assert attempt(two, {**TWO_RANKS, "arguments": arguments}, recipe=recipe) == [[0, 0]], printed(two)
    accumulated = [*arguments, "--gradient_accumulation_steps=2"]
    assert attempt(one, {"arguments": accumulated}, recipe=recipe) == [0], printed(one)
    assert read_losses(two) == pytest.approx(read_losses(one), rel=1e-2)
    adapter, expected = load_adapter(two), load_adapter(one)
    assert {n: t.shape for n, t in adapter.items()} == {n: t.shape for n, t in expected.items()}
    assert not any(".experts." in n for n in adapter) and any(".shared_expert." in n for n in adapter)
    assert all(t.any() for n, t in adapter.items() if "lora_B" in n)
    for folder in (two, one):
        (record,) = load_runs(folder)
        assert record.figures["quantised_parameters"] == EXPERTS + OTHERS
        assert record.figures["parameters"]["experts"] == {"trainable": 0, "total": EXPERTS}


def test_scout_recipe_has_the_settings_of_mavericks():
    scout, maverick = (load_yaml(ROOT / f"recipes/llama4_{name}.yaml") for name in ("scout", "maverick"))
    assert scout.keys() == maverick.keys()
    assert {k for k in scout if scout[k] != maverick[k]} == {"model_name_or_path", "output_dir"}
