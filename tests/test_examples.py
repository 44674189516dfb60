"""Training rows: on disk, gone with their data set, their hashes those of the check, in bounded memory."""

import gc
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

from benchmarks.scaling import PARTS
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_step_rows
from sft.data.load import TrajectoryError, load_trajectories
from sft.models.processors import load_processor


@pytest.fixture
def encoder(tiny_checkpoints):
    folder = tiny_checkpoints["qwen3_vl"]
    return StepEncoder(load_processor(folder, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels), TINY_AGENT)


def test_rows_are_read_from_a_file_that_goes_with_them(tasks, encoder):
    dataset = build_step_rows(tasks, "tasks.csv", encoder, show_progress=False).dataset
    (cached,) = dataset.cache_files
    file = Path(cached["filename"])
    assert file.is_file()
    assert not file.is_relative_to(Path.home() / ".cache")
    assert [(row["task_id"], row["step"]) for row in dataset] == [(t.task_id, s.index) for t in tasks for s in t.steps]
    del dataset
    gc.collect()
    assert not file.parent.exists()


def test_refused_rows_leave_no_file(tasks, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(encoder, "agent", TINY_AGENT.__class__(max_answer_tokens=1))
    with pytest.raises(TrajectoryError):
        build_step_rows(tasks, "tasks.csv", encoder, show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_hash_of_a_row_is_that_of_the_screenshot_that_was_checked(tmp_path, encoder):
    csv_path = write_trajectories(tmp_path, build_tasks(1))
    files = [tmp_path / f"screens/{i}.png" for i in (0, 1)]
    hashes = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    trajectories = load_trajectories(csv_path, show_progress=False)
    for file in files:
        Image.new("RGB", (320, 192)).save(file)  # another content: one that is hashed again would show it
    rows = list(build_step_rows(trajectories, str(csv_path), encoder, show_progress=False).dataset)
    assert {row["image"]: row["image_sha256"] for row in rows} == hashes


@pytest.mark.slow
def test_memory_of_a_run_with_ten_times_the_rows_is_about_the_same(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/data_loading.py", "--screenshots", "2", "--rows", "200", "2000"]
    subprocess.run([*command, "--json", str(file)], cwd=ROOT, check=True, capture_output=True, timeout=400)
    rows = json.loads(file.read_text())["rows"]
    assert [row["setting"] for row in rows[:3]] == ["no cache", "cache, cold", "cache, warm"]
    assert all(row["images_a_second"] > 0 and 0 < row["data_wait_share"] < 1 for row in rows[:3])
    few, many = rows[3:]
    assert (few["n_rows"], many["n_rows"]) == (200, 2000)
    assert 0 < many["peak_mb"] < 1.1 * few["peak_mb"]


@pytest.mark.slow
def test_scaling_benchmark_measures_every_part_and_draws_it(tmp_path):
    file, picture = tmp_path / "rows.json", tmp_path / "scaling.png"
    command = [sys.executable, "benchmarks/scaling.py", "--rows", "50", "100", "--json", str(file)]
    subprocess.run([*command, "--plot", str(picture)], cwd=ROOT, check=True, capture_output=True, timeout=400)
    rows = json.loads(file.read_text())["rows"]
    assert [row["n_rows"] for row in rows] == [50, 100]
    assert min(row[f"{part}_{figure}"] for row in rows for part in PARTS for figure in ("s", "peak_mb")) > 0
    assert Image.open(picture).width > 500
