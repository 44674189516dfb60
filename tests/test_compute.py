"""A real training and rollout without a network, and the report over them: every figure against what was run."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_training import _write_recipe
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerState

from sft.compute import plots
from sft.compute.__main__ import main
from sft.compute.fields import SECTIONS, Field, Project, Row, build_fields
from sft.compute.flops import FlopCounter
from sft.compute.ledger import RunRecord, load_runs
from sft.compute.recorder import RunRecorder
from sft.compute.step_meter import StepMeter
from sft.errors import UserError

# Any socket but a local one ends the process; the settings are those that make codecarbon ask the network.
OFFLINE = """
import os, sys

def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname") or (
        event in ("socket.connect", "socket.sendto") and not isinstance(arguments[1], (str, bytes))
    ):
        sys.stderr.write(f"SOCKET {event} {arguments}\\n")
        os._exit(77)

sys.addaudithook(refuse)
from pathlib import Path
from sft import run
from eval import rollout
recipe, folder = sys.argv[1:]
run.main([recipe, "--country_iso_code", "DEU", "--val_rollout_tasks", "0", "--memory_writer", "rule",
          "--max_answer_tokens", "32"])  # so little trained a model never ends its answer: each runs to the limit
rollout.main(["--model_path", f"{folder}/out", "--test_csv", f"{folder}/val/tasks.csv", "--allow_overlap",
              "--output_dir", f"{folder}/results"])
"""


@pytest.fixture(scope="module")
def project(tiny_checkpoints, tmp_path_factory):
    """The folder of a training of four steps and of a rollout, made by a process that no socket is open to."""
    folder = tmp_path_factory.mktemp("project")
    recipe = _write_recipe(folder, tiny_checkpoints["qwen3_vl"])
    network = {
        "CODECARBON_ELECTRICITYMAPS_API_TOKEN": "token",
        "CODECARBON_CO2_SIGNAL_API_TOKEN": "token",
        "CODECARBON_EMISSIONS_ENDPOINT": "http://127.0.0.1:9/",
        "CODECARBON_SAVE_TO_API": "true",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", OFFLINE, str(recipe), str(folder)]
    finished = subprocess.run(command, cwd=ROOT, env={**os.environ, **network}, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def report(project, tmp_path_factory):
    """The report over them, in a folder of its own: {section: {field: value}}."""
    folder = shutil.copytree(project, tmp_path_factory.mktemp("report") / "outputs")
    main([str(folder)])
    content = json.loads((folder / "compute_report.json").read_text())
    return folder, {s: {f: v["value"] for f, v in fields.items()} for s, fields in content["sections"].items()}


@pytest.mark.slow
def test_training_and_rollout_are_recorded_without_a_network(project):
    training, rollout = load_runs(project)
    assert [(r.start["kind"], r.start["purpose"], r.outcome) for r in (training, rollout)] == [
        ("training", "training", "finished"),
        ("rollout", "inference", "finished"),
    ]
    assert training.figures["co2e_kg"] > 0 and rollout.figures["co2e_kg"] > 0, "the country is that of the recipe"
    assert not list(project.rglob("emissions.csv"))


@pytest.mark.slow
def test_tokens_and_samples_are_those_of_the_data(project):
    """Six tasks of three steps on a 60-token screenshot, twice: four packs of 9 steps, each with one screenshot."""
    figures = load_runs(project)[0].figures
    assert (figures["steps"], figures["samples"]) == (4, 36)
    state = json.loads((project / "out/trainer_state.json").read_text())
    n_tokens = max(row["num_tokens"] for row in state["log_history"] if "num_tokens" in row)
    assert figures["tokens_text"] + figures["tokens_image"] == n_tokens
    assert figures["tokens_image"] == 4 * 60
    assert 0 < figures["tokens_trained"] < figures["tokens_text"]
    assert figures["packing_factor"] > 1.5


@pytest.mark.slow
def test_measured_operations_agree_with_the_closed_formula(project):
    """The formula leaves out edges (the first layer's input gradient), which weigh most in a model of two layers.

    The backward pass takes about as much again, and nothing for the frozen vision tower.
    """
    figures = load_runs(project)[0].figures
    assert figures["flops_batch_measured"] / figures["flops_batch_formula"] == pytest.approx(1, abs=0.08)
    assert 0.4 < figures["flops_forward_measured"] / figures["flops_batch_measured"] < 0.55


def test_counter_agrees_with_torchs_own_and_changes_no_bit():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    inputs = torch.randn(3, 7, 16)

    def run():
        layer.zero_grad()
        loss = layer(inputs).square().sum()
        loss.backward()
        return loss.detach(), layer.linear1.weight.grad.clone()

    plain = run()
    with FlopCounter() as counter:
        counted = run()
    with FlopCounterMode(display=False) as torchs:
        run()
    assert all(torch.equal(a, b) for a, b in zip(plain, counted))
    attention = 3.5 * 4 * 3 * 2 * 7 * 7 * 8  # of a CPU, which torch's table lacks: batch, heads, pairs, head dimension
    assert counter.total == torchs.get_total_flops() + attention


def build_run(figures_of_rank, n_gpus=0, gpu="NVIDIA A100-SXM4-40GB"):
    """Return a finished training of as many processes as there are figures."""
    start = {
        "kind": "training",
        "purpose": "training",
        "n_processes": len(figures_of_rank),
        "n_gpus": n_gpus,
        "hardware": {"gpus": [{"name": gpu}] * n_gpus},
    }
    return RunRecord("run", Path("out"), start, "finished", "", 10.0, figures_of_rank=dict(enumerate(figures_of_rank)))


def read_values(run, section):
    fields = build_fields(Project([run]), {section: SECTIONS[section]})
    return {field.name: field.value for field in fields}


def test_report_of_eight_processes_sums_their_work_and_rates_one_of_them():
    """Each computes 624 TFLOP in the 4 s they all take: 156 TFLOP/s, half of an A100's 312."""
    first = {"busy_s": 4.0, "steps": 3, "packing_factor": 2.0, "data_wait_share": 0.25, "flops_batch_formula": 6e13}
    first |= {"flops_batch_measured": 5e13, "flops_forward_measured": 2e13, "gradient_accumulation_steps": 4}
    work = {"flops": 6.24e14, "samples": 10, "tokens_text": 600, "tokens_image": 400, "tokens_trained": 50}
    run = build_run([{**first, **work}, *[work] * 7], n_gpus=8)
    assert read_values(run, "efficiency") == {
        "tokens a second": 2000.0,
        "samples a second": 20.0,
        "packing factor": 2.0,
        "share of time waiting for data": 0.25,
        "TFLOP/s of one process": 156.0,
        "share of the bf16 peak": 0.5,
    }
    assert read_values(run, "FLOPs") == {
        "forward pass of one batch": 2e13,
        "forward and backward pass of one batch": 5e13,
        "the same by the closed formula": 6e13,
        "measured / formula": 0.8333,
        "optimiser step as large as that batch": 5e13 * 4 * 8,
        "instance (one training sample)": 6.24e14 / 10,
        "method (all trainings)": 8 * 6.24e14,
    }
    totals = read_values(run, "compute totals")
    assert (totals["optimiser steps, all trainings"], totals["samples trained on, all trainings"]) == (3, 80)
    assert totals["tokens with a loss, all trainings"] == 400


def test_training_whose_operations_were_not_counted_is_reported_by_the_formula():
    """As under DeepSpeed."""
    run = build_run([{"busy_s": 2.0, "flops": 3e12}, {"flops": 3e12}])
    assert read_values(run, "FLOPs") == {
        "training": "missing: no training measured a step",
        "method (all trainings)": 6e12,
    }


def meter_training(folder, monkeypatch, *events):
    """Meter a training whose events are (seconds since the one before, name, arguments), by a made-up clock."""
    now = [0.0]
    monkeypatch.setattr("sft.compute.step_meter.time.perf_counter", lambda: now[0])
    with RunRecorder(folder, "training", "training") as recorder:
        meter = StepMeter(recorder)
        state, arguments = TrainerState(), SimpleNamespace(gradient_accumulation_steps=1)
        for seconds, name, *more in events:
            now[0] += seconds
            given = more[0] if more else {}
            getattr(meter, f"on_{name}")(arguments, state, None, **{"model": torch.nn.Linear(1, 1), **given})


def test_time_of_a_training_is_that_of_its_steps_and_not_of_evaluations_and_checkpoints(tmp_path, monkeypatch):
    """By hand: a step of 10 s, an evaluation of 90, a step of 5, a checkpoint of 95, a step of 3."""
    events = [(50, "train_begin"), (10, "step_end"), (90, "evaluate"), (5, "step_end"), (95, "save"), (3, "step_end")]
    meter_training(tmp_path, monkeypatch, *events, (0, "train_end"))  # the first 50 s load the model
    assert load_runs(tmp_path)[0].figures["busy_s"] == 18


def test_share_of_waiting_weighs_each_line_of_the_log_by_its_own_seconds(tmp_path, monkeypatch):
    """By hand: 10 s of which half was waited for data, then 30 s of which a tenth: 8 of 40."""
    logged = [(0, "log", {"logs": {"data_wait_share": share}}) for share in (0.5, 0.1)]
    events = [(0, "train_begin"), (10, "step_end"), logged[0], (30, "step_end"), logged[1]]
    meter_training(tmp_path, monkeypatch, *events)
    assert load_runs(tmp_path)[0].figures["data_wait_share"] == pytest.approx(8 / 40)


@pytest.mark.slow
def test_report_holds_every_section_and_no_empty_value(report):
    folder, sections = report
    assert list(sections) == list(SECTIONS)
    assert all(value not in (None, "") for fields in sections.values() for value in fields.values())
    rows = list(csv.DictReader((folder / "compute_report_summary.csv").open()))
    assert list(rows[0]) == ["Section", "Field", "Value", "Status"]
    assert {row["Status"] for row in rows} == {"measured", "estimated", "author"}
    assert len(rows) == sum(map(len, sections.values()))
    for name in ("memory", "throughput", "loss"):
        with Image.open(folder / f"compute_{name}.png") as figure:
            n_of_curve = sum(n for n, color in figure.convert("RGB").getcolors(1 << 20) if color == (31, 119, 180))
        assert n_of_curve > 100, name  # pixels of the first curve's blue
    assert "## FLOPs" in (folder / "compute_report.md").read_text()


@pytest.fixture
def read_figures(monkeypatch):
    """Read the figures saved since the last call: of each its axes' names, the times' name, and the curves' points."""
    from matplotlib import pyplot

    closed, close = [], pyplot.close
    monkeypatch.setattr(pyplot, "close", closed.append)

    def read_axis(axis):
        curves = {curve.get_label(): list(map(tuple, curve.get_xydata().tolist())) for curve in axis.lines}
        return axis.get_title() or axis.get_ylabel(), axis.get_xlabel(), curves

    def read():
        figures = [[read_axis(axis) for axis in figure.get_axes()] for figure in closed]
        closed.clear()
        return figures

    yield read
    close("all")


def test_figures_of_the_report_show_what_each_run_logged(read_figures, tmp_path):
    """By hand: 600 tokens in the 20 s of steps between two lines, though an evaluation came between them."""
    first = {"seconds": 60, "host_gb": 2.5, "gpu_gb": 7.0, "busy_s": 30, "tokens_text": 300, "tokens_image": 100}
    second = {"seconds": 180, "host_gb": 3.0, "gpu_gb": 8.0, "busy_s": 50, "tokens_text": 700, "tokens_image": 300}
    evaluation = {"seconds": 120, "host_gb": 2.75, "eval_loss": 1.75, "busy_s": 30}
    run = replace(build_run([{}]), logs=({**first, "loss": 2.0}, evaluation, {**second, "loss": 1.5}))
    paths = plots.plot_runs(tmp_path, [run])
    assert [path.name for path in paths] == ["compute_memory.png", "compute_throughput.png", "compute_loss.png"]
    time = "minutes since the run began"
    assert read_figures() == [
        [("memory (GB)", time, {"run host": [(1, 2.5), (2, 2.75), (3, 3)], "run GPU": [(1, 7), (3, 8)]})],
        [("tokens a second", time, {"run ": [(3, 30)]})],
        [("loss", time, {"run training": [(1, 2), (3, 1.5)], "run validation": [(2, 1.75)]})],
    ]
    for path in paths:
        with Image.open(path) as figure:
            assert figure.size == (768, 432)


def test_curves_of_a_training_are_its_losses_and_the_accuracy_of_its_rollouts(read_figures, tmp_path):
    log = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.5},
        {"step": 2, "eval_loss": 1.75, "eval_swa": 0.5, "eval_swa_target": 0.25},
    ]
    plots.plot_curves(log, tmp_path / "curves.png")
    plots.plot_curves(log[:2], tmp_path / "without.png")
    rollouts, step = "Own-memory step accuracy on validation tasks", "optimiser step"
    assert read_figures() == [
        [
            ("Loss", step, {"training": [(1, 2), (2, 1.5)], "validation": [(2, 1.75)]}),
            (rollouts, step, {"action": [(2, 0.5)], "action and target": [(2, 0.25)]}),
        ],
        [("Loss", step, {"training": [(1, 2), (2, 1.5)]})],
    ]


def test_fields_of_one_name_are_numbered_and_an_empty_value_says_so():
    rows = [Row("name", lambda _: "a"), lambda _: [("name", None, "measured")]]
    assert build_fields(Project([]), {"model": rows}) == [
        Field("model", "name", "a", "measured"),
        Field("model", "name (2)", "missing: not known", "measured"),
    ]


@pytest.mark.slow
def test_report_reads_scores_from_the_rollout(report, project):
    metrics = json.loads((project / "results/metrics.json").read_text())
    swa = metrics["matchers"]["action"]["swa"]
    performance = report[1]["performance"]
    (label,) = [name for name in performance if name.endswith("SWA by action (%), ours")]
    assert label.startswith("outputs/results, own; Not unseen: the model was ")
    shown = performance[label]
    assert shown == f"{100 * swa['value']:.1f} [{100 * swa['low']:.1f}, {100 * swa['high']:.1f}]"


@pytest.mark.slow
def test_model_parameters_are_counted_by_kind(report):
    model = report[1]["model"]
    assert model["parameters, trainable"] == 8192  # 2 layers, 7 linears, rank 4
    assert model["parameters, in 4 bits"] == 73_728
    assert model["parameters, total"] > 73_728 + 8192


@pytest.mark.slow
def test_what_only_an_author_knows_is_asked_for_until_it_is_given(report):
    folder, sections = report
    assert sections["dataset"]["licence"] == "missing: fill in dataset_licence in compute_author.yaml"
    form = folder / "compute_author.yaml"
    form.write_text(form.read_text().replace("dataset_licence:", "dataset_licence: CC-BY-4.0"))
    main([str(folder)])
    content = json.loads((folder / "compute_report.json").read_text())
    assert content["sections"]["dataset"]["licence"] == {"value": "CC-BY-4.0", "status": "author"}
    form.write_text(form.read_text() + "\ncolour: blue\n")
    with pytest.raises(UserError, match="found colour; expected only"):
        main([str(folder)])
    form.unlink()


@pytest.mark.slow
def test_report_names_neither_user_nor_host_nor_folder(report, project, tmp_path, monkeypatch):
    folder = shutil.copytree(project, tmp_path / "outputs")
    (folder / "out/runs").mkdir()
    (folder / "out/runs/events.out.tfevents.1700000000.gpu-node-7.alice.4711.0").touch()
    main([str(folder)])
    for path in folder.glob("compute_report*"):
        text = path.read_text()
        assert "gpu-node-7" not in text and "alice" not in text
        assert os.uname().nodename not in text and str(tmp_path) not in text and str(project) not in text
    log = "outputs/out/runs/events.out.tfevents.1700000000.HOST.4711.0"
    assert log in json.loads((folder / "compute_report.json").read_text())["sections"]["log files"]


def test_folder_without_a_ledger_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"found no compute_ledger\.jsonl below"):
        main([str(tmp_path)])


@pytest.mark.parametrize("module", ["sft.compute", "sft.export"])
def test_command_starts_without_torch(module):
    command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    imported = {line.rsplit("|", 1)[-1].strip() for line in finished.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "matplotlib", "codecarbon"}
