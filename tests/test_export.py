"""Merge and model card on a real training: what is written, what it weighs in memory, and what the card says."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from huggingface_hub import ModelCard
from safetensors.numpy import save_file
from safetensors.torch import load_file
from test_training import _write_recipe
from training_runs import SECRETS, find_secrets

from eval import rollout
from eval.predictor import load_model_for_inference
from eval.score import merge as merge_shards
from sft import run
from sft.agent import PROMPT_VERSION
from sft.compute import __main__ as compute
from sft.compute.ledger import load_runs
from sft.errors import UserError
from sft.export import __main__ as export
from sft.export.merge import Adapter, list_weights, merge_weights
from sft.training.card import BEGIN, END, write_card

# So little trained a model never ends its answer: each runs to the limit. Without memory a right one is short.
SHORT_ANSWERS = ("--memory_writer", "rule", "--max_answer_tokens", "32")
# Peak of the resident set over a merge, the imports' own memory taken off, in bytes.
MEASURE = """
import sys
from pathlib import Path
import torch
from sft.export import merge
from sft.export.merge import Adapter, merge_weights

def read(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return 1024 * int(line.split()[1])

base, out, shard = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
merge.MAX_SHARD_BYTES = shard
n = 1600
deltas = {f"layers.{i}.weight": (torch.ones(4, n), torch.ones(n, 4)) for i in range(32)}
Path("/proc/self/clear_refs").write_text("5")
before = read("VmRSS")
merge_weights(base, Adapter(0.5, deltas, {}), out, torch.float32)
print(read("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def project(tiny_checkpoints, tmp_path_factory):
    """A folder with a QLoRA training that also trains the output layer, and its export with both checks."""
    folder = tmp_path_factory.mktemp("export")
    recipe = _write_recipe(folder, tiny_checkpoints["qwen3_vl"], "lora_modules_to_save: [lm_head]\n")
    run.main([str(recipe), "--max_steps", "3", "--eval_strategy", "no", "--val_rollout_tasks", "0", *SHORT_ANSWERS])
    csv = str(folder / "val/tasks.csv")
    export.main(["--model_path", f"{folder}/out", "--to", f"{folder}/merged", "--check_csv", csv, "--max_tasks", "1"])
    return folder


@pytest.mark.slow
def test_merged_model_is_the_adapter_on_the_unquantised_base(project):
    rows = {row["form"]: row for row in json.loads((project / "merged/export_report.json").read_text())["logits"]}
    assert rows["adapter on the float32 base"]["max_gap"] < 1e-4
    assert rows["adapter on the float32 base"]["same_choice"] == 1
    assert rows["adapter on the 4-bit base"]["mean_gap"] > 1e-3, "quantisation is what the merge leaves behind"


@pytest.mark.slow
def test_difference_in_accuracy_has_an_interval(project):
    rollout_report = json.loads((project / "merged/export_report.json").read_text())["rollout"]
    rate = rollout_report["action"]["swa"]["difference"]
    assert rollout_report["n_steps"] == 3
    assert rate["low"] <= rate["value"] <= rate["high"]


@pytest.mark.slow
def test_export_is_a_full_model_folder_without_an_adapter(project, tiny_checkpoints):
    names = {path.name for path in (project / "merged").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "agent_config.json",
    } <= names
    assert not {"adapter_config.json", "adapter_model.safetensors", "compute_ledger.jsonl"} & names
    assert set(list_weights(project / "merged")) == set(list_weights(tiny_checkpoints["qwen3_vl"]))
    assert not list(project.glob(".merged.partial-*"))


@pytest.mark.slow
def test_export_refuses_a_folder_that_holds_something_and_a_base_that_does_not_fit(project, tmp_path):
    from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint

    arguments = ["--model_path", str(project / "out"), "--to"]
    with pytest.raises(UserError, match="found something there; expected a new or empty folder"):
        export.main([*arguments, str(project / "merged")])
    base = build_tiny_checkpoint(tmp_path / "base", ["other"], size=TinySize(intermediate=192))
    with pytest.raises(UserError, match="expected the base model the adapter was trained on"):
        export.main([*arguments, str(tmp_path / "merged"), "--base_model", str(base)])
    assert not (tmp_path / "merged").exists()


def test_sum_is_formed_in_fp32_and_rounded_once_to_the_format_asked_for(tmp_path):
    """bfloat16 has 1 and 1.0078125 and nothing between: 1.003 + 0.001 is nearer the second, 1.003 nearer the first."""
    weights = {"layer.weight": np.full((2, 2), 1.003, np.float32), "norm.weight": np.full(2, 1.003, np.float32)}
    save_file({**weights, "count": np.array([7])}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"text_config": {"dtype": "float32"}}')
    adapter = Adapter(0.5, {"layer.weight": (torch.ones(1, 2), torch.full((2, 1), 0.002))}, {})
    (tmp_path / "out").mkdir()
    merge_weights(tmp_path, adapter, tmp_path / "out", torch.bfloat16)
    merged = {name: tensor.tolist() for name, tensor in load_file(tmp_path / "out/model.safetensors").items()}
    assert merged == {"layer.weight": [[1.0078125] * 2] * 2, "norm.weight": [1.0, 1.0], "count": [7]}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}


@pytest.mark.slow
def test_merge_takes_the_memory_of_two_shards_and_not_of_the_model(tmp_path):
    """32 weights of 10 MB in 8 files, merged into shards of 41 MB; an 8B model has shards of 2 GB."""
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    weight = np.zeros((1600, 1600), np.float32)
    file_of = {f"layers.{i}.weight": f"model-{i // 4}.safetensors" for i in range(32)}
    for file in set(file_of.values()):
        save_file({name: weight for name in file_of if file_of[name] == file}, base / file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    (base / "config.json").write_text("{}")
    shard = 4 * weight.nbytes + 1000
    command = [sys.executable, "-c", MEASURE, str(base), str(out), str(shard)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peak = int(finished.stdout)
    print(
        f"peak {peak / 1e6:.0f} MB over a model of {32 * weight.nbytes / 1e6:.0f} MB, shards of {shard / 1e6:.0f} MB"
    )
    assert peak < 2 * shard + 5 * weight.nbytes
    names = sorted(path.name for path in out.glob("*.safetensors"))
    assert names == [f"model-{i:05}-of-00008.safetensors" for i in range(1, 9)]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == 32 and index["metadata"]["total_size"] == 32 * weight.nbytes


@pytest.mark.slow
def test_card_of_a_training_is_ours_and_valid(project):
    """TRL and peft write cards of their own while saving; what is left says what was trained, and on what."""
    text = (project / "out/README.md").read_text()
    card = ModelCard(text)
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "image-text-to-text")
    assert yaml.safe_load(text.split("---")[1])["tags"][:2] == ["gui-agent", "clinical-software"]
    data = json.loads((project / "out/training_data.json").read_text())
    for wanted in (
        data["train"]["sha256"],
        "lora_r: 4",
        f"Prompt version {PROMPT_VERSION}",
        "GPU hours",
        "kWh",
        "## Limits",
    ):
        assert wanted in text
    assert "More Information Needed" not in text and "This model is a fine-tuned version of" not in text
    assert str(project) not in text


@pytest.mark.slow
def test_rollout_enters_its_results_and_keeps_what_a_person_wrote(project):
    path = project / "out/README.md"
    path.write_text(path.read_text().replace("---\n", "---\nlicense: apache-2.0\n", 1) + "\n## Our ward\n")
    command = ["--model_path", str(project / "out"), "--test_csv", str(project / "val/tasks.csv"), "--mode", "all"]
    rollout.main([*command, "--output_dir", str(project / "results"), "--allow_overlap", "--max_tasks", "1"])
    text = path.read_text()
    (record,) = load_runs(project / "results")
    assert record.figures["steps"] == 6, "both modes on one loaded model"
    assert text.rstrip().endswith("## Our ward") and text.count(BEGIN) == text.count(END) == 1
    assert "license: apache-2.0" in text and "Exposure gap on tasks.csv" in text
    assert re.search(r"\| tasks.csv, 1 tasks, 3 steps \| own \| action_target \| [\d.]+ \[", text)
    assert re.search(r"Not unseen: the model was (trained on|chosen by) 1 of these tasks\.\*\*", text)
    assert ModelCard(text).data.eval_results is None  # hence no result for the Hub
    gap = json.loads((project / "results/comparison.json").read_text())["matchers"]["action"]["swa"]["difference"]
    assert f"paired by task: {100 * gap['value']:+.1f} [{100 * gap['low']:+.1f}, " in text


@pytest.mark.slow
def test_secrets_of_the_environment_are_in_no_file_and_no_output(project, tmp_path, monkeypatch, capfd):
    """Of a rollout, the model card it enters its results into, an export and the compute report."""
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    model = shutil.copytree(project / "out", tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    command = ["--model_path", str(model), "--test_csv", str(project / "val/tasks.csv"), "--allow_overlap"]
    rollout.main([*command, "--output_dir", str(tmp_path / "results"), "--max_tasks", "1"])
    export.main(["--model_path", str(model), "--to", str(tmp_path / "merged")])
    compute.main([str(tmp_path)])
    assert find_secrets(tmp_path, *capfd.readouterr()) == []
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert {"results/steps.jsonl", "results/report.html", "results/compute_ledger.jsonl"} <= written
    assert {"model/README.md", "merged/export_report.json", "compute_report.md"} <= written


@pytest.mark.slow
def test_merged_shards_enter_their_results_and_shards_do_not(project, tmp_path, capsys):
    model = shutil.copytree(project / "out", tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    card = model / "README.md"
    before = card.read_text()
    command = ["--model_path", str(model), "--test_csv", str(project / "val/tasks.csv"), "--allow_overlap"]
    shards = [str(tmp_path / f"shard{i}") for i in range(2)]
    for i, shard in enumerate(shards):
        rollout.main([*command, "--output_dir", shard, "--num_shards", "2", "--shard", str(i)])
    assert card.read_text() == before
    merge_shards([str(tmp_path / "whole"), *shards])
    after = card.read_text()
    swa = json.loads((tmp_path / "whole/metrics.json").read_text())["matchers"]["action"]["swa"]
    shown = f"{100 * swa['value']:.1f} [{100 * swa['low']:.1f}, {100 * swa['high']:.1f}]"
    assert f"| tasks.csv, 2 tasks, 6 steps | own | action | {shown} |" in after
    recipe = model / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("dtype: float32", "dtype: bfloat16"))
    merge_shards([str(tmp_path / "late"), *reversed(shards)])
    assert card.read_text() == after
    assert f"{model}: not the model that was rolled out, or not here" in capsys.readouterr().out


@pytest.mark.slow
def test_results_of_other_weights_leave_the_card(project, tmp_path):
    model = shutil.copytree(project / "out", tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    command = ["--model_path", str(model), "--test_csv", str(project / "val/tasks.csv"), "--allow_overlap"]
    rollout.main([*command, "--output_dir", str(tmp_path / "results"), "--max_tasks", "1"])
    folder = shutil.copytree(project / "merged", tmp_path / "merged")
    (folder / "evaluations.jsonl").unlink(missing_ok=True)
    shutil.copy(model / "evaluations.jsonl", folder)
    write_card(folder)
    assert "None yet: roll the model out" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_exported_model_answers_a_step(project, tasks):
    prediction = load_model_for_inference(project / "merged").predict_step(tasks[0].steps[0].image_path, "Open it")
    assert prediction.raw_text
