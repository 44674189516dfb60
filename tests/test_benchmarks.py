"""The benchmarks that cannot run at full size here run at a small one, through the same code."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_ledger import wait_for
from transformers import AutoModelForImageTextToText

from benchmarks import llama4_experts, real_size
from benchmarks.real_models import write_random_weights
from benchmarks.real_size import PHASES, MemoryWatch, run_phase
from benchmarks.sides import VOCAB, build_encoder, build_pack_sampler, read_demo_texts
from benchmarks.train_throughput import DEMO_TOKENS_PER_BATCH, build_demo_rows, compare, compare_kept_vision
from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint


@pytest.mark.slow
def test_stock_and_our_trainer_take_turns_on_the_same_answers(tmp_path):
    build_tiny_checkpoint(tmp_path / "model", read_demo_texts(), size=TinySize(VOCAB))
    for i in range(2):
        Image.new("RGB", (320, 192), (0, 99 * i, 0)).save(tmp_path / f"{i}.png")
    sides = [{"side": "stock", "size": 4}, {"side": "ours", "size": 4608}]
    row = compare(str(tmp_path), "8", sides, n_timed=1)  # trained tokens that differ are an error there
    assert (row["steps_per_screenshot"], row["n_steps"]) == (8, 16)
    assert row["loss_difference"] < 1e-5
    assert 1.5 < row["token_ratio"] < 8
    assert row["share_of_token_ratio"] == row["ratio"] / row["token_ratio"] > 0
    assert min(row["stock_peak_mb"], row["ours_peak_mb"]) > 100


@pytest.mark.slow
def test_kept_and_computed_vision_take_turns_with_the_same_loss(tmp_path):
    build_tiny_checkpoint(tmp_path / "model", read_demo_texts(), size=TinySize(VOCAB))
    for i in range(2):
        Image.new("RGB", (320, 192), (0, 99 * i, 0)).save(tmp_path / f"{i}.png")
    row = compare_kept_vision(str(tmp_path), "8", 4608, n_timed=1)
    assert (row["steps_per_screenshot"], row["n_steps"]) == (8, 16)
    assert row["loss_difference"] < 1e-6 and row["ratio"] == row["computed_s"] / row["kept_s"]
    assert len(list((tmp_path / "vision").iterdir())) == 2


@pytest.mark.slow
def test_demo_rows_of_the_benchmark_save_about_what_an_epoch_does():
    encoder = build_encoder(ROOT / "demo/base")
    rows = build_demo_rows(encoder)
    assert 15 < len(rows) < 60
    assert 1.7 < build_pack_sampler(rows, DEMO_TOKENS_PER_BATCH).packing_factor < 2.2  # 2.08 over all 1,861 steps


PROGRAMS = [p.relative_to(ROOT) for p in (ROOT / "benchmarks").rglob("*.py") if "parse_args()" in p.read_text()]


@pytest.mark.parametrize("name", sorted(".".join(path.with_suffix("").parts[1:]) for path in PROGRAMS))
def test_help_of_a_benchmark_waits_for_no_model_library(name):
    command = [sys.executable, "-X", "importtime", "-m", f"benchmarks.{name}", "--help"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    imported = {line.rsplit("|", 1)[-1].strip() for line in finished.stderr.splitlines()}
    path = name.replace(".", "/")
    assert f"benchmarks.{name}" in finished.stdout or f"benchmarks/{path}.py" in finished.stdout
    assert not imported & {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets"}


@pytest.mark.slow
def test_expert_benchmark_compares_the_three_forms_of_one_layer(tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    monkeypatch.setitem(llama4_experts.SIZES, "small", (256, 512, 16, 1024))  # a half of its arithmetic
    monkeypatch.setattr("sys.argv", ["llama4_experts", "--small", "--json", str(file)])
    llama4_experts.main()
    rows = {row["form"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows.keys() == {"published", "4-bit parameters", "4-bit linears"}
    assert rows["published"]["error"] == 0
    for form in ("4-bit parameters", "4-bit linears"):
        assert rows[form]["weights_gb"] < 0.15 * rows["published"]["weights_gb"]  # of float32
        assert 0.01 < rows[form]["error"] < 0.2
    assert rows["4-bit linears"]["seconds"] < rows["4-bit parameters"]["seconds"]


@pytest.mark.slow
def test_real_size_program_runs_every_phase_once_on_a_tiny_model(tmp_path):
    command = [sys.executable, "-m", "benchmarks.real_size", f"{tmp_path}/work", "--tiny"]
    command += ["--json", f"{tmp_path}/rows.json"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    rows = {row["phase"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert list(rows) == list(PHASES)
    assert all(
        row["outcome"] == "finished" and row["with_files_gb"] >= row["anonymous_gb"] > 0 for row in rows.values()
    )
    assert len(rows["train"]["losses"]) == 2 and rows["train"]["tokens_a_step"] > 1000
    assert rows["train"]["flops_measured_by_formula"] == pytest.approx(1, abs=0.02)
    assert (rows["rollout"]["steps"], rows["rollout"]["answer_tokens"]) == (2, 2 * real_size.N_ANSWER_TOKENS)
    forms = {row["form"]: row["max_gap"] for row in rows["compare"]["logits"]}
    assert forms.keys() == {"adapter on the bfloat16 base", "adapter on the 4-bit base"}
    assert forms["adapter on the bfloat16 base"] < 0.05 < forms["adapter on the 4-bit base"]
    written = (tmp_path / "work/result.json").stat().st_mtime_ns
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "work/result.json").stat().st_mtime_ns == written, "no phase was run again"


def test_random_weights_are_those_of_the_config_in_shards_of_a_size(tiny_checkpoints, tmp_path):
    folder = shutil.copytree(tiny_checkpoints["qwen3_vl"], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    n_bytes = write_random_weights(folder, shard_bytes=300_000)
    shards = sorted(path.stat().st_size for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 3 and sum(shards) == pytest.approx(n_bytes, rel=0.1)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    weights = model.state_dict()
    assert n_bytes == 2 * sum(weight.numel() for weight in weights.values())
    assert weights["model.language_model.layers.1.mlp.up_proj.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert (weights["model.language_model.norm.weight"] == 1).all()


@pytest.mark.slow
def test_phase_that_fails_or_takes_too_long_says_so(tmp_path, monkeypatch):
    assert run_phase("load", tmp_path, tiny=True)["outcome"] == "exit code 1"
    assert "Error" in (tmp_path / "load.log").read_text()
    monkeypatch.setitem(PHASES, "load", (PHASES["load"][0], 0.2))
    assert run_phase("load", tmp_path, tiny=True)["outcome"] == "longer than its 0.2 s"


def test_memory_of_its_own_and_of_mapped_files_are_told_apart(tmp_path):
    """100 MB of zeros that were written to, and a file of 200 MB that was read through a map."""
    with (tmp_path / "file").open("wb") as file:
        file.truncate(200_000_000)
    code = "import mmap, sys; own = b'x' * 100_000_000; file = open(sys.argv[1], 'rb'); "
    code += "pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); sum(pages[::4096]); print('', flush=True); "
    code += "input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "file"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    watch = MemoryWatch(process.pid)
    wait_for(lambda: watch.describe()["with_files_gb"] > 0)
    watch.stop()
    process.communicate("\n")
    memory = watch.describe()
    assert 0.1 <= memory["anonymous_gb"] < 0.15
    assert 0.3 <= memory["with_files_gb"] < 0.37
