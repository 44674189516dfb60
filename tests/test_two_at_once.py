"""Two at once: of two processes that write into one folder, one works and the other is refused; nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from conftest import ROOT
from live_samples import WORKLIST, record
from training_runs import load_adapter, read_losses
from trajectory_samples import build_tasks, write_trajectories

from sft.compute.ledger import load_runs
from sft.errors import UserError
from sft.files import claim_folder, read_folder, write_new

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(*command, cwd=ROOT):
    """Run a command to its end; return its exit code and what it printed."""
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900
    )
    return done.returncode, done.stdout


@contextmanager
def under_way(*command, is_begun, cwd=ROOT):
    """Start a command and stop it in the middle of its work; it continues and must succeed afterwards."""
    command = [sys.executable, *map(str, command)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, **pipes) as process:
        try:
            deadline = time.monotonic() + 900
            while not is_begun() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)  # some are done soon
            assert process.poll() is None, process.stdout.read()
            process.send_signal(signal.SIGSTOP)
            yield process
            process.send_signal(signal.SIGCONT)
            printed, _ = process.communicate(timeout=900)
            assert process.returncode == 0, printed
        finally:
            process.kill()


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """A folder that was trained into to its end."""
    out = tmp_path_factory.mktemp("trained") / "out"
    code, printed = run("sft/run.py", recipe, "--output_dir", out, "--max_steps", "3")
    assert code == 0, printed
    return out


@pytest.mark.slow
def test_second_training_that_resumes_into_one_folder_is_refused(recipe, tmp_path):
    out = tmp_path / "out"
    command = ("sft/run.py", recipe, "--output_dir", out, "--resume", "auto")
    with under_way(*command, is_begun=(out / "checkpoint-3").is_dir):
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        code, printed = run(*command)
        assert code == 2 and "found another process that trains into this folder" in printed
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert len(read_losses(out)) == 12 and load_adapter(out)
    assert [record.outcome for record in load_runs(out)] == ["finished"]


@pytest.mark.slow
def test_second_sweep_in_one_folder_is_refused(recipe, tmp_path):
    (tmp_path / "sweep.yaml").write_text("parameters: {optim: [adamw_torch, sgd]}")
    out = tmp_path / "out"
    command = ("sft/run.py", recipe, "--sweep", tmp_path / "sweep.yaml", "--output_dir", out, "--max_steps", "3")
    with under_way(*command, is_begun=(out / "optim=adamw_torch.log").is_file):
        code, printed = run(*command)
        assert code == 2 and "found another process that sweeps into this folder" in printed
        assert not (out / "sweep.csv").exists()
        code, printed = run(*command, "--show", "table")  # as a sweep whose runs are a cluster's jobs asks
        assert code == 0, printed
    assert (out / "sweep.csv").read_text().count(",finished,") == 2


@pytest.mark.slow
def test_model_is_not_exported_or_rolled_out_while_a_training_writes_it(recipe, trained, tmp_path):
    """Half of another model, and the prompts of this one."""
    more = ("--max_steps", "9", "--resume", "auto", "--resume_anyway", "true")
    rolled = ("--model_path", trained, "--test_csv", write_trajectories(tmp_path, build_tasks(1)), "--allow_overlap")
    with under_way("sft/run.py", recipe, "--output_dir", trained, *more, is_begun=(trained / "checkpoint-6").is_dir):
        for command in (
            ("-m", "sft.export", "--model_path", trained, "--to", tmp_path / "new"),
            ("eval/rollout.py", *rolled, "--output_dir", tmp_path / "new"),
        ):
            code, printed = run(*command)
            assert code == 2 and "found another process that writes into this folder" in printed, printed
            assert not (tmp_path / "new").exists()
    assert run("-m", "sft.export", "--model_path", trained, "--to", tmp_path / "new")[0] == 0


@pytest.mark.slow
def test_second_rollout_in_one_folder_is_refused(tmp_path):
    csv = write_trajectories(tmp_path / "data", build_tasks(400))
    out = tmp_path / "out"
    command = ("eval/rollout.py", "--policy", "replay", "--test_csv", csv, "--output_dir", out)
    with under_way(*command, is_begun=(out / "steps.jsonl").is_file):
        code, printed = run(*command)
        assert code == 2 and "found another process that rolls out into this folder" in printed
    assert json.loads((out / "metrics.json").read_text())["n_steps"] == 1200
    assert (out / "steps.jsonl").read_text().count("\n") == 1200


SLOW = """
import time

class Slow(Worklist):
    def step(self, action):
        time.sleep(0.1)
        return super().step(action)

def open_environment(step_limit_s):
    return Slow(tempfile.mkdtemp())
"""


@pytest.mark.slow
def test_second_live_run_in_one_folder_is_refused(tmp_path):
    (tmp_path / "slow_worklist.py").write_text(WORKLIST + SLOW)
    out = tmp_path / "out"
    given = ("--environment", "slow_worklist", "--tasks", record(tmp_path / "recorded"), "--output_dir", out)
    command = (ROOT / "eval/live.py", "--policy", "replay", *given)
    with under_way(*command, is_begun=(out / "episodes.jsonl").is_file, cwd=tmp_path):
        code, printed = run(*command, cwd=tmp_path)
        assert code == 2 and "found another process that rolls out into this folder" in printed
    assert json.loads((out / "metrics.json").read_text())["results"]["success"] == 3


def test_folder_that_is_read_is_not_claimed_and_one_that_is_claimed_not_read(tmp_path):
    with read_folder(tmp_path / "never"):
        assert not (tmp_path / "never").exists()
    written = "found another process that writes into this folder"
    with (
        claim_folder(tmp_path, "trains here"),
        pytest.raises(UserError, match=written),
        read_folder(tmp_path),
    ):
        pass
    with (
        read_folder(tmp_path),
        read_folder(tmp_path),
        pytest.raises(UserError, match="found another process that trains here or reads it"),
        claim_folder(tmp_path, "trains here"),
    ):
        pass
    with claim_folder(tmp_path, "trains here"):
        pass


def test_of_two_exports_to_one_folder_the_first_to_end_stays(tmp_path):
    new = tmp_path / "new"
    with (
        pytest.raises(UserError, match="found something there; expected a new or empty folder"),
        write_new(new) as one,
    ):
        (one / "weights").write_text("later")
        with write_new(new) as other:
            (other / "weights").write_text("first")
    assert (new / "weights").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["new"], "nothing of the other is left"
