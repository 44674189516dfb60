"""The program for the first minutes on a GPU, run on the CPU with tiny models; and what is packed for it."""

import json
import math
import os
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from bitsandbytes.nn import Params4bit
from conftest import ROOT
from safetensors import safe_open
from transformers import Trainer

from benchmarks import clocks
from benchmarks.gpu import training
from benchmarks.gpu.base_8b import fill_random, random_weights, use_8b_shapes, write_base, write_zero_weights
from benchmarks.gpu.recipe_step import measure
from benchmarks.gpu.strip_wheel import strip_wheel
from benchmarks.gpu.tasks import write_tasks
from benchmarks.machine import read_commit
from benchmarks.sides import VOCAB, read_demo_texts
from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint
from sft.data.load import load_trajectories
from sft.models.model import find_family, load_model
from sft.recipe.settings import ModelSettings

PARTS = ("attention", "training_8", "profile", "memory", "rollout", "smoke", "training_forms", "training_1", "experts")


def run(*arguments, python=sys.executable):
    command = ["bash", ROOT / "benchmarks/gpu/run.sh", *arguments]
    environment = {**os.environ, "PYTHON": str(python)}
    return subprocess.run(command, capture_output=True, text=True, timeout=1300, env=environment)


@pytest.mark.slow
def test_whole_run_leaves_a_result_of_every_part(tmp_path):
    finished = run(tmp_path, "--tiny", "--minutes", "20")
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    assert {file.name for file in tmp_path.iterdir()} == {*(f"gpu_{part}.json" for part in PARTS), "run.log"}
    results = {part: json.loads((tmp_path / f"gpu_{part}.json").read_text()) for part in PARTS}
    for result in results.values():
        machine = result["machine"]
        assert machine["cpu"] and machine["date"] and machine["commit"] == read_commit()
        assert machine["versions"]["torch"] == torch.__version__
    rows = {part: result["rows"] for part, result in results.items()}

    ways = {row["way"] for row in rows["attention"]}
    assert ways == {"two calls", "node loop", "dense mask"}  # FlexAttention has no backward pass on a CPU
    assert len(rows["attention"]) == 4 * len(ways)
    errors = [value for row in rows["attention"] for name, value in row.items() if name.startswith("error_")]
    assert len(errors) == 2 * 4 * len(ways) and max(errors) < 1e-5

    training, rollout = rows["smoke"]
    assert (training["command"], training["exit_code"], training["steps"]) == ("sft/run.py", 0, 3)
    assert (rollout["command"], rollout["exit_code"], rollout["steps"]) == ("eval/rollout.py", 0, 23)
    assert training["outcome"] == rollout["outcome"] == "finished"

    check_sides(rows["training_8"], shared=8)
    check_sides(rows["training_1"], shared=1)

    forms = rows["training_forms"]
    measured = [(row["checkpointing"], row["compiled"]) for row in forms]
    assert measured == [("true", "off"), ("true", "on"), ("selective", "on"), ("false", "on")]
    assert len({round(row["loss"], 4) for row in forms}) == 1 and all(row["n_timed"] == 3 for row in forms)

    (memory,) = rows["memory"]
    assert (memory["steps"], memory["cap_gb"], memory["note"], memory["peak_gpu_gb"]) == (3, 40, "", None)
    assert memory["tokens"] > 1000

    operations = [row for row in rows["profile"] if row["kind"] == "operation"]
    assert len(operations) == 25
    assert [row["ms"] for row in operations] == sorted((row["ms"] for row in operations), reverse=True)
    assert "aten::mm" in {row["name"] for row in operations}
    assert sum(row["share"] for row in operations) < 1

    (answered,) = rows["rollout"]
    assert (answered["batch_size"], answered["steps"]) == (16, 96)
    assert 7 < answered["answer_tokens_a_step"] <= 8  # a random model may end one
    assert {row["form"] for row in rows["experts"]} == {"published", "4-bit parameters", "4-bit linears"}


def check_sides(rows, shared):
    """Packed and stock trained steps of the same tasks; where a screenshot is shared, packed on fewer tokens."""
    packed, stock = rows
    assert (packed["side"], stock["side"], stock["ratio"]) == ("packed", "stock", 1)
    assert packed["steps_a_screenshot"] == stock["steps_a_screenshot"] == shared
    assert packed["ratio"] == pytest.approx(packed["steps_a_s"] / stock["steps_a_s"])
    assert packed["tflops"] > 0 and packed["measured_by_formula"] == pytest.approx(1, abs=0.2)
    assert all(row["note"] == "" and math.isfinite(row["loss"]) and row["n_timed"] == 3 for row in rows)
    tokens = [row["tokens_a_s"] / row["steps_a_s"] for row in rows]
    assert tokens[0] < (0.6 if shared == 8 else 0.8) * tokens[1]  # the system message is shared in any case


@pytest.mark.slow
def test_run_ends_on_time_and_says_what_it_left_out(tmp_path):
    started = time.monotonic()
    finished = run(tmp_path, "--tiny", "--minutes", "0.2")
    assert time.monotonic() - started < 60
    assert finished.returncode == 1
    assert "a Maverick layer of experts: not started, no time left" in (tmp_path / "run.log").read_text()


@pytest.mark.slow
def test_only_the_chosen_parts_run(tmp_path):
    finished = run(tmp_path, "--tiny", "--only", "attention")
    assert finished.returncode == 0
    assert {file.name for file in tmp_path.iterdir()} == {"gpu_attention.json", "run.log"}
    refused = run(tmp_path, "--tiny", "--only", "attention,speed")
    assert refused.returncode == 2
    assert refused.stderr.startswith("--only: found speed; expected some of attention,training,profile,")


@pytest.mark.slow
def test_run_without_a_gpu_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    finished = run(tmp_path)
    assert (finished.returncode, finished.stderr.strip()) == (2, "found no CUDA GPU; expected one, or --tiny")


def test_missing_packages_are_named_before_anything_runs(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # the standard library alone
    bare.chmod(0o755)
    finished = run(tmp_path / "out", "--tiny", python=bare)
    assert finished.returncode == 2
    assert finished.stderr.startswith("found no torch, transformers, peft")
    assert "pack.sh" in finished.stderr


def test_row_of_the_other_side_is_kept(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"rows": [{"side": "packed", "steps_a_s": 6.0}, {"side": "stock", "steps_a_s": 1.0}]}))
    rows = training.add_row(file, {"side": "stock", "steps_a_s": 2.0})
    assert [(row["side"], row["ratio"]) for row in rows] == [("packed", 3), ("stock", 1)]
    assert [row["ratio"] for row in training.add_row(file, {"side": "stock", "note": "out of memory"})] == [None, None]


def test_clock_waits_for_the_gpu_at_both_ends_of_a_step(monkeypatch):
    """A clock that moves only while Python waits for the GPU: what a step left to it is in the step's time."""
    now = [0.0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: now.append(now[-1] + 1))
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now[-1])
    monkeypatch.setattr(Trainer, "__init__", lambda self: None)
    monkeypatch.setattr(Trainer, "add_callback", lambda self, callback: None)
    clock = clocks.Clock(Trainer())
    clock.on_step_begin()
    clock.on_step_end()
    assert (clock.seconds, now) == ([1.0], [0.0, 1.0, 2.0])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_base(folder, is_tiny=True)
    return folder


def test_weights_file_of_zeros_has_the_tensors_that_a_saved_model_has(base, tmp_path):
    saved = build_tiny_checkpoint(tmp_path, read_demo_texts(), size=TinySize(VOCAB))
    names = "model.safetensors"
    with safe_open(base / names, "pt") as zeros, safe_open(saved / names, "pt") as real:
        assert sorted(zeros.keys()) == sorted(real.keys())
        for name in sorted(real.keys()):
            found, expected = zeros.get_tensor(name), real.get_tensor(name)
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
            assert not found.any()


def test_weights_file_of_8b_size_takes_no_place_on_the_disk(base, tmp_path):
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    use_8b_shapes(tmp_path / "config.json")
    write_zero_weights(tmp_path)
    status = (tmp_path / "model.safetensors").stat()
    assert status.st_size == pytest.approx(2 * 8_767_123_696, rel=1e-4)  # as published, and a header
    assert status.st_blocks * 512 < 1e6


def test_random_weights_are_as_the_loader_left_them_but_for_their_values(base):
    model = load_model(ModelSettings(str(base), dtype="float32"), find_family(str(base)))
    before = {name: (p.shape, p.dtype, type(p), p.requires_grad) for name, p in model.named_parameters()}
    fill_random(model)
    assert {n: (p.shape, p.dtype, type(p), p.requires_grad) for n, p in model.named_parameters()} == before
    quantised = {n: m for n, m in model.named_modules() if isinstance(getattr(m, "weight", None), Params4bit)}
    assert len(quantised) == 14  # 7 a language layer
    for module in quantised.values():
        width = torch.eye(module.in_features)
        assert module(width).std() == pytest.approx(0.02, rel=0.2)  # the weights, transposed
    plain = [p for name, p in model.named_parameters() if not isinstance(p, Params4bit) and "norm" not in name]
    assert all(0.01 < p.std() < 0.03 for p in plain)


@pytest.mark.slow
def test_recipe_over_the_cap_says_so(base, tmp_path, monkeypatch):
    def run_out(command):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("sft.trainer.TrajectoryTrainer.train", lambda self, **_: run_out(self))
    row = measure(base, tmp_path, cap_gb=1, is_tiny=True)
    assert (row["note"], row["cap_gb"]) == ("over the cap", 1)


@pytest.mark.slow
def test_speed_is_saved_before_the_run_is_over(base, tmp_path, monkeypatch):
    """What remains of one that is stopped behind its last step."""

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "publish", stop)
    file = tmp_path / "rows.json"
    csv_path = write_tasks(tmp_path, (320, 200), n_tasks=8, n_steps=4, steps_a_screenshot=8)
    with pytest.raises(KeyboardInterrupt), random_weights():
        training.measure(base, csv_path, {"side": "packed"}, file, is_tiny=True)
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["side"], row["n_timed"]) == ("packed", 3)
    assert row["steps_a_s"] > 0


def test_made_up_tasks_share_screenshots_and_are_good_data(tmp_path):
    tasks = load_trajectories(write_tasks(tmp_path, (320, 200), n_tasks=4, n_steps=3, steps_a_screenshot=2))
    assert [len(task.steps) for task in tasks] == [3, 3, 3, 3]
    assert len({step.image_sha256 for task in tasks for step in task.steps}) == 6
    assert tasks[0].steps[1].image_sha256 == tasks[1].steps[1].image_sha256
    assert len({task.instruction for task in tasks}) == 4


@pytest.fixture
def wheel(tmp_path):
    names = ["pkg/libpkg_cuda118.so", "pkg/libpkg_cuda130.so", "pkg/libpkg_cpu.so", "pkg-1.dist-info/RECORD"]
    path = tmp_path / "pkg-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name in names[:-1]:
            file.writestr(name, "code")
        file.writestr(names[-1], "".join(f"{name},,\n" for name in names))
    return path


def test_stripped_wheel_has_the_one_cuda_library_and_installs(wheel, tmp_path):
    strip_wheel(wheel, "libpkg_cuda", keep="libpkg_cuda130.so")
    left = ["pkg/libpkg_cuda130.so", "pkg/libpkg_cpu.so", "pkg-1.dist-info/RECORD"]
    with zipfile.ZipFile(wheel) as file:
        assert file.namelist() == left
        assert file.read(left[-1]).decode() == "".join(f"{name},,\n" for name in left)
    assert [file.name for file in tmp_path.iterdir()] == [wheel.name]


def test_wheel_without_the_wanted_library_names_those_it_has(wheel):
    message = (
        "pkg-1-py3-none-any.whl: found no libpkg_cuda999.so; expected one of libpkg_cuda118.so, libpkg_cuda130.so"
    )
    with pytest.raises(ValueError, match=message):
        strip_wheel(wheel, "libpkg_cuda", keep="libpkg_cuda999.so")
