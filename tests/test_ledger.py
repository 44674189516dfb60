"""The compute ledger: what each kind of end leaves behind, who closes what, and that nothing goes over a network."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from eval.policies.policy import RawAnswer, StepRequest
from eval.rollouts.metering import MeteredPolicy
from sft.compute.energy import EnergyMeter
from sft.compute.fields import FAILED, Project, list_shares, round_shares
from sft.compute.hardware import find_peak_tflops, name_storage, read_hardware
from sft.compute.ledger import append_event, close_killed_runs, load_runs, name_ledger
from sft.compute.recorder import RunRecorder, judge_end
from sft.compute.tracking import shorten_path, shorten_paths
from sft.errors import UserError
from sft.memory import EMPTY_MEMORY

LONG_RUN = """
import sys, time
from pathlib import Path
from sft.compute.recorder import RunRecorder
RunRecorder.HEARTBEAT_S = 0.1
with RunRecorder(Path(sys.argv[1]), "training", "ablation", about={"model": "m"}) as recorder:
    recorder.note(steps=7)
    recorder.log(step=7, loss=1.5)
    time.sleep(60)
"""


def _record(folder, purpose="training", **about):
    return RunRecorder(folder, "training", purpose, about={"model": "m", **about})


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder whose only run was killed with SIGKILL after it had shown signs of life."""
    folder = tmp_path_factory.mktemp("killed")
    process = subprocess.Popen([sys.executable, "-c", LONG_RUN, str(folder)], cwd=ROOT)
    try:
        wait_for(lambda: b'"steps": 7' in _read(folder))
        assert load_runs(folder)[0].outcome == "running"
        assert close_killed_runs(folder, by="another") == []
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return folder


def _read(folder):
    path = name_ledger(folder)
    return path.read_bytes() if path.is_file() else b""


def wait_for(is_true, timeout_s=60):
    until = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def test_finished_run_has_outcome_time_hardware_and_energy(tmp_path):
    with _record(tmp_path) as recorder:
        sum(i * i for i in range(300_000))
        recorder.note(steps=3)
    (run,) = load_runs(tmp_path)
    assert (run.outcome, run.error, run.figures["steps"]) == ("finished", None, 3)
    assert 0 < run.wall_s < 60
    assert run.figures["cpu_hours"] > 0
    assert run.figures["energy_kwh"] > 0
    assert run.figures["energy_sensors"]["cpu"].split()[0] in ("measured", "estimated")
    assert "co2e_kg" not in run.figures  # no country was given
    assert run.start["hardware"]["cpu_cores"] >= 1 and run.start["hardware"]["ram_gb"] > 0


def test_energy_that_cannot_be_measured_is_told_and_costs_no_other_figure(tmp_path, monkeypatch, caplog):
    """As where codecarbon lacks one of its files."""

    def fail(**settings):
        raise FileNotFoundError("cpu_power.csv")

    monkeypatch.setattr("sft.compute.energy.OfflineEmissionsTracker", fail)
    with caplog.at_level("WARNING"), _record(tmp_path) as recorder:
        recorder.note(steps=3)
    assert "energy is not measured: codecarbon: FileNotFoundError: cpu_power.csv" in caplog.text
    (run,) = load_runs(tmp_path)
    assert run.figures["steps"] == 3 and run.figures["cpu_hours"] >= 0
    assert "energy_kwh" not in run.figures


@pytest.mark.parametrize(("n_processes", "scope"), [(1, "process"), (2, "machine")])
def test_one_process_measures_its_own_energy_and_the_first_of_several_the_whole_machines(tmp_path, n_processes, scope):
    with RunRecorder(tmp_path, "training", "training", n_processes=n_processes, n_local_processes=n_processes):
        pass
    assert load_runs(tmp_path)[0].figures["energy_scope"] == scope
    assert EnergyMeter(None, n_processes)._tracker._tracking_mode == scope


def test_part_that_the_energy_meter_does_not_see_is_named(monkeypatch, caplog):
    meter = EnergyMeter("DEU")
    find_parts = meter._tracker._initialize_hardware_tracking

    def find_no_cpu():
        find_parts()
        meter._tracker._hardware = [part for part in meter._tracker._hardware if type(part).__name__ != "CPU"]

    monkeypatch.setattr(meter._tracker, "_initialize_hardware_tracking", find_no_cpu)
    with caplog.at_level("WARNING"):
        meter.start()
    sensors = meter.stop()["energy_sensors"]
    assert sensors["cpu"] == "missing (codecarbon finds none)" and sensors["ram"].startswith("estimated")
    assert "energy: codecarbon finds no cpu here" in caplog.text


def test_failed_run_leaves_the_kind_of_its_error_and_not_its_text(tmp_path):
    with pytest.raises(RuntimeError), _record(tmp_path):
        raise RuntimeError("/home/alice/secret.csv")
    (run,) = load_runs(tmp_path)
    assert (run.outcome, run.error) == ("failed", "RuntimeError")
    assert "alice" not in _read(tmp_path).decode()


@pytest.mark.slow
def test_killed_run_keeps_its_newest_figures_and_is_closed_by_the_next(killed):
    before = _read(killed)
    with _record(killed):
        pass
    assert _read(killed).startswith(before), "append-only"
    first, second = load_runs(killed)
    assert (first.outcome, first.start["purpose"], first.figures["steps"]) == ("killed", "ablation", 7)
    assert first.logs[0]["loss"] == 1.5
    assert second.outcome == "finished"
    closed = [json.loads(line) for line in _read(killed).splitlines() if b'"closed"' in line]
    assert [(event["run"], event["by"]) for event in closed] == [(first.run, second.run)]
    assert close_killed_runs(killed, by="third") == [], "a run is closed once"


@pytest.mark.slow
def test_killed_run_counts_up_to_its_last_sign(killed):
    run = load_runs(killed)[0]
    assert 0 <= run.wall_s < 60


def test_torn_line_is_ended_and_left_out(tmp_path):
    with _record(tmp_path):
        pass
    with name_ledger(tmp_path).open("ab") as file:
        file.write(b'{"event": "figures", "run": "x", "ti')
    append_event(name_ledger(tmp_path), "log", "y", seconds=1)
    assert len(load_runs(tmp_path)) == 1
    assert _read(tmp_path).endswith(b"}\n")
    assert json.loads(_read(tmp_path).splitlines()[-1])["run"] == "y"


def test_own_end_counts_before_what_another_run_concluded(tmp_path):
    """On a host with another process namespace a living run looks dead."""
    with _record(tmp_path) as recorder:
        append_event(name_ledger(tmp_path), "closed", recorder.run, outcome="killed", by="other")
    assert load_runs(tmp_path)[0].outcome == "finished"


def test_silent_run_of_another_host_is_closed_and_a_fresh_one_is_not(tmp_path):
    for run, when in (("old", "2020-01-01T00:00:00+00:00"), ("new", None)):
        append_event(name_ledger(tmp_path), "start", run, kind="training", purpose="other", host="elsewhere", pid=1)
        if when:
            text = name_ledger(tmp_path).read_text()
            stamp = json.loads(text)["time"]
            name_ledger(tmp_path).write_text(text.replace(stamp, when))
    assert close_killed_runs(tmp_path, by="me") == ["old"]


def test_every_rank_writes_its_own_file_and_the_sum_is_over_all(tmp_path):
    with (
        RunRecorder(tmp_path, "training", "training", about={"model": "m"}, run="r", n_processes=2) as first,
        RunRecorder(
            tmp_path, "training", "training", run="r", rank=1, n_processes=2, is_first_of_machine=False
        ) as second,
    ):
        first.note(samples=10, peak_gpu_gb=3.0)
        second.note(samples=11, peak_gpu_gb=4.0)
    assert {path.name for path in tmp_path.iterdir()} == {"compute_ledger.jsonl", "compute_ledger.rank1.jsonl"}
    (run,) = load_runs(tmp_path)
    assert run.total("samples") == 21
    assert {rank: figures["peak_gpu_gb"] for rank, figures in run.figures_of_rank.items()} == {0: 3.0, 1: 4.0}
    assert "energy_kwh" not in run.figures_of_rank[1], "a machine's energy is counted once"


class _Talkative:
    """Answers in as many tokens as it was asked before, to prompts of 100."""

    n_asked = 0

    def answer(self, requests):
        answers = [RawAnswer("", n_prompt_tokens=100, n_answer_tokens=self.n_asked + i) for i in range(len(requests))]
        self.n_asked += len(requests)
        return answers


def test_rollout_counts_the_steps_and_tokens_of_all_its_batches(tmp_path):
    requests = [StepRequest("t", i, "goal", EMPTY_MEMORY, tmp_path / "screen.png") for i in range(5)]
    with RunRecorder(tmp_path, "rollout", "inference", about={"model": "m"}) as recorder:
        policy = MeteredPolicy(_Talkative(), recorder)
        for batch in (requests[:3], requests[3:]):
            policy.answer(batch)
    figures = load_runs(tmp_path)[0].figures
    assert (figures["steps"], figures["prompt_tokens"], figures["answer_tokens"]) == (5, 500, 0 + 1 + 2 + 3 + 4)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "finished"),
        (SystemExit(0), "finished"),
        (SystemExit(143), "killed"),
        (KeyboardInterrupt(), "killed"),
        (UserError("found"), "failed"),
    ],
)
def test_outcome_is_that_of_the_end(error, outcome):
    assert judge_end(error) == outcome


def test_shares_of_the_breakdown_add_up_to_exactly_100(tmp_path):
    for purpose, n in (("training", 3), ("ablation", 2)):
        for _ in range(n):
            with _record(tmp_path, purpose):
                pass
    with pytest.raises(ValueError), _record(tmp_path):
        raise ValueError
    shares = {name.partition(" (%")[0]: share for name, share, _ in list_shares(Project(load_runs(tmp_path)))}
    assert set(shares) == {"training", "ablation", FAILED}
    assert round(sum(10 * share for share in shares.values())) == 1000


@pytest.mark.parametrize(
    ("amounts", "shares"),
    [
        ({"a": 1, "b": 1, "c": 1}, {"a": 33.4, "b": 33.3, "c": 33.3}),
        ({"a": 2, "b": 0}, {"a": 100.0, "b": 0.0}),
        ({}, {}),
    ],
)
def test_largest_remainders_are_rounded_up(amounts, shares):
    assert round_shares(amounts) == shares


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_is_that_of_the_card_named_and_of_no_other(gpu, peak):
    assert find_peak_tflops(gpu) == peak


def test_storage_of_a_memory_file_system_is_named():
    assert name_storage(type(ROOT)("/dev/shm")) == "tmpfs"


def test_machine_without_an_nvidia_driver_has_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert read_hardware(tmp_path)["gpus"] == []


def test_paths_lose_the_folders_that_may_name_a_person():
    assert shorten_path("Qwen/Qwen3-VL-8B-Instruct") == "Qwen/Qwen3-VL-8B-Instruct"
    assert shorten_path(f"{os.sep}home/alice/models/qwen") == "qwen"
    assert shorten_paths({"a": ["/home/alice/x.csv"], "n": 1, "t": "no path"}) == {
        "a": ["x.csv"],
        "n": 1,
        "t": "no path",
    }
