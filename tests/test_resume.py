"""A rollout that is killed again and again ends with the files of one that was not."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from conftest import ROOT
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

pytestmark = pytest.mark.slow

# Imports once and forks for every attempt. Child i is killed (SIGKILL) when steps.jsonl has `points[i]` lines or more.
ATTEMPTS = """
import json, os, signal, sys, time
from pathlib import Path
import eval.predictor, eval.rollouts.walk
from eval.rollout import main

command, points, steps = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
n_killed = 0
for point in [*points, None]:
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        main(command)
        os._exit(0)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if point is not None and steps.is_file() and steps.read_bytes().count(b"\\n") >= point:
            os.kill(child, signal.SIGKILL)
            point = None
        time.sleep(0.0005)
    n_killed += os.WIFSIGNALED(status)
print(n_killed, os.waitstatus_to_exitcode(status))
"""


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("latency_s", "started", "finished")}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def read_files(folder):
    files = {"predictions.csv": (folder / "predictions.csv").read_bytes()}
    for name in ("metrics.json", "details.json", "run.json"):
        files[name] = json.dumps(without_times(json.loads((folder / name).read_text())))
    lines = (folder / "steps.jsonl").read_text().splitlines()
    return {**files, "steps.jsonl": [json.dumps(without_times(json.loads(line))) for line in lines]}


def test_ten_kills_change_no_byte_but_times(tiny_checkpoints, tmp_path):
    csv = write_trajectories(tmp_path, build_tasks(8, n_steps=5))
    agent = tmp_path / "agent_config.json"
    agent.write_text(json.dumps(asdict(replace(TINY_AGENT, max_answer_tokens=12))))
    model = ["--model_path", str(tiny_checkpoints["qwen3_vl"]), "--agent_config", str(agent)]
    points = [2, 5, 9, 12, 17, 20, 26, 31, 35, 39]  # of 40 steps

    def roll_out(folder, points):
        command = [*model, "--test_csv", str(csv), "--output_dir", str(folder), "--batch_size", "3"]
        arguments = [json.dumps(command), json.dumps(points), str(folder / "steps.jsonl")]
        done = subprocess.run(
            [sys.executable, "-c", ATTEMPTS, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        return done.stdout.split() or done.stderr

    assert roll_out(tmp_path / "whole", []) == ["0", "0"]
    n_killed, exit_code = map(int, roll_out(tmp_path / "killed", points))
    assert exit_code == 0 and n_killed >= 8  # a child may end before the look that would have killed it
    assert read_files(tmp_path / "killed") == read_files(tmp_path / "whole")
