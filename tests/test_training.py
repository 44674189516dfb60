"""Training end to end on a tiny model: real recipe, real processes, real files, and what was trained in use."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trajectory_samples import build_tasks, write_trajectories

from eval import rollout
from eval.predictor import load_model_for_inference
from sft import run
from sft.batches.collator import PackingCollator, PaddingCollator
from sft.batches.examples import build_step_rows
from sft.data.load import load_trajectories
from sft.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """\
output_dir: {folder}/out
model_name_or_path: {base}
train_csv: {folder}/train/tasks.csv
val_csv: {folder}/val/tasks.csv
dtype: float32
lora_r: 4
lora_dropout: 0.1
min_pixels: 16384
max_pixels: 65536
memory_budget_chars: 400
max_prompt_tokens: 2048
max_answer_tokens: 160
tokens_per_batch: 1500
val_rollout_tasks: 1
use_cpu: true
bf16: false
max_steps: 4
learning_rate: 1.0e-2
logging_steps: 1
eval_strategy: steps
eval_steps: 2
save_strategy: steps
save_steps: 2
report_to: none
seed: 7
gradient_checkpointing: false
"""
SAVED_BESIDE_THE_WEIGHTS = {
    "agent_config.json",
    "recipe.yaml",
    "versions.json",
    "training_data.json",
    "training_curves.png",
    "trainer_state.json",
    "processor_config.json",
    "tokenizer.json",
    "chat_template.jinja",
}


def _write_recipe(folder, base, lines=""):
    write_trajectories(folder / "train", build_tasks(6))
    write_trajectories(folder / "val", build_tasks(2, first=50))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, base=base) + lines)
    return path


def _history(folder, key):
    state = json.loads((folder / "trainer_state.json").read_text())
    return {row["step"]: row[key] for row in state["log_history"] if key in row}


def _adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def _assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def trained(tiny_checkpoints, tmp_path_factory):
    """The folder of one run of four packed QLoRA steps, with validation and checkpoints after two and four."""
    folder = tmp_path_factory.mktemp("run")
    run.main([str(_write_recipe(folder, tiny_checkpoints["qwen3_vl"]))])
    return folder


@pytest.mark.slow
def test_output_folder_holds_all_that_a_rollout_and_a_reader_need(trained):
    names = {path.name for path in (trained / "out").iterdir()}
    assert names >= SAVED_BESIDE_THE_WEIGHTS | {"adapter_model.safetensors", "adapter_config.json"}
    assert not list((trained / "out").rglob("training_args.bin")), "a pickle that nothing reads"
    assert (trained / "out/training_curves.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((trained / "out/training_data.json").read_text())
    assert (data["train"]["n_tasks"], data["train"]["n_steps"], data["val"]["n_tasks"]) == (6, 18, 2)


@pytest.mark.slow
def test_who_can_read_the_other_files_can_read_the_weights(trained):
    files = [path for path in (trained / "out").rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1


@pytest.mark.slow
def test_training_lowers_the_loss_and_validation_logs_loss_and_accuracy(trained):
    losses = _history(trained / "out", "loss")
    assert list(losses) == [1, 2, 3, 4]
    assert losses[4] < losses[1]
    for key in ("eval_loss", "eval_swa", "eval_swa_target"):
        assert list(_history(trained / "out", key)) == [2, 4]


@pytest.mark.slow
def test_adapter_is_finite_and_every_matrix_was_trained(trained):
    for name, tensor in _adapter(trained / "out").items():
        assert torch.isfinite(tensor).all(), name
        assert tensor.any(), name
        assert tensor.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [("--tokens_per_batch", "700"), ("--packing", "none", "--per_device_eval_batch_size", "5")]
)
def test_validation_loss_is_that_of_all_answer_tokens_whatever_the_batches(
    tiny_checkpoints, tmp_path, monkeypatch, settings
):
    """One step with a learning rate that changes nothing, then the loss of the validation steps one by one."""
    batches = []
    for collator in (PackingCollator, PaddingCollator):

        def collate(self, rows, collate=collator.__call__):
            batch = collate(self, rows)
            batches.append((len(rows), batch["input_ids"].numel()))
            return batch

        monkeypatch.setattr(collator, "__call__", collate)
    recipe = _write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"])
    write_trajectories(tmp_path / "val", build_tasks(3, n_steps=4, first=50))
    unchanged = ["--learning_rate", "1e-12", "--val_rollout_tasks", "0", "--max_steps", "1", "--eval_steps", "1"]
    run.main([str(recipe), *unchanged, "--lora_dropout", "0", *settings])
    if "none" in settings:
        assert [n_rows for n_rows, _ in batches[-3:]] == [4, 4, 4]  # of the validation
    else:
        assert len(batches) > 4 and max(n_tokens for _, n_tokens in batches[1:]) <= 700  # the first checks the labels
    found = _history(tmp_path / "out", "eval_loss")[1]

    predictor = load_model_for_inference(str(tmp_path / "out"))
    encoder, model = predictor.policy.encoder, predictor.policy.model
    rows = build_step_rows(load_trajectories(tmp_path / "val/tasks.csv"), "val", encoder).dataset
    total = n_tokens = 0
    for row in rows:
        batch = PaddingCollator(encoder)([row])
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**batch).logits[:, :-1]
        total += torch.nn.functional.cross_entropy(logits[0], labels[0], ignore_index=-100, reduction="sum").item()
        n_tokens += int((labels != -100).sum())
    assert found == pytest.approx(total / n_tokens, rel=1e-5)


@pytest.mark.slow
def test_checkpoint_is_rolled_out_as_it_is_and_known_to_have_seen_its_tasks(trained, tmp_path):
    command = [
        "--model_path",
        str(trained / "out/checkpoint-2"),
        "--max_tasks",
        "1",
        "--output_dir",
        str(tmp_path / "results"),
    ]
    with pytest.raises(UserError, match="tasks that the model was trained on"):
        rollout.main([*command, "--test_csv", str(trained / "train/tasks.csv")])
    rollout.main([*command, "--test_csv", str(trained / "val/tasks.csv"), "--allow_overlap"])
    assert json.loads((tmp_path / "results/metrics.json").read_text())["n_steps"] == 3


@pytest.mark.slow
def test_four_steps_equal_two_and_two_resumed_by_another_process(trained, tmp_path):
    """Through `accelerate launch`, as the README says, from the newest checkpoint of a run that was stopped."""
    out = tmp_path / "out"
    shutil.copytree(trained / "out/checkpoint-2", out / "checkpoint-2")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launch += ["--config_file", "accelerate_configs/cpu.yaml", "sft/run.py", str(trained / "recipe.yaml")]
    arguments = ["--resume", "auto", "--output_dir", str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([*launch, *arguments], cwd=ROOT, env=environment, check=True, timeout=300)
    _assert_equal(_adapter(out), _adapter(trained / "out"))
    assert _history(out, "loss") == _history(trained / "out", "loss")


@pytest.mark.slow
def test_four_padded_steps_equal_two_and_two_resumed(tiny_checkpoints, tmp_path):
    lines = "packing: none\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 2\neval_strategy: 'no'\n"
    recipe = _write_recipe(tmp_path, tiny_checkpoints["qwen2_5_vl"], "")
    recipe.write_text(recipe.read_text().replace("eval_strategy: steps\n", lines))
    run.main([str(recipe)])
    first = _adapter(tmp_path / "out")
    checkpoint = tmp_path / "out/checkpoint-2"
    run.main([str(recipe), "--output_dir", f"{tmp_path}/again", "--resume", str(checkpoint)])
    _assert_equal(_adapter(tmp_path / "again"), first)


@pytest.mark.slow
def test_best_checkpoint_by_swa_is_kept_and_the_run_stops_early(tiny_checkpoints, tmp_path, monkeypatch):
    scores = iter([0.1, 0.9, 0.5, 0.5, 0.95, 0.95])
    monkeypatch.setattr(
        "eval.rollouts.validation.build_validation_rollout", lambda *_: lambda model: {"swa": next(scores)}
    )
    lines = "load_best_model_at_end: true\nmetric_for_best_model: swa\nearly_stopping_patience: 2\n"
    recipe = _write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"], lines)
    run.main([str(recipe), "--max_steps", "6", "--eval_steps", "1", "--save_steps", "1"])
    out = tmp_path / "out"
    assert _history(out, "eval_swa") == {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.5}
    state = json.loads((out / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).name == "checkpoint-2"
    _assert_equal(_adapter(out), _adapter(out / "checkpoint-2"))


def test_adapter_of_a_4_bit_model_in_bf16_is_trained_in_fp32(tiny_checkpoints, tmp_path):
    recipe = _write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"])
    in_bf16 = ["--dtype", "bfloat16", "--bf16", "true", "--max_steps", "1", "--eval_strategy", "no"]
    run.main([str(recipe), *in_bf16, "--learning_rate", "1e-6"])
    adapter = _adapter(tmp_path / "out")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    changed = torch.cat([tensor.flatten() for name, tensor in adapter.items() if "lora_B" in name])
    assert changed.abs().max() == pytest.approx(1e-6, rel=0.01)  # Adam's first step


def test_run_in_which_nothing_is_learned_is_not_passed_off_as_trained(tiny_checkpoints, tmp_path):
    recipe = _write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"])
    with pytest.raises(UserError, match="found every lora_B zero; expected a trained adapter"):
        run.main([str(recipe), "--max_steps", "1", "--learning_rate", "0", "--eval_strategy", "no"])


@pytest.mark.slow
def test_full_fine_tuning_saves_a_model_that_is_rolled_out(tiny_checkpoints, tmp_path, tasks):
    recipe = _write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"])
    full = ["--use_peft", "false", "--load_in_4bit", "false", "--max_steps", "2", "--val_rollout_tasks", "0"]
    run.main([str(recipe), *full])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= SAVED_BESIDE_THE_WEIGHTS | {"model.safetensors", "config.json"}
    before = load_file(tiny_checkpoints["qwen3_vl"] / "model.safetensors")
    after = load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"lm_head.weight", "model.visual.blocks.0.attn.qkv.weight"} <= changed
    prediction = load_model_for_inference(tmp_path / "out").predict_step(tasks[0].steps[0].image_path, "Open it")
    assert prediction.parse_status in ("ok", "no_json", "no_action", "truncated")


@pytest.mark.slow
def test_trained_folder_answers_steps_in_python(trained, tasks):
    predictor = load_model_for_inference(model_path=trained / "out")
    step = tasks[0].steps[0]
    memory = {"last_action": "CLICK"}
    prediction = predictor.predict_step(
        image_path=str(step.image_path), user_goal="Open it", short_term_memory=memory, long_term_memory={}
    )
    assert isinstance(prediction.raw_text, str)
    if prediction.action is None:
        assert prediction.parse_status in ("no_json", "no_action", "truncated")
        assert (prediction.short_term_memory, prediction.long_term_memory) == (memory, {})
    again = predictor.predict_step(image_path=step.image_path, user_goal="Open it", short_term_memory=memory)
    assert again == prediction
    with pytest.raises(ValueError, match="found no file "):
        predictor.predict_step(image_path="none.png", user_goal="Open it")


@pytest.mark.slow
def test_adapter_answers_as_the_model_in_memory_did(trained, tiny_checkpoints, tasks):
    """What is reopened is the adapter: with another one the same prompt is answered otherwise."""
    from eval.policies.policy import StepRequest
    from sft.memory import EMPTY_MEMORY

    request = StepRequest("", 0, "Open it", EMPTY_MEMORY, tasks[0].steps[0].image_path)
    texts = {}
    for name in ("out", "out/checkpoint-2"):
        folder = trained / name
        for file in ("agent_config.json", "recipe.yaml", "processor_config.json"):
            if not (folder / file).exists():
                shutil.copy(trained / "out" / file, folder)
        texts[name] = load_model_for_inference(folder).policy.answer([request])[0].text
    assert texts["out"] != texts["out/checkpoint-2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: found no such file"),
        (lambda f: os.truncate(f / "adapter_model.safetensors", 9_000), "found a damaged file"),
        (lambda f: (f / "adapter_config.json").unlink(), "found neither adapter_config.json nor config.json"),
        (lambda f: (f / "agent_config.json").unlink(), "agent_config.json: found no such file"),
        (lambda f: (f / "recipe.yaml").unlink(), "recipe.yaml: found no such file"),
    ],
    ids=["no weights", "truncated weights", "training never ended", "no agent", "no recipe"],
)
def test_incomplete_model_folder_is_refused(trained, tmp_path, damage, message):
    folder = shutil.copytree(trained / "out", tmp_path / "out", ignore=shutil.ignore_patterns("checkpoint-*"))
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_model_for_inference(folder)


@pytest.mark.slow
def test_adapter_on_a_base_it_does_not_fit_is_refused(trained, tmp_path):
    from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint

    for size in (TinySize(layers=3), TinySize(intermediate=192)):
        base = build_tiny_checkpoint(tmp_path / str(size.layers), ["other"], size=size)
        with pytest.raises(UserError, match="does not fit its base model|they differ in"):
            load_model_for_inference(trained / "out", base_model_name=str(base))
