"""Two processes end with the adapter of one that has the same global batch: DDP, ZeRO-2 and ZeRO-3, over gloo."""

import json
import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import yaml
from accelerate.data_loader import BatchSamplerShard
from safetensors.torch import load_file
from torch.distributed import distributed_c10d
from training_runs import PREEMPTED, ROOT, load_adapter, printed, read_losses
from trajectory_samples import build_tasks, write_trajectories

from sft.batches.sampler import PackSampler, PaddedSampler, StepSize
from sft.training.checkpoint_folder import list_checkpoints
from sft.training.processes import limit_waiting

# One process accumulates over what two work on at the same time. Dropout is off: processes draw other random numbers.
COMMON = ("--lora_dropout", "0", "--max_steps", "5", "--learning_rate", "1e-3", "--save_strategy", "no")
PADDED = (
    "--packing",
    "none",
    "--per_device_train_batch_size",
    "2",
)  # 15 steps: two of each process's four have one row
LORA = ("--load_in_4bit", "false")
CHECKPOINTING = ("--gradient_checkpointing", "true", "--gradient_checkpointing_kwargs", "{use_reentrant: false}")
VISION = ("--lora_parts", "[language, vision]", *CHECKPOINTING)
FULL = (*LORA, "--use_peft", "false", "--max_steps", "3")
ENGINES = {
    "ddp": {"ranks": 2},
    "zero2": {"config": "accelerate_configs/cpu_zero2.yaml"},
    "zero3": {"config": "accelerate_configs/cpu_zero3.yaml"},
}


@pytest.fixture(scope="module")
def recipe(recipe):
    pytest.importorskip("deepspeed")
    return recipe


@pytest.fixture(scope="module")
def one_process(attempt, tmp_path_factory):
    """Train once in one process with each set of settings; return the output folder.

    `is_joined`: what two processes work on at the same time is one batch, over which nothing is accumulated.
    """
    folders = {}

    def train(settings, is_joined=False):
        key = settings, is_joined
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("one")
            arguments = [*COMMON, *settings, *([] if is_joined else ["--gradient_accumulation_steps", "2"])]
            joined = {"joined": 2} if is_joined else {}
            assert attempt(folders[key], {"arguments": arguments, **joined}) == [0], printed(folders[key])
        return folders[key]

    return train


def find_free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def load_weights(folder):
    """Return what full fine-tuning saved."""
    return load_file(folder / "model.safetensors")


def assert_close(folder, other, load=load_adapter, atol=1e-4):
    """Each number of the adapter within `atol`; five steps with a learning rate of 1e-3 move it by up to 5e-3."""
    first, second = load(folder), load(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=atol, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), LORA, PADDED], ids=["packed QLoRA", "packed LoRA", "padded"])
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_end_where_one_with_the_same_global_batch_does(attempt, one_process, tmp_path, engine, settings):
    """A mean over the tokens of both is the same where they are one batch; a mean over two unequal batches is not."""
    if engine == "zero3" and "--load_in_4bit" not in settings:
        settings = (*settings, *LORA)  # 4-bit under ZeRO-3 needs bf16: the test below
    one = one_process(settings, is_joined=True)
    assert attempt(tmp_path, {**ENGINES[engine], "arguments": [*COMMON, *settings]}) == [[0, 0]], printed(tmp_path)
    assert read_losses(tmp_path) == pytest.approx(read_losses(one), rel=1e-5)
    assert_close(tmp_path, one)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_paged_8_bit_optimiser_ends_the_same_on_two_processes(attempt, one_process, tmp_path, engine):
    """That of the 8B recipes; ZeRO cuts the blocks of 256 numbers that share a scale elsewhere: 2.9e-4 were seen."""
    settings = (*LORA, "--optim", "paged_adamw_8bit", "--lora_r", "64")
    one = one_process(settings)
    assert attempt(tmp_path, {**ENGINES[engine], "arguments": [*COMMON, *settings]}) == [[0, 0]], printed(tmp_path)
    assert read_losses(tmp_path) == pytest.approx(read_losses(one), rel=1e-5)
    assert_close(tmp_path, one, atol=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_lora_on_the_vision_tower_ends_the_same_on_two_processes(attempt, one_process, tmp_path, engine):
    """QLoRA with checkpointing; under ZeRO-3, which takes neither with the vision tower, LoRA without it."""
    settings = (*VISION, *LORA, "--gradient_checkpointing", "false") if engine == "zero3" else VISION
    one = one_process(settings)
    assert attempt(tmp_path, {**ENGINES[engine], "arguments": [*COMMON, *settings]}) == [[0, 0]], printed(tmp_path)
    assert read_losses(tmp_path) == pytest.approx(read_losses(one), rel=1e-5)
    learned = {n: bool(t.any()) for n, t in load_adapter(tmp_path).items() if "visual" in n and "lora_B" in n}
    assert learned and all(learned.values()), learned
    assert_close(tmp_path, one)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_full_fine_tuning_ends_the_same_on_two_processes(attempt, one_process, tmp_path, engine):
    one = one_process(FULL)
    assert attempt(tmp_path, {**ENGINES[engine], "arguments": [*COMMON, *FULL]}) == [[0, 0]], printed(tmp_path)
    assert read_losses(tmp_path) == pytest.approx(read_losses(one), rel=1e-5)
    assert_close(tmp_path, one, load_weights)


@pytest.mark.parametrize("n_ranks", [2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_see_disjoint_steps_and_each_step_once_an_epoch(n_ranks, accumulation):
    """Through accelerate's own sharding, with numbers of steps that do not come out even."""
    sizes = [StepSize(f"image{i % 5}", 10, 90, 20 + i) for i in range(23)]
    for sampler in (PackSampler(sizes, 300, 0, n_ranks, accumulation), PaddedSampler(23, 4, 0, n_ranks, accumulation)):
        for epoch in range(3):
            sampler.set_epoch(epoch)
            shares = [list(BatchSamplerShard(sampler, n_ranks, rank)) for rank in range(n_ranks)]
            assert len({len(share) for share in shares}) == 1
            seen = [row for share in shares for batch in share for row in batch]
            assert sorted(seen) == list(range(23))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_preempted_processes_save_the_same_step_and_end_as_if_undisturbed(attempt, one_process, tmp_path, engine):
    """One of two gets the signal; both save, and the checkpoint is of this engine."""
    arguments = ["--resume", "auto", *COMMON, *LORA]
    preemption = {"signal": "SIGUSR1", "to_rank": 1, "at_step": 2}
    engine_attempt = {**ENGINES[engine], "arguments": arguments}
    assert attempt(tmp_path, {**engine_attempt, **preemption}) == [[PREEMPTED, PREEMPTED]], printed(tmp_path)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    shards = [name for name in manifest["files"] if name.endswith("optim_states.pt")]
    assert len(shards) == (0 if engine == "ddp" else 2)
    assert manifest["run"]["launch"]["batches_per_step"] == 2
    assert attempt(tmp_path, engine_attempt) == [[0, 0]], printed(tmp_path)
    assert_close(tmp_path, one_process(LORA))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_processes_that_keep_vision_outputs_in_one_folder_end_as_if_they_kept_none(
    attempt, one_process, tmp_path, engine
):
    """Preempted half-way and resumed, when each finds on disk what the other has computed."""
    kept = ["--screenshot_cache", str(tmp_path / "cache"), "--vision_cache_gb", "1"]
    arguments = [*COMMON, *kept, "--save_strategy", "steps"]
    first = {**ENGINES[engine], "arguments": arguments, "signal": "SIGTERM", "at_step": 2, "to_rank": None}
    second = {**ENGINES[engine], "arguments": [*arguments, "--resume", "auto"]}
    assert attempt(tmp_path, first, second) == [[PREEMPTED] * 2, [0, 0]], printed(tmp_path) + printed(tmp_path, 1)
    assert len(list((tmp_path / "cache/vision").iterdir())) == 2
    assert_close(tmp_path, one_process(()))


@pytest.mark.slow
def test_zero3_checkpoint_is_refused_for_another_number_of_processes(attempt, tmp_path):
    arguments = ["--resume", "auto", *COMMON, *LORA]
    preemption = {"signal": "SIGUSR1", "at_step": 1}
    two, one = {**ENGINES["zero3"], "arguments": arguments}, {"arguments": arguments}
    assert attempt(tmp_path, {**two, **preemption}, one) == [[PREEMPTED, PREEMPTED], 2]
    assert "launch: processes: found None; the run began with 2" in printed(tmp_path, 1)


@pytest.mark.slow
def test_ddp_run_goes_on_in_one_process_with_the_same_global_batch(attempt, one_process, tmp_path):
    arguments = ["--resume", "auto", *COMMON, *LORA]
    two = {**ENGINES["ddp"], "arguments": arguments, "signal": "SIGTERM", "at_step": 2}
    one = {"arguments": [*arguments, "--gradient_accumulation_steps", "2"]}
    assert attempt(tmp_path, two, one) == [[PREEMPTED, PREEMPTED], 0], printed(tmp_path, 1)
    assert_close(tmp_path, one_process(LORA))


@pytest.mark.slow
def test_zero3_trains_4bit_weights_stored_as_bf16_and_saves_the_adapter_whole(attempt, one_process, tmp_path):
    """The run itself reopens what it saved and fails unless keys, shapes and numbers are those it trained."""
    settings = ("--dtype", "bfloat16", "--max_steps", "2")
    codes = attempt(tmp_path, {**ENGINES["zero3"], "arguments": [*COMMON, *settings]})
    assert codes == [[0, 0]], printed(tmp_path)
    first, second = load_adapter(tmp_path), load_adapter(one_process(settings))
    assert {name: t.shape for name, t in first.items()} == {name: t.shape for name, t in second.items()}
    assert read_losses(tmp_path) == pytest.approx(read_losses(one_process(settings)), rel=1e-2)


@pytest.fixture
def offload(tmp_path):
    """What zero3_offload.yaml starts, on two CPU processes in fp32."""
    config = yaml.safe_load((ROOT / "accelerate_configs/zero3_offload.yaml").read_text())
    config |= {"num_processes": 2, "use_cpu": True, "mixed_precision": "no"}
    path = tmp_path / "offload.yaml"
    path.write_text(yaml.safe_dump(config))
    return {"config": str(path)}


@pytest.mark.slow
def test_zero3_with_offload_trains_saves_and_goes_on_as_one_process(attempt, one_process, offload, tmp_path):
    """DeepSpeed's Adam takes the place of torch's, with its decoupled weight decay and betas."""
    settings = (*LORA, "--optim", "adamw_torch", "--weight_decay", "1", "--adam_beta2", "0.9")
    one, out = one_process(settings), tmp_path / "out"
    two = {**offload, "arguments": ["--resume", "auto", *COMMON, *settings]}
    preemption = {"signal": "SIGUSR1", "to_rank": 1, "at_step": 2}
    assert attempt(out, {**two, **preemption}) == [[PREEMPTED, PREEMPTED]], printed(out)
    (shard,) = out.glob("checkpoint-*/*/*_rank_1_*_optim_states.pt")
    (group,) = torch.load(shard, weights_only=False)["optimizer_state_dict"]["optimizer_state_dict"]["param_groups"]
    assert "bias_correction" in group, "a key of DeepSpeedCPUAdam's, not of torch's AdamW"
    assert attempt(out, two) == [[0, 0]], printed(out)
    assert "continuing from" in printed(out)
    assert read_losses(out) == pytest.approx(read_losses(one), rel=1e-5)
    assert_close(out, one)


@pytest.mark.slow
def test_zero3_with_offload_trains_4bit_weights_stored_as_bf16(attempt, one_process, offload, tmp_path):
    """With the optimiser a recipe has unless it names one, fused AdamW."""
    settings = ("--dtype", "bfloat16", "--max_steps", "2")
    two = {**offload, "arguments": [*COMMON, *settings]}
    assert attempt(tmp_path / "out", two) == [[0, 0]], printed(tmp_path / "out")
    first, second = load_adapter(tmp_path / "out"), load_adapter(one_process(settings))
    assert {name: t.shape for name, t in first.items()} == {name: t.shape for name, t in second.items()}
    assert read_losses(tmp_path / "out") == pytest.approx(read_losses(one_process(settings)), rel=1e-2)


@pytest.mark.slow
def test_zero3_with_offload_fine_tunes_in_full_as_one_process(attempt, one_process, offload, tmp_path):
    assert attempt(tmp_path / "out", {**offload, "arguments": [*COMMON, *FULL]}) == [[0, 0]], printed(tmp_path / "out")
    assert_close(tmp_path / "out", one_process(FULL), load_weights)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "offload"])
def test_single_step_of_a_warm_up_ends_well(attempt, offload, tmp_path, engine):
    """Its learning rate is 0, so that nothing can have been learned."""
    arguments = [*COMMON, *LORA, "--optim", "adamw_torch", "--max_steps", "1", "--warmup_steps", "3"]
    arguments += ["--save_strategy", "steps"]
    started = offload if engine == "offload" else ENGINES[engine]
    assert attempt(tmp_path / "out", {**started, "arguments": arguments}) == [[0, 0]], printed(tmp_path / "out")
    assert "nothing was learned: every step up to 1 had a learning rate of 0" in printed(tmp_path / "out")


@pytest.mark.slow
def test_two_processes_validate_as_one_does(attempt, tmp_path):
    """They share the tasks out, but for ZeRO-3, where both walk all of them; one task more than processes."""
    val = write_trajectories(tmp_path / "val", build_tasks(3, n_steps=2, first=50))
    arguments = [*COMMON, *LORA, "--val_csv", str(val), "--memory_writer", "rule", "--max_answer_tokens", "40"]
    arguments += ["--max_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1"]
    validated = {}
    for engine in ("one", "ddp", "zero3"):
        accumulation = ["--gradient_accumulation_steps", "2"] if engine == "one" else []
        codes = attempt(tmp_path / engine, {**ENGINES.get(engine, {}), "arguments": [*arguments, *accumulation]})
        assert codes in ([0], [[0, 0]]), printed(tmp_path / engine)
        history = json.loads((tmp_path / engine / "trainer_state.json").read_text())["log_history"]
        (validated[engine],) = [row for row in history if "eval_swa" in row]
    for engine in ("ddp", "zero3"):
        for key in ("eval_loss", "eval_swa", "eval_swa_low", "eval_swa_high", "eval_swa_target"):
            assert validated[engine][key] == pytest.approx(validated["one"][key], rel=1e-4), (engine, key)


ROLL_OUT = """
import json, os, sys, torch
from accelerate import PartialState
PartialState(cpu=True)
from test_modes import WrongAt
import eval.rollouts.validation as validation
from sft.data.load import load_trajectories
from sft.recipe.recipe import parse_recipe
recipe = parse_recipe([sys.argv[1], "--val_csv", sys.argv[2], "--bf16", "true"])
tasks = load_trajectories(sys.argv[2], show_progress=False)
validation.ModelPolicy = lambda model, encoder: WrongAt(tasks, {("t50", 0), ("t52", 1)})
scores = validation.build_validation_rollout(recipe, tasks, None)(torch.nn.Module())
print("scores", json.dumps(scores))
"""


@pytest.mark.slow
def test_two_processes_score_the_tasks_of_both(recipe, tmp_path):
    """Three tasks of two steps, of which the first process has two with an error each: 4 of 6 steps are right."""
    val = write_trajectories(tmp_path, build_tasks(3, n_steps=2, first=50))
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ROLL_OUT, str(recipe), str(val)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env={**variables, "RANK": r, "LOCAL_RANK": r}, stdout=-1, text=True)
        for r in ("0", "1")
    ]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    scores = [json.loads(text.partition("scores ")[2]) for text in printed]
    assert scores[0] == scores[1]
    assert (scores[0]["swa"], scores[0]["swa_target"]) == (pytest.approx(4 / 6), pytest.approx(4 / 6))
    assert (scores[0]["swa_low"], scores[0]["swa_high"]) == (pytest.approx(0.5), pytest.approx(1))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_process_is_reported_by_the_other_and_the_run_goes_on(attempt, one_process, tmp_path, engine):
    arguments = ["--resume", "auto", *COMMON, *LORA, "--save_strategy", "steps", "--save_steps", "1"]
    two = {**ENGINES[engine], "arguments": arguments}
    assert attempt(tmp_path, {**two, "signal": "SIGKILL", "to_rank": 1, "at_step": 2}) == [[1, -9]]
    assert "rank 0: another process has died, or did not answer for ddp_timeout=1800 s" in printed(tmp_path)
    assert "resume with --resume auto" in printed(tmp_path)
    assert "step 2 done" in (tmp_path / "logs/rank-1.log").read_text()
    assert attempt(tmp_path, two) == [[0, 0]], printed(tmp_path)
    assert_close(tmp_path, one_process(LORA))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_shards_half_written_by_one_process_are_never_gone_on_from(attempt, one_process, tmp_path, engine):
    """First the second process is killed in the middle of its shard, then the first cannot write its own."""
    arguments = ["--resume", "auto", *COMMON, *LORA, "--save_strategy", "steps", "--save_steps", "1"]
    two = {**ENGINES[engine], "arguments": arguments, "limit_s": 120}
    less_than_a_shard = {"max_file_bytes": 30_000}
    killed = {**two, **less_than_a_shard, "signal": "SIGXFSZ", "to_rank": 1, "at_step": 2}
    assert attempt(tmp_path, killed) == [[1, -signal.SIGXFSZ]], printed(tmp_path)
    assert "rank 0: another process has died" in printed(tmp_path)
    (half,) = (tmp_path / "unfinished").glob("checkpoint-*")
    assert 30_000 in [path.stat().st_size for path in half.rglob("zero_pp_rank_1_*")]
    step = int(half.name.removeprefix("checkpoint-"))
    assert list_checkpoints(tmp_path)[-1].name == f"checkpoint-{step - 1}"
    assert attempt(tmp_path, {**two, **less_than_a_shard, "at_step": 3}) == [[1, 1]], printed(tmp_path)
    assert f"continuing from {tmp_path}/checkpoint-{step - 1}" in printed(tmp_path)
    assert "File too large" in printed(tmp_path) and "rank 1: another process has died" in printed(tmp_path)
    assert (tmp_path / "unfinished").exists()
    last = list_checkpoints(tmp_path)[-1]
    assert attempt(tmp_path, two) == [[0, 0]], printed(tmp_path)
    assert f"continuing from {last}\n" in printed(tmp_path)
    assert_close(tmp_path, one_process(LORA))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_full_disk_noticed_by_one_process_ends_all_with_the_reason(attempt, small_disk, engine):
    folder, resize = small_disk
    two = {**ENGINES[engine], "arguments": ["--resume", "auto", *COMMON, *LORA, "--save_strategy", "steps"]}
    two["arguments"] += ["--save_steps", "1"]
    assert attempt(folder, {**two, "signal": "SIGTERM", "at_step": 1}) == [[PREEMPTED, PREEMPTED]], printed(folder)
    resize(sum(path.stat().st_blocks * 512 for path in folder.rglob("*")) + 100_000)
    assert attempt(folder, {**two, "limit_s": 120}) == [[2, 2]], printed(folder)
    for rank in range(2):
        assert "MB free on the disk; expected" in (folder / f"logs/rank-{rank}.log").read_text()


def test_groups_that_are_built_wait_for_as_many_seconds_as_ddp_timeout_says(monkeypatch):
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):  # so that the test leaves them as they were
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))
    limit_waiting(90)
    timeouts = distributed_c10d.default_pg_timeout, distributed_c10d.default_pg_nccl_timeout
    assert timeouts == (timedelta(seconds=90), timedelta(seconds=90))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_process_that_hangs_ends_the_run_after_ddp_timeout(attempt, tmp_path, engine):
    """Under ZeRO-3 the other waits in a group that DeepSpeed built."""
    arguments = [*COMMON, *LORA, "--ddp_timeout", "10"]
    stopped = {"signal": "SIGSTOP", "to_rank": 1, "at_step": 2, "limit_s": 300}
    assert attempt(tmp_path, {**ENGINES[engine], "arguments": arguments, **stopped}) == [[1, -9]], printed(tmp_path)
    assert "rank 0: another process has died, or did not answer for ddp_timeout=10 s" in printed(tmp_path)
    assert "Timed out waiting 10000ms" in printed(tmp_path)
    assert f"{tmp_path}/logs" in printed(tmp_path)
