"""The rollout benchmark runs as its first lines say, and compares every answer with the obvious loop's."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from conftest import ROOT
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

pytestmark = pytest.mark.slow


def test_benchmark_times_every_batch_size_and_finds_the_same_answers(tiny_checkpoints, tmp_path):
    csv = write_trajectories(tmp_path, build_tasks(6))
    agent = tmp_path / "agent_config.json"
    agent.write_text(json.dumps(asdict(replace(TINY_AGENT, max_answer_tokens=8))))
    command = [sys.executable, "benchmarks/rollout_throughput.py", "--model_path", str(tiny_checkpoints["qwen3_vl"])]
    command += ["--agent_config", str(agent), "--test_csv", str(csv), "--loop_tasks", "2", "--turns", "2"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "rows.json")], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads((tmp_path / "rows.json").read_text())
    rows, savings = content["rows"], content["savings"]
    assert [row["batch_size"] for row in rows] == [1, 4, 16, 64]
    assert [row["without"] for row in savings] == [
        "guessed answers",
        "kept screenshots",
        "merged adapter",
        "own layers",
        "asked tokens alone",
    ]
    assert all(row["n_same"] == row["n_compared"] == 6 and row["ratio"] > 0 for row in [*rows, *savings])
