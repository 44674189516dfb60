"""What the compute report says: every field, section by section, how it is had and what is said in its place."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from sft.compute.hardware import find_peak_tflops
from sft.compute.ledger import RunRecord
from sft.data.data_notes import list_data_notes
from sft.errors import UserError
from sft.files import write_whole
from sft.rates import read_rate
from sft.recipe.recipe import load_yaml

Status = Literal["measured", "estimated", "author"]
AUTHOR_NAME = "compute_author.yaml"
FAILED = "failed and killed runs"
LOG_PATTERNS = ("compute_ledger*.jsonl", "steps.jsonl", "trainer_state.json", "events.out.tfevents.*", "*.log")


@dataclass(frozen=True)
class Field:
    """One line of the report. A value that is not there says why in its place."""

    section: str
    name: str
    value: Any
    status: Status


@dataclass(frozen=True)
class Project:
    """What a report is about: runs, oldest first, the folders they lie below, and what the author has filled in."""

    runs: Sequence[RunRecord]
    folders: Sequence[Path] = ()
    author: Mapping[str, Any] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[RunRecord]:
        return [run for run in self.runs if run.start["kind"] == kind]

    def find_last_training(self, is_meant: Callable[[RunRecord], Any]) -> RunRecord | None:
        return next((run for run in reversed(self.of_kind("training")) if is_meant(run)), None)

    @property
    def finished(self) -> RunRecord | None:
        """The last training that finished."""
        return self.find_last_training(lambda run: run.outcome == "finished")

    def total(self, name: str) -> float:
        return sum(run.total(name) for run in self.runs)


@dataclass(frozen=True)
class Row:
    """A field that every report has; `otherwise` stands where `read` finds nothing."""

    name: str
    read: Callable[[Project], Any]
    otherwise: str = "missing: not known"
    status: Status = "measured"

    def __call__(self, project: Project) -> Iterator[tuple[str, Any, Status]]:
        value = self.read(project)
        yield self.name, self.otherwise if value is None else value, self.status


@dataclass(frozen=True)
class Asked:
    """A field that only the author knows, by its key in the form, with what the form says of it."""

    name: str
    key: str
    hint: str

    def __call__(self, project: Project) -> Iterator[tuple[str, Any, Status]]:
        value = project.author.get(self.key)
        yield self.name, f"missing: fill in {self.key} in {AUTHOR_NAME}" if value is None else value, "author"


Rows = Callable[[Project], Iterable[tuple[str, Any, Status]]]


def build_fields(project: Project, sections: Mapping[str, Sequence[Rows]]) -> list[Field]:
    """Return the fields in their order; those of one name in a section are numbered, and no value is empty."""
    fields = []
    for section, groups in sections.items():
        seen: Counter[str] = Counter()
        for name, value, status in (row for rows in groups for row in rows(project)):
            seen[name] += 1
            numbered = name if seen[name] == 1 else f"{name} ({seen[name]})"
            fields.append(Field(section, numbered, "missing: not known" if value in (None, "") else value, status))
    return fields


def load_author(folder: Path) -> dict[str, Any]:
    """Read the author's YAML, which is written as a form to fill in where there is none yet.

    Raises:
        UserError: the file cannot be read or holds keys that nobody asked for.
    """
    asked = [row for rows in SECTIONS.values() for row in rows if isinstance(row, Asked)]
    path = folder / AUTHOR_NAME
    if not path.is_file():
        lines = ["# What the compute report cannot know. Fill in, then run `python -m sft.compute` again."]
        text = "\n".join([*lines, *(f"{row.key}:  # {row.hint}" for row in asked)]) + "\n"
        assert set(yaml.safe_load(text)) == {row.key for row in asked}
        write_whole(path, text)
    values = load_yaml(path)
    keys = [row.key for row in asked]
    if unknown := sorted(set(values) - set(keys)):
        raise UserError(f"{path}: found {', '.join(unknown)}; expected only {', '.join(keys)}")
    return values


def _join(read: Callable[[RunRecord], Iterable[Any]]) -> Callable[[Project], str | None]:
    """Read a value of every run; what differed between them is listed with `; `."""

    def read_all(project: Project) -> str | None:
        values = (value for run in project.runs for value in read(run))
        return "; ".join(dict.fromkeys(str(value) for value in values if value is not None)) or None

    return read_all


def _hardware(name: str) -> Callable[[Project], str | None]:
    return _join(lambda run: [run.start.get("hardware", {}).get(name)])


def _gpus(name: str) -> Callable[[Project], str | None]:
    return _join(lambda run: [gpu[name] for gpu in run.start.get("hardware", {}).get("gpus", [])])


def _read_container(run: RunRecord) -> list[str | None]:
    return [{True: "yes", False: "no"}.get(run.start.get("hardware", {}).get("is_container"))]


def _count_machines(run: RunRecord) -> list[int]:
    return [-(-run.start.get("n_processes", 1) // run.start.get("n_local_processes", 1))]


def _list_versions(project: Project) -> Iterator[tuple[str, Any, Status]]:
    for package in dict.fromkeys(p for run in project.runs for p in run.start.get("versions", {})):
        versions = dict.fromkeys(run.start.get("versions", {}).get(package) for run in project.runs)
        yield f"version of {package}", "; ".join(v for v in versions if v is not None), "measured"


def list_scores(project: Project) -> Iterator[tuple[str, Any, Status]]:
    """Read every metrics.json of a model: metric, ours, baseline (always the most frequent action), improvement.

    A replayed recording, an empty policy and one shard of a rollout measure no model; they are left out.
    """
    has_any = False
    for folder in project.folders:
        for path in sorted(folder.rglob("metrics.json")):
            metrics = json.loads(path.read_text(encoding="utf-8"))
            run = metrics.get("run", {})
            if run.get("policy", "model") != "model" or run.get("shard") is not None:
                continue
            has_any = True
            notes = "".join(
                f"; {note.rstrip('.')}" for note in list_data_notes(run.get("data") or {}, names_tasks=False)
            )
            name = f"{path.parent.relative_to(folder.parent)}, {metrics['mode']}{notes}"
            for matcher, rates in metrics["matchers"].items():
                for measure in ("swa", "ta"):
                    label = f"{name}: {measure.upper()} by {matcher} (%), ours"
                    yield label, read_rate(rates[measure]).format(), "measured"
            baseline = metrics["majority_baseline"]
            label = f"{name}: SWA of always {baseline['action']} (%), baseline"
            yield label, read_rate(baseline).format(), "measured"
            label = f"{name}: SWA by action, ours - baseline (points), improvement"
            yield label, read_rate(metrics["over_majority"]).format(signed=True), "measured"
    if not has_any:
        yield "metrics", "missing: no metrics.json; roll a model out first", "measured"


def _list_data(project: Project) -> Iterator[tuple[str, Any, Status]]:
    described = []
    for run in project.runs:
        data, use = run.start.get("data", {}), "trained on" if run.start["kind"] == "training" else "rolled out on"
        sha256 = (data.get("sha256") or "?")[:16]
        text = f"{data.get('n_tasks')} tasks, {data.get('n_steps')} steps, SHA-256 {sha256}..."
        described.append((f"{data.get('csv')}, {use}", text))
    for name, text in dict.fromkeys(described):
        yield name, text, "measured"


def _count_parameters(name: str) -> Callable[[Project], int | None]:
    def count(project: Project) -> int | None:
        parts = project.finished.figures.get("parameters") if project.finished else None
        return sum(part[name] for part in parts.values()) if parts else None

    return count


def _list_settings(project: Project) -> Iterator[tuple[str, Any, Status]]:
    start = project.finished.start if project.finished else {"recipe": {}, "training": {}}
    for name, value in {**start["recipe"], **start["training"]}.items():
        if name not in ("actions", "output_dir"):
            yield name, "none" if value is None else value, "measured"


def _list_energy(project: Project) -> Iterator[tuple[str, Any, Status]]:
    runs = project.runs
    n_energy = sum(1 for run in runs if run.total("energy_kwh"))
    sensors = sorted({f"{part} {how}" for r in runs for part, how in r.figures.get("energy_sensors", {}).items()})
    is_estimate = any(" measured" not in sensor for sensor in sensors) or n_energy < len(runs)
    status: Status = "estimated" if is_estimate else "measured"
    yield "energy (kWh)", project.total("energy_kwh"), status
    yield "energy, how it was had", "; ".join(sensors) or "missing: no run measured it", status
    yield "runs with an energy figure", f"{n_energy} of {len(runs)}", "measured"


def _with_co2e(project: Project) -> list[RunRecord]:
    return [run for run in project.runs if "co2e_kg" in run.figures]


def _sum_co2e(project: Project) -> float | None:
    runs = _with_co2e(project)
    return sum(run.total("co2e_kg") for run in runs) if runs else None


def _list_countries(project: Project) -> str | None:
    return "; ".join(sorted({run.figures["country"] for run in project.runs if "country" in run.figures})) or None


def _peak(name: str) -> Callable[[Project], float | None]:
    def find(project: Project) -> float | None:
        values = [f[name] for run in project.runs for f in run.figures_of_rank.values() if f.get(name)]
        return round(max(values), 3) if values else None

    return find


def _list_counts(project: Project) -> Iterator[tuple[str, Any, Status]]:
    for outcome in ("finished", "failed", "killed", "running"):
        yield f"runs {outcome}", sum(run.outcome == outcome for run in project.runs), "measured"
    trainings = project.of_kind("training")
    yield "optimiser steps, all trainings", int(sum(run.figures.get("steps", 0) for run in trainings)), "measured"
    for name, label in (
        ("samples", "samples trained on"),
        ("tokens_text", "text tokens"),
        ("tokens_image", "image tokens"),
        ("tokens_trained", "tokens with a loss"),
    ):
        yield f"{label}, all trainings", int(sum(run.total(name) for run in trainings)), "measured"


def _list_flops(project: Project) -> Iterator[tuple[str, Any, Status]]:
    run = project.find_last_training(lambda run: run.figures.get("flops_batch_measured"))
    if run is None:
        yield "training", "missing: no training measured a step", "measured"
    else:
        figures, samples = run.figures, run.total("samples")
        measured, formula = figures["flops_batch_measured"], figures["flops_batch_formula"]
        step = measured * figures["gradient_accumulation_steps"] * run.start["n_processes"]
        yield "forward pass of one batch", figures.get("flops_forward_measured") or "missing", "measured"
        yield "forward and backward pass of one batch", measured, "measured"
        yield "the same by the closed formula", formula, "estimated"
        yield "measured / formula", round(measured / formula, 4), "measured"
        yield "optimiser step as large as that batch", step, "estimated"
        yield "instance (one training sample)", run.total("flops") / samples if samples else "missing", "estimated"
    total = sum(run.total("flops") for run in project.of_kind("training"))
    yield "method (all trainings)", total or "missing: no training has figures", "estimated"


def _list_rollouts(project: Project) -> Iterator[tuple[str, Any, Status]]:
    rollouts = project.of_kind("rollout")
    yield "steps answered", sum(int(run.figures.get("steps", 0)) for run in rollouts), "measured"
    yield "GPU hours", round(sum(run.gpu_hours for run in rollouts), 4), "measured"
    yield "CPU hours", round(sum(run.total("cpu_hours") for run in rollouts), 4), "measured"
    for run in rollouts:
        n, who = run.figures.get("steps", 0), f"{run.start['model']}, {run.start['mode']}"
        if not n or run.outcome != "finished":
            continue
        yield f"{who}, per 1,000 steps: GPU hours", round(1000 * run.gpu_hours / n, 4), "measured"
        yield f"{who}, per 1,000 steps: CPU hours", round(1000 * run.total("cpu_hours") / n, 4), "measured"
        yield f"{who}, per 1,000 steps: seconds answering", round(1000 * run.figures["busy_s"] / n, 1), "measured"
        yield f"{who}, per 1,000 steps: energy (kWh)", 1000 * run.total("energy_kwh") / n, "estimated"
        if n_counted := run.figures.get("flops_batch_tokens"):  # those of the first batch; the rest by tokens
            n_tokens = run.figures["prompt_tokens"] + run.figures["answer_tokens"]
            flops = run.figures["flops_batch_measured"] * n_tokens / n_counted
            yield f"{who}, per 1,000 steps: FLOPs", 1000 * flops / n, "estimated"
            yield f"{who}: FLOPs", flops, "estimated"


def _list_speed(project: Project) -> Iterator[tuple[str, Any, Status]]:
    run = project.find_last_training(lambda run: run.outcome == "finished" and run.figures.get("busy_s"))
    if run is None:
        yield "training speed", "missing: no training has finished", "measured"
        return
    seconds, n_tokens = run.figures["busy_s"], run.total("tokens_text") + run.total("tokens_image")
    per_device = run.total("flops") / seconds / run.start["n_processes"] / 1e12
    gpus = run.start["hardware"].get("gpus") or []
    peak = find_peak_tflops(gpus[0]["name"]) if gpus and run.start["n_gpus"] else None
    yield "tokens a second", round(n_tokens / seconds, 1), "measured"
    yield "samples a second", round(run.total("samples") / seconds, 3), "measured"
    yield "packing factor", round(run.figures.get("packing_factor", 1.0), 3), "measured"
    yield "share of time waiting for data", round(run.figures.get("data_wait_share", 0.0), 4), "measured"
    yield "TFLOP/s of one process", round(per_device, 4), "estimated"
    unknown = "missing: the peak of this processor is not known"
    yield "share of the bf16 peak", round(per_device / peak, 4) if peak else unknown, "estimated"


def list_shares(project: Project) -> Iterator[tuple[str, Any, Status]]:
    """Share the compute among purposes, failed and killed runs being one; the shares add up to exactly 100 %."""
    uses_gpu = any(run.gpu_hours for run in project.runs)
    amounts: dict[str, float] = {}
    for run in project.runs:
        purpose = FAILED if run.outcome in ("failed", "killed") else run.start["purpose"]
        hours = run.gpu_hours if uses_gpu else run.total("cpu_hours") or run.wall_s / 3600
        amounts[purpose] = amounts.get(purpose, 0.0) + hours
    for name, share in round_shares(amounts).items():
        yield f"{name} (% of {'GPU' if uses_gpu else 'CPU'} hours)", share, "measured"


def round_shares(amounts: Mapping[str, float]) -> dict[str, float]:
    """Return percentages, in tenths, whose sum is exactly 100: the largest remainders are rounded up."""
    total = sum(amounts.values())
    if not total:
        return {}
    exact = {name: 1000 * amount / total for name, amount in amounts.items()}
    floors = {name: int(value) for name, value in exact.items()}
    left = 1000 - sum(floors.values())
    for name in sorted(exact, key=lambda n: floors[n] - exact[n])[:left]:
        floors[name] += 1
    return {name: value / 10 for name, value in floors.items()}


def _list_runs(project: Project) -> Iterator[tuple[str, Any, Status]]:
    """List every run: when, how long, what for, how it ended."""
    for run in project.runs:
        start, error = run.start, f" ({run.error})" if run.error else ""
        text = f"{run.wall_s:.0f} s, {start['kind']} of {start['model']}, {start['purpose']}, {run.outcome}{error}"
        yield f"{start['time'][:19]} {run.run}", text, "measured"


def _list_log_files(project: Project) -> Iterator[tuple[str, Any, Status]]:
    """List log files with size and dates. Their names are made relative; a host's name in one is taken out."""
    for folder in project.folders:
        for path in sorted({p for pattern in LOG_PATTERNS for p in folder.rglob(pattern) if p.is_file()}):
            first, last = _find_dates(path)
            text = f"{path.stat().st_size} bytes, {first} to {last}"
            yield _anonymise(str(path.relative_to(folder.parent))), text, "measured"


def _find_dates(path: Path) -> tuple[str, str]:
    """Return the first and last day a log was written on: its own lines say so, else the file's time."""
    if path.name.startswith("compute_ledger"):
        times = re.findall(rb'"time": "(\d{4}-\d\d-\d\d)', path.read_bytes())
        if times:
            return min(times).decode(), max(times).decode()
    stat = path.stat()
    day = datetime.fromtimestamp(stat.st_mtime, UTC).date().isoformat()
    if match := re.search(r"tfevents\.(\d{10})\.", path.name):
        return datetime.fromtimestamp(int(match[1]), UTC).date().isoformat(), day
    return day, day


def _anonymise(text: str) -> str:
    """Take user and host names out of a path: TensorBoard writes the host into its files' names."""
    text = re.sub(r"(events\.out\.tfevents\.\d+)\..+?(\.\d+\.\d+)$", r"\1.HOST\2", text)
    for name in (os.uname().nodename, Path.home().name):
        if len(name) > 2:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "NAME", text)
    return text


NO_GPU, UNTOLD = "none: no GPU was visible", "missing: the system does not say"
NO_RUN, NO_TRAINING = "missing: no run", "missing: no training has finished"
NO_COUNTRY = "missing: set country_iso_code in the recipe"
NOTES = {
    "GPU hours": "GPUs a run held, times its wall-clock time; a killed run counts up to its last sign of life",
    "CPU hours": "processor time used by the run's processes and their children, not cores times time",
    "FLOPs": "a multiply and an add are two; the first batch is counted with torch's table, other batches are "
    "estimated by the closed formula scaled by measured / formula; rollouts by tokens",
    "energy": "codecarbon, offline, of the run's own process (of the machine where a run has several processes on it)",
    "tokens a second": "the time of evaluations and checkpoints is left out",
}
SECTIONS: dict[str, Sequence[Rows]] = {
    "hardware": (
        Row("GPU model", _gpus("name"), NO_GPU),
        Row("GPU memory (GB)", _gpus("memory_gb"), NO_GPU),
        Row("GPUs used by a run", _join(lambda run: [run.start.get("n_gpus")]), NO_RUN),
        Row("CPU model", _hardware("cpu_model"), UNTOLD),
        Row("CPU cores", _hardware("cpu_cores"), UNTOLD),
        Row("RAM (GB)", _hardware("ram_gb"), UNTOLD),
        Row("storage", _hardware("storage"), UNTOLD),
    ),
    "infrastructure": (
        Row("processes of a run", _join(lambda run: [run.start.get("n_processes")]), NO_RUN),
        Row("machines of a run", _join(_count_machines), NO_RUN),
        Row("GPU driver", _hardware("driver"), NO_GPU),
        Row("CUDA version of the driver", _hardware("cuda_of_driver"), NO_GPU),
        Row("operating system", _hardware("system"), UNTOLD),
        Row("container", _join(_read_container)),
        _list_versions,
        Asked("type", "infrastructure_type", "own workstation, university cluster, cloud, ..."),
        Asked("provider", "provider", "who runs it; 'own' where that is you"),
    ),
    "task": (
        Asked("task", "task", "e.g. GUI action prediction on recorded clinical software"),
        Asked("input and output", "modality", "e.g. screenshot and goal to one action as JSON"),
    ),
    "performance": (
        Asked("baseline", "baseline_name", "what the paper compares with"),
        Asked("SWA of the baseline (%)", "baseline_swa_percent", "its step-wise accuracy on the same test data"),
        list_scores,
    ),
    "dataset": (
        Asked("name", "dataset_name", "name and version as the paper cites it"),
        Asked("licence", "dataset_licence", "or 'not public'"),
        _list_data,
    ),
    "model": (
        Row("name", lambda p: p.finished.start["model"] if p.finished else None, NO_TRAINING),
        Row("parameters, total", _count_parameters("total"), NO_TRAINING),
        Row("parameters, trainable", _count_parameters("trainable"), NO_TRAINING),
        Row(
            "parameters, in 4 bits",
            lambda p: p.finished.figures.get("quantised_parameters") if p.finished else None,
            NO_TRAINING,
        ),
    ),
    "training configuration": (_list_settings,),
    "compute totals": (
        Asked("GPU hours outside these ledgers", "gpu_hours_elsewhere", "0 if there were none"),
        Asked("cost", "cost", "e.g. 120 EUR, or 'none billed'"),
        Row("GPU hours", lambda p: round(sum(run.gpu_hours for run in p.runs), 4)),
        Row("CPU hours (processor time used)", lambda p: round(p.total("cpu_hours"), 4)),
        Row("wall-clock hours, summed over runs", lambda p: round(sum(run.wall_s for run in p.runs) / 3600, 4)),
        _list_energy,
        Row("CO2e (kg)", _sum_co2e, NO_COUNTRY, "estimated"),
        Row("runs with a CO2e figure", lambda p: f"{len(_with_co2e(p))} of {len(p.runs)}"),
        Row("country of the electricity", _list_countries, NO_COUNTRY, "author"),
        Row("peak GPU memory of a process (GB)", _peak("peak_gpu_gb"), "none: no GPU was used"),
        Row("peak host memory of a process (GB)", _peak("peak_host_gb"), "missing: no figures"),
        _list_counts,
    ),
    "FLOPs": (_list_flops,),
    "inference compute": (_list_rollouts,),
    "efficiency": (_list_speed,),
    "development breakdown": (list_shares,),
    "timeline": (_list_runs,),
    "log files": (_list_log_files,),
    "notes": (
        Asked("of the authors", "notes", "anything a reader should know; 'none' if there is nothing"),
        lambda _: ((name, text, "author") for name, text in NOTES.items()),
    ),
}
