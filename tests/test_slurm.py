"""Slurm jobs on real clusters of this machine: preempted, requeued, resumed, finished as a quiet run does."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from slurm_cluster import (
    find_missing,
    find_missing_for_two_nodes,
    has_ended,
    preempt,
    read_job,
    read_log,
    run_client,
    start_cluster,
    submit,
    wait_for_end,
    wait_for_restart,
    wait_for_step,
    wait_until,
    warn,
)
from training_runs import assert_same_bits, load_adapter, printed
from trajectory_samples import build_tasks, write_trajectories

JOBS = sorted((ROOT / "scripts").glob("slurm_*.sh"))
SCRIPTS = [*JOBS, ROOT / "scripts/launch.sh"]
needs_slurm = pytest.mark.skipif(find_missing() is not None, reason=str(find_missing()))
needs_two_nodes = pytest.mark.skipif(
    find_missing_for_two_nodes() is not None, reason=str(find_missing_for_two_nodes())
)
TRAIN = "scripts/slurm_train.sh"
SETTINGS = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "REPOSITORY": str(ROOT)}
SETTINGS |= {"CONFIG": "accelerate_configs/cpu.yaml", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
# What one process and two, under ZeRO-3 too, do alike: see test_distributed.py.
ALIKE = ["--lora_dropout", "0", "--load_in_4bit", "false", "--learning_rate", "1e-3", "--max_steps", "24"]
ALIKE += ["--save_steps", "100"]
FP32 = {"LAUNCH_OPTIONS": "--mixed_precision no"}
NODES = " --num_machines 2 --deepspeed_multinode_launcher standard --main_process_ip node1"
# Has srun too pass on these alone, unless it is told otherwise.
EXPORT = f"--export=PYTHON=echo,LAUNCH_OPTIONS=--of user,REPOSITORY={ROOT}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """What the clients' environment has to be."""
    with start_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield {**environment, **SETTINGS}


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    """What the clients' environment has to be."""
    with start_cluster(tmp_path_factory.mktemp("two"), n_nodes=2) as environment:
        yield {**environment, **SETTINGS}


@pytest.fixture(scope="module")
def one_process(attempt, tmp_path_factory):
    """The folder of one process that has the global batch of two."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("one")
    assert attempt(folder, {"arguments": [*ALIKE, "--gradient_accumulation_steps", "2"]}) == [0], printed(folder)
    return folder


def assert_close(folder, other):
    """Each number of the adapter within 1e-4."""
    torch.testing.assert_close(load_adapter(folder), load_adapter(other), rtol=0, atol=1e-4)


def find_checkpoints(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def find_ranks(folder):
    """Return the processes that have logged."""
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("logs/rank-*.log"))


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


@pytest.mark.slow
@needs_slurm
def test_job_that_is_warned_and_preempted_is_requeued_and_ends_with_the_same_adapter(
    cluster, recipe, attempt, tmp_path
):
    """First Slurm's warning before the time limit, then a job of a higher partition that takes the whole node."""
    more = ["--max_steps", "96", "--save_steps", "100"]
    assert attempt(tmp_path / "quiet", {"arguments": more}) == [0], printed(tmp_path / "quiet")
    out, log = tmp_path / "out", tmp_path / "job.log"
    options = ["--partition=low", "--gpus-per-node=0", f"--output={log}"]
    job = submit(cluster, *options, TRAIN, "accelerate_configs/cpu.yaml", recipe, "--output_dir", out, *more)

    wait_for_step(cluster, job, out, 1, log)
    warn(cluster, job, out)
    wait_for_restart(cluster, job, 1)
    (first,) = find_checkpoints(out)
    wait_for_step(cluster, job, out, first + 1, log)
    preempt(cluster, job, out)
    wait_for_restart(cluster, job, 2)
    assert len(find_checkpoints(out)) == 2
    wait_for_end(cluster, job, log)
    assert f"preempted: job {job} goes into the queue again" in read_log(log)
    assert read_log(log).count("preempted: saved step") == 2
    assert_same_bits(out, tmp_path / "quiet")


@pytest.mark.slow
@needs_slurm
def test_zero_jobs_of_one_node_are_requeued_and_end_as_one_process_does(cluster, recipe, one_process, tmp_path):
    """With the configurations for GPUs, in fp32. Each takes the node: ZeRO-3 runs once ZeRO-2, warned, is requeued."""
    jobs = {}
    for stage in ("zero2", "zero3"):
        (tmp_path / stage).mkdir()
        options = ["--partition=low", "--gpus-per-node=2", "--cpus-per-task=2", f"--output={tmp_path}/{stage}/job.log"]
        arguments = [f"accelerate_configs/{stage}.yaml", recipe, "--output_dir", tmp_path / stage / "out", *ALIKE]
        jobs[stage] = submit({**cluster, **FP32}, *options, TRAIN, *arguments)
    wait_for_step(cluster, jobs["zero2"], tmp_path / "zero2/out", 1, tmp_path / "zero2/job.log")
    warn(cluster, jobs["zero2"], tmp_path / "zero2/out")
    wait_for_restart(cluster, jobs["zero2"], 1)
    (saved,) = find_checkpoints(tmp_path / "zero2/out")
    for stage, job in jobs.items():
        wait_for_end(cluster, job, tmp_path / stage / "job.log")
        assert find_ranks(tmp_path / stage / "out") == [0, 1]
        assert_close(tmp_path / stage / "out", one_process)
    assert f"resume: continuing from {tmp_path}/zero2/out/checkpoint-{saved}" in read_log(tmp_path / "zero2/job.log")


@pytest.mark.slow
@needs_two_nodes
def test_job_of_two_nodes_is_preempted_on_both_and_ends_as_one_process_does(two_nodes, recipe, one_process, tmp_path):
    """ZeRO-3 with the configuration for GPUs, in fp32, one process a node, over gloo between two network stacks."""
    out, log = tmp_path / "out", tmp_path / "job.log"
    options = ["--partition=low", "--nodes=2", "--gpus-per-node=1", "--cpus-per-task=2", f"--output={log}"]
    arguments = ["accelerate_configs/multi_node_zero3.yaml", recipe, "--output_dir", out, *ALIKE]
    job = submit({**two_nodes, **FP32}, *options, TRAIN, *arguments)
    wait_for_step(two_nodes, job, out, 1, log)
    preempt(two_nodes, job, out, "--nodes=2")
    wait_for_restart(two_nodes, job, 1)
    (saved,) = find_checkpoints(out)
    for rank in range(2):
        assert f"preempted: saved step {saved};" in (out / f"logs/rank-{rank}.log").read_text()
    wait_for_end(two_nodes, job, log)
    assert f"resume: continuing from {out}/checkpoint-{saved}" in read_log(log)
    assert find_ranks(out) == [0, 1]
    assert_close(out, one_process)


@pytest.mark.slow
@needs_two_nodes
@pytest.mark.parametrize(
    "n_nodes, options, variables, n_processes",
    [
        (1, [], {}, 1),
        (1, ["--gpus-per-node=2"], {}, 2),
        (2, ["--gpus-per-node=2"], {}, 4),
        (2, ["--gpus-per-node=1", EXPORT], {}, 2),
        (2, ["--gpus-per-node=0"], {"PROCESSES_PER_NODE": "3"}, 6),
    ],
)
def test_jobs_start_a_process_for_each_gpu_of_each_node(two_nodes, tmp_path, n_nodes, options, variables, n_processes):
    """PYTHON is a program that prints its arguments; what the user gives comes last, so that it counts."""
    environment = {**two_nodes, "PYTHON": "echo", "LAUNCH_OPTIONS": "--of user", **variables}
    options = [f"--nodes={n_nodes}", *options, f"--output={tmp_path}/log"]
    job = submit(environment, *options, TRAIN, "any.yaml", "recipe.yaml")
    wait_for_end(two_nodes, job, tmp_path / "log")
    started = sorted(line for line in read_log(tmp_path / "log").splitlines() if " launch " in line)
    between = [line.split(" any.yaml ")[1].split(" --of user sft/run.py recipe.yaml ")[0] for line in started]
    nodes = NODES if n_nodes > 1 else ""
    shared = f"--main_process_port {20000 + int(job)}{nodes} --num_processes {n_processes}"
    assert between == [f"--machine_rank {rank} {shared}" for rank in range(n_nodes)]


@pytest.mark.slow
@needs_two_nodes
def test_job_of_two_nodes_without_gpus_asks_for_the_number_of_processes(two_nodes, tmp_path):
    options = ["--nodes=2", "--gpus-per-node=0", f"--output={tmp_path}/log"]
    job = submit(two_nodes, *options, TRAIN, "any.yaml", "recipe.yaml")
    wait_until(lambda: has_ended(two_nodes, job), "the end")
    assert "found no GPUs in this job; set PROCESSES_PER_NODE" in read_log(tmp_path / "log")


@pytest.mark.slow
@needs_slurm
def test_rollout_array_shares_the_tasks_out_and_merges_them(cluster, tmp_path):
    csv = write_trajectories(tmp_path, build_tasks(5))
    arguments = [2, tmp_path / "run", "--partition=low", "--", "--policy", "replay", "--test_csv", csv]
    shown = run_client(cluster, "bash", str(ROOT / "scripts/slurm_rollout.sh"), *map(str, arguments))
    merging = shown.split()[-1]
    wait_until(lambda: has_ended(cluster, merging), "the merge")
    logs = "\n".join(read_log(path) for path in (tmp_path / "run").glob("*.log"))
    assert read_job(cluster, merging)["JobState"] == "COMPLETED", logs
    sizes = [
        (tmp_path / f"run/{name}/steps.jsonl").read_text().count("\n") for name in ("shard-0", "shard-1", "merged")
    ]
    assert sizes == [9, 6, 15]
    assert json.loads((tmp_path / "run/merged/metrics.json").read_text())


@pytest.mark.slow
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
    logs = "\n".join(read_log(path) for path in (tmp_path / "sweep").glob("*.log"))
    assert all(path.is_file() for path in adapters), logs
    wait_until(lambda: has_ended(cluster, shown.split()[-4]), "the table")
    with (tmp_path / "sweep/sweep.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(row["run"], row["learning_rate"], row["status"]) for row in rows] == [
        (name, name[14:18], "finished") for name in names
    ], read_log(tmp_path / "sweep/slurm-table.log")


def test_sweep_of_a_file_has_a_member_for_each_run_and_a_table_after_them(tmp_path):
    """Beside an sbatch that notes its arguments, and numbers its jobs."""
    path = tmp_path / "seed=1/sweep.yaml"
    path.parent.mkdir()
    path.write_text("method: random\nruns: 3\nparameters: {lora_r: {min: 4, max: 64}}\n")
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/bash\necho "$@" >>{tmp_path}/calls\nwc -l <{tmp_path}/calls\n')
    sbatch.chmod(0o755)
    environment = {**os.environ, **SETTINGS, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    arguments = ["recipes/demo.yaml", tmp_path / "out", "--gpus=1", "--", path, "--max_steps", "1"]
    command = ["bash", "scripts/slurm_sweep.sh", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "submitted table 2 of sweep 1\n"), done.stderr
    members, table = (tmp_path / "calls").read_text().splitlines()
    assert "--array=0-2" in members and "--gpus=1 scripts/slurm_sweep.sh recipes/demo.yaml" in members
    assert members.endswith(f"-- {path} --max_steps 1")
    assert "--dependency=afterany:1" in table
    assert f"--sweep {path} --output_dir {tmp_path}/out --max_steps 1 --show table" in table

    path.write_text("parameters: {lora_r: [0]}\n")
    refused = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2 and "lora_r: found 0; expected at least 1" in refused.stderr

    for axis, code in (("lora_r=4,8", 0), ("lora_r=4,8", 0), ("lora_r=4,16", 2)):
        arguments = ["recipes/demo.yaml", tmp_path / "axes", "--", axis]
        command = ["bash", "scripts/slurm_sweep.sh", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert "axes/sweep.yaml: found another sweep, which its jobs read" in done.stderr
    assert (tmp_path / "axes/sweep.yaml").read_text() == "parameters:\n  lora_r: [4,8]\n"
