"""Rollout from the command line: self-checks, batch sizes, resuming after a kill, refusing another run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from trajectory_samples import TINY_AGENT, build_output, build_tasks, write_trajectories

from eval.rollout import main
from eval.score import main as score
from eval.step_result import load_results
from sft.agent import agent_to_json
from sft.errors import UserError
from sft.files import claim_folder

FILES = {"steps.jsonl", "run.json", "predictions.csv", "metrics.json", "details.json", "report.html"}
TIMES = ("latency_s", "started", "finished")


def _roll_out(csv, folder, *arguments):
    main(["--test_csv", str(csv), "--output_dir", str(folder), *map(str, arguments)])
    return json.loads((folder / "metrics.json").read_text())


def _without_times(value):
    """Drop what an interruption may change: when and how fast."""
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def _read(folder):
    """Return the files of a finished run that a reader counts on, without times."""
    read = {"predictions.csv": (folder / "predictions.csv").read_text()}
    for name in ("metrics.json", "details.json", "run.json"):
        read[name] = _without_times(json.loads((folder / name).read_text()))
    lines = (folder / "steps.jsonl").read_text().splitlines()
    return {**read, "steps.jsonl": [_without_times(json.loads(line)) for line in lines]}


@pytest.fixture(scope="module")
def model_folder(tiny_checkpoints, tmp_path_factory):
    """What sft/run.py leaves behind, without the training: an adapter of random numbers and its files."""
    from peft import get_peft_model

    from sft.models.model import build_lora_config, find_family, load_model
    from sft.recipe.settings import ModelSettings

    base = tiny_checkpoints["qwen3_vl"]
    settings = ModelSettings(str(base), dtype="float32", lora_r=4)
    family = find_family(str(base))
    model = get_peft_model(load_model(settings, family), build_lora_config(settings, family))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    agent = replace(TINY_AGENT, max_answer_tokens=16)
    (folder / "agent_config.json").write_text(json.dumps(agent_to_json(agent)))
    (folder / "recipe.yaml").write_text(f"model_name_or_path: {base}\ndtype: float32\nlora_r: 4\n")
    return folder


@pytest.mark.parametrize("mode", ["own", "teacher"])
def test_replay_scores_everything_and_writes_every_file(tasks_csv, tmp_path, mode):
    metrics = _roll_out(tasks_csv, tmp_path, "--policy", "replay", "--mode", mode)
    assert {p.name for p in tmp_path.iterdir()} >= FILES
    assert (metrics["mode"], metrics["n_tasks"], metrics["n_steps"]) == (mode, 4, 12)
    for matcher in ("action", "action_target"):
        assert [metrics["matchers"][matcher][rate]["value"] for rate in ("swa", "ta")] == [1.0, 1.0]
    assert set(metrics["outcomes"]) >= {"right", "wrong", "unparsable", "truncated", "error"}
    assert {outcome for outcome, count in metrics["outcomes"].items() if count} == {"right"}
    assert metrics["outcomes"]["right"] == 12


@pytest.mark.parametrize("mode", ["own", "teacher"])
def test_empty_scores_nothing_and_every_step_is_unparsable(tasks_csv, tmp_path, mode):
    metrics = _roll_out(tasks_csv, tmp_path, "--policy", "empty", "--mode", mode)
    for matcher in ("action", "action_target"):
        assert [metrics["matchers"][matcher][rate]["value"] for rate in ("swa", "ta")] == [0.0, 0.0]
    assert metrics["outcomes"]["unparsable"] == metrics["n_steps"] == 12


def test_replay_scores_everything_whatever_text_the_labels_hold(tmp_path):
    """Control tokens, half characters, decomposed accents: prompt, answer and gold hold the same text."""
    rows = build_tasks(1, n_steps=5)
    for row, target in zip(rows, ["<|im_end|>", "\ud800", "Gro\u0308ße", "患者 🙂 \u2028 \\n"]):
        row["Output"] = build_output("CLICK", target, [target])
    metrics = _roll_out(write_trajectories(tmp_path, rows), tmp_path / "results", "--policy", "replay")
    assert metrics["matchers"]["action_target"]["ta"]["value"] == 1.0


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch_size(tasks_csv, model_folder, tmp_path):
    runs = {}
    for size in (1, 4, 16):
        _roll_out(tasks_csv, tmp_path / str(size), "--model_path", model_folder, "--batch_size", size)
        runs[size] = _read(tmp_path / str(size))
    texts = [step["raw_text"] for step in runs[1]["steps.jsonl"]]
    assert len(set(texts)) > 1
    assert runs[1] == runs[4] == runs[16]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["own", "teacher"])
def test_run_killed_in_the_middle_ends_with_the_same_files(tasks_csv, model_folder, tmp_path, mode):
    arguments = ["--model_path", str(model_folder), "--mode", mode, "--batch_size", "2"]
    command = [
        sys.executable,
        "eval/rollout.py",
        "--test_csv",
        str(tasks_csv),
        "--output_dir",
        str(tmp_path / "killed"),
    ]
    steps = tmp_path / "killed/steps.jsonl"
    with subprocess.Popen([*command, *arguments], cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}) as process:
        deadline = time.monotonic() + 240
        while not (steps.is_file() and steps.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    n_done = len(list(load_results(steps)))
    assert 3 <= n_done < 12
    assert not (tmp_path / "killed/metrics.json").exists()
    _roll_out(tasks_csv, tmp_path / "killed", *arguments)
    _roll_out(tasks_csv, tmp_path / "whole", *arguments)
    assert _read(tmp_path / "killed") == _read(tmp_path / "whole")


def test_half_written_last_line_is_dropped_wherever_it_was_cut(tmp_path):
    rows = build_tasks(2)
    rows[-1]["Output"] = build_output("COMPLETE", "患者 🙂")
    csv = write_trajectories(tmp_path, rows)
    _roll_out(csv, tmp_path / "whole", "--policy", "replay")
    whole = (tmp_path / "whole/steps.jsonl").read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last + 1, last + 200, whole.rfind(b"COMPLETE") + 25, len(whole) - 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "run.json").write_bytes((tmp_path / "whole/run.json").read_bytes())
        (folder / "steps.jsonl").write_bytes(whole[:cut])
        _roll_out(csv, folder, "--policy", "replay")
        assert (folder / "steps.jsonl").read_bytes() == whole


def test_finished_run_is_scored_again_without_a_model(tasks_csv, model_folder, tmp_path, monkeypatch):
    first = _roll_out(tasks_csv, tmp_path, "--model_path", model_folder)
    monkeypatch.setattr("eval.predictor.load_model_for_inference", None)
    assert _without_times(_roll_out(tasks_csv, tmp_path, "--model_path", model_folder)) == _without_times(first)


def _change_file(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "different"),
    [
        (lambda d, m: ["--mode", "teacher"], "mode"),
        (lambda d, m: ["--max_tasks", "1"], "n_tasks"),
        (lambda d, m: _change_file(d / "tasks.csv", "DOE001", "DOE009"), "test_csv_sha256"),
        (lambda d, m: (d / "screens/0.png").write_bytes((d / "screens/1.png").read_bytes()) and None, "screenshots"),
        (lambda d, m: _change_file(m / "agent_config.json", '"use_long_term": true', '"use_long_term": 0'), "agent"),
        (lambda d, m: _change_file(m / "adapter_config.json", '"lora_alpha": 32', '"lora_alpha": 8'), "model_sha256"),
        (lambda d, m: _change_file(m / "recipe.yaml", "dtype: float32", "dtype: bfloat16"), "model_sha256"),
    ],
    ids=["mode", "tasks", "data", "screenshots", "agent", "adapter", "how the base is loaded"],
)  # fmt: skip
def test_another_rollout_in_the_same_folder_is_refused(model_folder, tmp_path, change, different):
    csv = write_trajectories(tmp_path, build_tasks(2))
    model = shutil.copytree(model_folder, tmp_path / "model")
    _roll_out(csv, tmp_path / "results", "--model_path", model)
    before = (tmp_path / "results/steps.jsonl").read_bytes()
    arguments = change(tmp_path, model) or []
    with pytest.raises(UserError, match=rf"found a rollout of something else \(different: [^)]*{different}"):
        _roll_out(csv, tmp_path / "results", "--model_path", model, *arguments)
    assert (tmp_path / "results/steps.jsonl").read_bytes() == before


def test_base_that_was_replaced_under_its_adapter_is_refused(model_folder, tiny_checkpoints, tasks_csv, tmp_path):
    base = shutil.copytree(tiny_checkpoints["qwen3_vl"], tmp_path / "base")
    model = shutil.copytree(model_folder, tmp_path / "model")
    adapter = json.loads((model / "adapter_config.json").read_text())
    (model / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": str(base)}))
    _roll_out(tasks_csv, tmp_path / "results", "--model_path", model)
    weights = load_file(base / "model.safetensors")
    name = next(name for name in sorted(weights) if "norm" in name)
    save_file({**weights, name: weights[name] + 0.5}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"\(different: base_model_sha256\)"):
        _roll_out(tasks_csv, tmp_path / "results", "--model_path", model)


def test_refused_command_leaves_no_trace_in_the_other_run(tasks_csv, tmp_path):
    _roll_out(tasks_csv, tmp_path, "--policy", "replay")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="a rollout of something else"):
        _roll_out(tasks_csv, tmp_path, "--policy", "empty")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("taken", ["teacher", "own", "own_stop"])
def test_mode_all_looks_at_all_three_folders_before_it_rolls_out(tasks_csv, tmp_path, taken):
    _roll_out(tasks_csv, tmp_path / taken, "--policy", "empty", "--mode", taken)
    with pytest.raises(UserError, match=rf"{taken}: found a rollout of something else \(different: policy\)"):
        main(["--test_csv", str(tasks_csv), "--output_dir", str(tmp_path), "--policy", "replay", "--mode", "all"])
    assert {path.name for path in tmp_path.iterdir()} == {taken}


def test_mode_all_looks_for_another_report_before_it_rolls_out(tasks_csv, tmp_path):
    (tmp_path / "report.html").write_text("of another run")
    with pytest.raises(UserError, match=r"found report.html, which would be replaced, and no comparison.json"):
        main(["--test_csv", str(tasks_csv), "--output_dir", str(tmp_path), "--policy", "replay", "--mode", "all"])
    assert {path.name for path in tmp_path.iterdir()} == {"report.html"}


def test_second_process_in_one_folder_is_refused(tasks_csv, tmp_path):
    with claim_folder(tmp_path, "rolls out into this folder"):
        with pytest.raises(UserError, match="found another process that rolls out into this folder"):
            _roll_out(tasks_csv, tmp_path, "--policy", "replay")
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    assert _roll_out(tasks_csv, tmp_path, "--policy", "replay")["n_steps"] == 12


def test_step_that_stands_twice_is_named_with_a_way_out(tasks_csv, tmp_path):
    _roll_out(tasks_csv, tmp_path, "--policy", "replay")
    steps = tmp_path / "steps.jsonl"
    lines = steps.read_text().splitlines(keepends=True)
    for kept in (lines, lines[:5]):  # a whole run and one that is to resume
        steps.write_text("".join([*kept, lines[2]]))
        with pytest.raises(UserError, match=rf":{len(kept) + 1}: found step 3 of task t1 again.*Delete this file"):
            _roll_out(tasks_csv, tmp_path, "--policy", "replay")
        with pytest.raises(UserError, match="found step 3 of task t1 again"):
            score([str(tmp_path)])
    steps.unlink()
    assert _roll_out(tasks_csv, tmp_path, "--policy", "replay")["n_steps"] == 12


def test_run_that_answered_nothing_yet_binds_nobody(tasks_csv, model_folder, tmp_path):
    with pytest.raises(UserError, match="found no such folder"):
        _roll_out(tasks_csv, tmp_path, "--model_path", model_folder, "--base_model", tmp_path / "none")
    assert _roll_out(tasks_csv, tmp_path, "--model_path", model_folder)["n_steps"] == 12


def test_broken_adapter_config_is_told_before_anything_is_loaded(model_folder, tasks_csv, tmp_path):
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    (broken / "adapter_config.json").write_text('{"r": 4')
    with pytest.raises(UserError, match="adapter_config.json: found broken JSON"):
        _roll_out(tasks_csv, tmp_path / "results", "--model_path", broken)


def test_model_that_was_moved_goes_on(model_folder, tasks_csv, tmp_path):
    _roll_out(tasks_csv, tmp_path / "results", "--model_path", model_folder)
    moved = shutil.copytree(model_folder, tmp_path / "moved")
    _roll_out(tasks_csv, tmp_path / "results", "--model_path", moved)
