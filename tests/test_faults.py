"""Faults in training: processes that are preempted, killed or out of disk resume and end as if undisturbed."""

import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from training_runs import (
    PREEMPTED,
    ROOT,
    assert_same_bits,
    find_secrets,
    printed,
    read_losses,
)
from trajectory_samples import build_tasks, write_trajectories

from sft.errors import UserError
from sft.files import claim_folder
from sft.training.checkpoint_folder import finish_checkpoint, read_run
from sft.training.signals import leave_signals_to_parent
from sft.training.watch import check_batch


@pytest.fixture(scope="module")
def undisturbed(attempt, tmp_path_factory):
    """The output folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert attempt(folder, {}) == [0]
    return folder


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


def assert_ends_the_same(folder, undisturbed):
    assert_same_bits(folder, undisturbed)
    assert len(read_losses(folder)) == 12 and read_losses(folder) == read_losses(undisturbed)
    assert not (folder / "unfinished").exists()


@pytest.mark.slow
def test_five_kills_at_random_points_change_no_bit_of_the_adapter(attempt, undisturbed, tmp_path):
    rng = random.Random(5)
    steps = sorted(rng.sample(range(1, 11), 5))
    kills = [{"signal": "SIGKILL", "at_step": step, "delay_s": rng.uniform(0, 0.1)} for step in steps]
    assert attempt(tmp_path, *kills, {}) == [-9] * 5 + [0]
    assert_ends_the_same(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["SIGTERM", "SIGUSR1"])
def test_preempted_run_saves_the_step_it_is_in_and_asks_to_be_started_again(attempt, undisturbed, tmp_path, signal):
    codes = attempt(tmp_path, {"signal": signal, "at_step": 4}, {"signal": signal, "at_step": 7}, {})
    assert codes == [PREEMPTED, PREEMPTED, 0]
    assert "preempted: saved step 5; resume with --resume auto" in printed(tmp_path, 0)
    assert "continuing from " in printed(tmp_path, 1) and "checkpoint-5\n" in printed(tmp_path, 1)
    assert_ends_the_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_signal_to_every_process_of_a_job_leaves_the_loading_of_data_alone(attempt, tmp_path):
    """As Slurm signals a whole job: the processes that load data, at work for 15 batches an epoch, get it too."""
    arguments = ["--resume", "auto", "--dataloader_num_workers", "2", "--packing", "none"]
    loading = {"arguments": [*arguments, "--per_device_train_batch_size", "1"]}
    assert attempt(tmp_path / "quiet", loading) == [0]
    signal = {"signal": "SIGTERM", "with_children": True, "at_step": 4}
    assert attempt(tmp_path / "out", {**loading, **signal}, loading) == [PREEMPTED, 0], printed(tmp_path / "out")
    assert "preempted: saved step 5" in printed(tmp_path / "out")
    assert_ends_the_same(tmp_path / "out", tmp_path / "quiet")


@pytest.mark.slow
def test_paged_8_bit_optimiser_of_the_8b_recipes_goes_on_with_the_same_bits(attempt, tmp_path):
    """Of rank 64, so that matrices have the 4,096 numbers below which the state is kept in 32 bits."""
    arguments = ["--resume", "auto", "--optim", "paged_adamw_8bit", "--lora_r", "64", "--max_steps", "6"]
    eight_bit = {"arguments": arguments}
    assert attempt(tmp_path / "quiet", eight_bit) == [0]
    state = torch.load(tmp_path / "quiet/checkpoint-6/optimizer.pt", weights_only=True)["state"]
    assert torch.uint8 in {state[i]["__bnb_optimizer_quant_state__"]["state1"].dtype for i in state}
    codes = attempt(tmp_path / "out", {**eight_bit, "signal": "SIGTERM", "at_step": 2}, eight_bit)
    assert codes == [PREEMPTED, 0], printed(tmp_path / "out", 1)
    assert_same_bits(tmp_path / "out", tmp_path / "quiet")


@pytest.mark.slow
def test_truncated_checkpoint_is_set_aside_and_the_one_before_it_taken(attempt, undisturbed, tmp_path):
    assert attempt(tmp_path, {"signal": "SIGKILL", "at_step": 7}) == [-9]
    assert checkpoints(tmp_path) == ["checkpoint-3", "checkpoint-6"]
    os.truncate(tmp_path / "checkpoint-6/optimizer.pt", 5000)
    assert attempt(tmp_path, {}) == [0]
    assert "optimizer.pt has 5000 bytes; expected" in printed(tmp_path, 0)
    assert checkpoints(tmp_path) == ["aside-checkpoint-6", "checkpoint-12", "checkpoint-9"]
    assert_ends_the_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_write_that_fails_while_saving_leaves_the_last_good_checkpoint(attempt, undisturbed, tmp_path):
    """A file size limit makes the optimiser's file fail half way, as a full disk or quota does."""
    adapter = (undisturbed / "adapter_model.safetensors").stat().st_size
    preempted = {"signal": "SIGTERM", "at_step": 2}
    codes = attempt(tmp_path, preempted, {"max_file_bytes": adapter + 20_000}, {})
    assert codes == [PREEMPTED, 1, 0]
    assert "unexpected pos" in printed(tmp_path, 1), "what torch says of a file that was cut short"
    assert_ends_the_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_changed_recipe_is_refused_with_the_difference_and_goes_on_when_told_to(attempt, tmp_path):
    changed = ["--resume", "auto", "--learning_rate", "0.02"]
    codes = attempt(
        tmp_path,
        {"signal": "SIGTERM", "at_step": 1},
        {"arguments": changed},
        {"arguments": [*changed, "--resume_anyway", "true", "--max_steps", "3"]},
        {"arguments": []},
    )
    assert codes == [PREEMPTED, 2, 0, 2]
    assert "recipe: learning_rate: found 0.02; the run began with 0.01" in printed(tmp_path, 1)
    assert "--resume_anyway true" in printed(tmp_path, 1)
    assert "recipe: learning_rate: found 0.02; the run began with 0.01" in printed(tmp_path, 2)
    assert "found checkpoint-3 of an earlier run; expected --resume auto" in printed(tmp_path, 3)


@pytest.mark.slow
def test_changed_data_is_refused_by_task(attempt, tmp_path):
    other = write_trajectories(tmp_path / "other", build_tasks(4) + build_tasks(1, first=9))
    go_on = {"arguments": ["--resume", "auto", "--train_csv", str(other)]}
    moved = write_trajectories(tmp_path / "moved", build_tasks(5))
    same = {"arguments": ["--resume", "auto", "--train_csv", str(moved), "--max_steps", "12"]}
    assert attempt(tmp_path / "out", {"signal": "SIGTERM", "at_step": 1}, go_on, same) == [PREEMPTED, 2, 0]
    assert "train tasks: t5 is missing" in printed(tmp_path / "out", 1)
    assert "train tasks: t9 is new" in printed(tmp_path / "out", 1)


@pytest.mark.slow
def test_loss_that_is_no_number_stops_the_run(attempt, tmp_path):
    arguments = ["--learning_rate", "1e30", "--max_grad_norm", "1e30"]
    assert attempt(tmp_path, {"arguments": arguments}) == [2]
    assert "found a loss of nan; expected a finite number: training has diverged" in printed(tmp_path, 0)
    assert "found a loss of nan" in (tmp_path / "logs/rank-0.log").read_text()
    assert not (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_training_whose_launcher_is_killed_saves_and_ends_instead_of_going_on_alone(
    attempt, recipe, undisturbed, tmp_path
):
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launch += [
        "--config_file",
        "accelerate_configs/cpu.yaml",
        "sft/run.py",
        str(recipe),
        "--output_dir",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = tmp_path / "logs/rank-0.log"
    with (tmp_path / "launch.log").open("w") as output:
        launcher = subprocess.Popen(launch, cwd=ROOT, env=environment, stdout=output, stderr=output)

    def wait_for(text):
        for _ in range(6000):
            if log.is_file() and text in log.read_text():
                return
            time.sleep(0.1)
        pytest.fail((tmp_path / "launch.log").read_text())

    wait_for("step 2 done")
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    wait_for("ended by SystemExit(75)")
    assert attempt(tmp_path, {}) == [0]
    assert_ends_the_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_full_disk_is_noticed_before_saving_and_the_run_goes_on_when_there_is_room(attempt, undisturbed, small_disk):
    folder, resize = small_disk
    out = folder / "out"
    assert attempt(out, {"signal": "SIGTERM", "at_step": 1}) == [PREEMPTED]
    used = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
    resize(used + 100_000)
    assert attempt(out, {}) == [2]
    assert "MB free on the disk; expected" in printed(out)
    resize(64 << 20)
    assert attempt(out, {}) == [0]
    assert_ends_the_same(out, undisturbed)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.slow
def test_optimizer_state_that_would_run_code_is_refused(attempt, tmp_path):
    """Even one whose manifest is right: the names that the state calls are read before it is loaded."""
    out = tmp_path / "out"
    assert attempt(out, {"signal": "SIGTERM", "at_step": 1}) == [PREEMPTED]
    (checkpoint,) = out.glob("checkpoint-*")
    run, payload = read_run(checkpoint), Payload(f"touch {tmp_path}/was_run")
    (checkpoint / "optimizer.pt").write_bytes(pickle.dumps(payload))
    (checkpoint / "checkpoint.json").unlink()
    finish_checkpoint(checkpoint.rename(tmp_path / "forged"), checkpoint, run)
    assert attempt(out, {}) == [2]
    assert "which could run code when it is loaded" in printed(out)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.slow
def test_second_training_into_one_folder_is_refused_by_all_its_processes(attempt, tmp_path):
    """Both used to end with exit code 0, and the result of one was lost."""
    out = tmp_path / "out"
    with claim_folder(out, "trains into this folder"):
        assert attempt(out, {"ranks": 2}) == [[2, 2]]
    assert "found another process that trains into this folder" in printed(out)
    assert {path.name for path in out.iterdir()} == {".lock", "attempt-0.log"}


@pytest.mark.slow
def test_training_replaces_nothing_of_somebody_else(attempt, tmp_path):
    """A folder of a project, given by mistake, would lose its README.md, and a folder called unfinished."""
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/thesis.txt").write_text("theirs")
    (tmp_path / "README.md").write_text("theirs")
    assert attempt(tmp_path, {}) == [2]
    assert "found README.md, unfinished, which would be replaced" in printed(tmp_path)
    assert (tmp_path / "README.md").read_text() == (tmp_path / "unfinished/thesis.txt").read_text() == "theirs"


@pytest.mark.slow
def test_secrets_of_the_environment_are_in_no_file_of_a_run(undisturbed):
    names = {path.name for path in undisturbed.rglob("*") if path.is_file()}
    assert {"attempt-0.log", "rank-0.log", "recipe.yaml", "compute_ledger.jsonl"} <= names
    assert find_secrets(undisturbed) == []


@pytest.mark.slow
def test_data_worker_ends_by_its_parents_signal_alone():
    """Python and torch end what still loads data by SIGTERM and wait for it."""
    context = multiprocessing.get_context("fork")
    is_ready = context.Event()
    worker = context.Process(target=load_for_ever, args=[is_ready], daemon=True)
    worker.start()
    assert is_ready.wait(60)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
        worker.join(1)
        assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


def load_for_ever(is_ready):
    leave_signals_to_parent(0)
    is_ready.set()
    while True:
        time.sleep(1)


def test_batch_without_a_label_is_refused():
    labels = torch.full((2, 5), -100)
    with pytest.raises(UserError, match="step 3: found a batch in which all 10 labels are masked"):
        check_batch(labels, 2)
    labels[1, 4] = 7
    check_batch(labels, 2)
