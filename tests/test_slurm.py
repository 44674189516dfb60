"""Slurm jobs on a real one-node cluster: preempted, requeued, resumed, finished with the adapter of a quiet run."""

import json
import subprocess
import sys

import pytest
from attempt_samples import assert_same_bits, printed, start_attempts, write_recipe
from conftest import ROOT
from slurm_cluster import find_missing, read_job, run_client, start_cluster, wait_until
from trajectory_samples import build_tasks, write_trajectories

JOBS = sorted((ROOT / "scripts").glob("slurm_[!c]*.sh"))
SCRIPTS = [*JOBS, ROOT / "scripts/launch.sh"]
needs_slurm = pytest.mark.skipif(find_missing() is not None, reason=str(find_missing()))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """What the clients' environment has to be."""
    with start_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        settings = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "REPOSITORY": str(ROOT)}
        settings |= {"CONFIG": "accelerate_configs/cpu.yaml", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        yield {**environment, **settings}


@pytest.fixture(scope="module")
def recipe(tiny_checkpoints, tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("job"), tiny_checkpoints["qwen3_vl"])


def submit(cluster, *arguments):
    return run_client(cluster, "sbatch", "--parsable", *map(str, arguments)).strip()


def has_ended(cluster, job):
    return read_job(cluster, job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_every_script_shows_its_usage_and_refuses_to_start_without_arguments(script):
    shown = subprocess.run(["bash", script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"scripts/{script.name}" in shown.stdout
    assert not {"#SBATCH", "set -"} & set(shown.stdout.split())
    assert subprocess.run(["bash", script], cwd=ROOT, capture_output=True).returncode == 1


def test_scripts_pass_shellcheck():
    shellcheck = subprocess.run(["bash", "-c", "command -v shellcheck"], capture_output=True, text=True).stdout.strip()
    if not shellcheck:
        pytest.skip("found no shellcheck; Debian has it in shellcheck")
    files = map(str, sorted((ROOT / "scripts").glob("*.sh")))
    done = subprocess.run([shellcheck, "-x", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@needs_slurm
def test_job_that_is_warned_and_preempted_is_requeued_and_ends_with_the_same_adapter(cluster, recipe, tmp_path):
    """First Slurm's warning before the time limit, then a job of a higher partition that takes the whole node."""
    more = ["--max_steps", "24", "--save_steps", "100"]
    with start_attempts(recipe) as attempt:
        assert attempt(tmp_path / "quiet", {"arguments": more}) == [0], printed(tmp_path / "quiet")
    out, log = tmp_path / "out", tmp_path / "job.log"
    options = ["--partition=low", "--gpus=0", f"--output={log}"]
    job = submit(cluster, *options, "scripts/slurm_one_gpu.sh", recipe, "--output_dir", out, *more)

    def has_done(step):
        steps = out / "logs/rank-0.log"
        return steps.is_file() and f"step {step} done" in steps.read_text()

    def checkpoints():
        return sorted(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))

    wait_until(lambda: has_done(1), "step 1")
    run_client(cluster, "scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: read_job(cluster, job)["Restarts"] == "1", "the first restart")
    (first,) = checkpoints()
    run_client(cluster, "scontrol", "update", f"jobid={job}", "StartTime=now")  # Slurm delays a requeued job
    wait_until(lambda: has_done(first + 1), "a step after the first restart")
    submit(cluster, "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_until(lambda: read_job(cluster, job)["Restarts"] == "2", "the second restart")
    assert len(checkpoints()) == 2
    run_client(cluster, "scontrol", "update", f"jobid={job}", "StartTime=now")
    wait_until(lambda: has_ended(cluster, job), "the end")
    assert read_job(cluster, job)["JobState"] == "COMPLETED", log.read_text()
    assert f"preempted: job {job} goes into the queue again" in log.read_text()
    assert log.read_text().count("preempted: saved step") == 2
    assert_same_bits(out, tmp_path / "quiet")


@needs_slurm
def test_rollout_array_shares_the_tasks_out_and_merges_them(cluster, tmp_path):
    csv = write_trajectories(tmp_path, build_tasks(5))
    arguments = [2, tmp_path / "run", "--partition=low", "--", "--policy", "replay", "--test_csv", csv]
    shown = run_client(cluster, "bash", str(ROOT / "scripts/slurm_rollout.sh"), *map(str, arguments))
    merging = shown.split()[-1]
    wait_until(lambda: has_ended(cluster, merging), "the merge")
    logs = "\n".join(path.read_text() for path in (tmp_path / "run").glob("*.log"))
    assert read_job(cluster, merging)["JobState"] == "COMPLETED", logs
    sizes = [
        (tmp_path / f"run/{name}/steps.jsonl").read_text().count("\n") for name in ("shard-0", "shard-1", "merged")
    ]
    assert sizes == [9, 6, 15]
    assert json.loads((tmp_path / "run/merged/metrics.json").read_text())


@needs_slurm
def test_sweep_trains_every_combination_in_a_folder_of_its_own(cluster, recipe, tmp_path):
    axes = ["learning_rate=1e-3,2e-3", "max_steps=1"]
    arguments = [recipe, tmp_path / "sweep", "--partition=low", "--gpus=0", "--", *axes]
    shown = run_client(cluster, "bash", str(ROOT / "scripts/slurm_sweep.sh"), *map(str, arguments))
    job = shown.split()[-1]
    names = [f"learning_rate={rate},max_steps=1" for rate in ("1e-3", "2e-3")]
    adapters = [tmp_path / "sweep" / name / "adapter_model.safetensors" for name in names]
    ended = [lambda i=i: has_ended(cluster, f"{job}_{i}") for i in range(2)]
    wait_until(lambda: all(end() for end in ended), "both members")
    logs = "\n".join(path.read_text() for path in (tmp_path / "sweep").glob("*.log"))
    assert all(path.is_file() for path in adapters), logs
