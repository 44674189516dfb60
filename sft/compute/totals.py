"""The compute report's sums over runs: hours, energy, memory, tokens, operations, speed. Reads no file."""

from collections.abc import Sequence
from typing import Any

from sft.compute.fields import Field, Status, gpu_hours
from sft.compute.hardware import find_peak_tflops
from sft.compute.ledger import RunRecord


def build_compute_fields(runs: Sequence[RunRecord]) -> list[Field]:
    """Sum up what all runs took: hours, energy, memory, tokens, operations."""
    trainings = [run for run in runs if run.start["kind"] == "training"]
    fields = _build_totals(runs, trainings)
    fields += _build_flops(trainings)
    rollouts = [run for run in runs if run.start["kind"] == "rollout"]
    fields += _build_inference(rollouts)
    fields += _build_efficiency(trainings)
    return fields


def _build_totals(runs: Sequence[RunRecord], trainings: Sequence[RunRecord]) -> list[Field]:
    section = "compute totals"
    n_energy = sum(1 for run in runs if run.total("energy_kwh"))
    sensors = sorted({f"{part} {how}" for r in runs for part, how in r.figures.get("energy_sensors", {}).items()})
    has_estimate = any("estimated" in sensor for sensor in sensors)
    energy_status: Status = "estimated" if has_estimate or n_energy < len(runs) else "measured"
    co2e = [run.total("co2e_kg") for run in runs if "co2e_kg" in run.figures]
    countries = sorted({run.figures["country"] for run in runs if "country" in run.figures})
    missing = "missing: set country_iso_code in the recipe"
    fields = [
        Field(section, "GPU hours", round(sum(map(gpu_hours, runs)), 4), "measured"),
        Field(
            section, "CPU hours (processor time used)", round(sum(r.total("cpu_hours") for r in runs), 4), "measured"
        ),
        Field(section, "wall-clock hours, summed over runs", round(sum(r.wall_s for r in runs) / 3600, 4), "measured"),
        Field(section, "energy (kWh)", sum(r.total("energy_kwh") for r in runs), energy_status),
        Field(section, "energy, how it was had", "; ".join(sensors) or "missing: no run measured it", energy_status),
        Field(section, "runs with an energy figure", f"{n_energy} of {len(runs)}", "measured"),
        Field(section, "CO2e (kg)", sum(co2e) if co2e else missing, "estimated"),
        Field(section, "runs with a CO2e figure", f"{len(co2e)} of {len(runs)}", "measured"),
        Field(section, "country of the electricity", "; ".join(countries) or missing, "author"),
        Field(
            section,
            "peak GPU memory of a process (GB)",
            _peak(runs, "peak_gpu_gb", "none: no GPU was used"),
            "measured",
        ),
        Field(
            section,
            "peak host memory of a process (GB)",
            _peak(runs, "peak_host_gb", "missing: no figures"),
            "measured",
        ),
    ]
    for outcome in ("finished", "failed", "killed", "running"):
        fields.append(Field(section, f"runs {outcome}", sum(r.outcome == outcome for r in runs), "measured"))
    for name, label in (
        ("steps", "optimiser steps"),
        ("samples", "samples trained on"),
        ("tokens_text", "text tokens"),
        ("tokens_image", "image tokens"),
        ("tokens_trained", "tokens with a loss"),
    ):
        total = sum(r.figures.get(name, 0) if name == "steps" else r.total(name) for r in trainings)
        fields.append(Field(section, f"{label}, all trainings", int(total), "measured"))
    return fields


def _build_flops(trainings: Sequence[RunRecord]) -> list[Field]:
    section = "FLOPs"
    total = sum(r.total("flops") for r in trainings)
    method = Field(section, "method (all trainings)", total or "missing: no training has figures", "estimated")
    run = next((r for r in reversed(trainings) if r.figures.get("flops_batch_measured")), None)
    if run is None:
        return [Field(section, "training", "missing: no training measured a step", "measured"), method]
    figures, samples = run.figures, run.total("samples")
    step = figures["flops_batch_measured"] * figures["gradient_accumulation_steps"] * run.start["n_processes"]
    return [
        Field(section, "forward pass of one batch", figures.get("flops_forward_measured") or "missing", "measured"),
        Field(section, "forward and backward pass of one batch", figures["flops_batch_measured"], "measured"),
        Field(section, "the same by the closed formula", figures["flops_batch_formula"], "estimated"),
        Field(
            section,
            "measured / formula",
            round(figures["flops_batch_measured"] / figures["flops_batch_formula"], 4),
            "measured",
        ),
        Field(section, "optimiser step as large as that batch", step, "estimated"),
        Field(
            section,
            "instance (one training sample)",
            run.total("flops") / samples if samples else "missing",
            "estimated",
        ),
        method,
    ]


def _build_inference(rollouts: Sequence[RunRecord]) -> list[Field]:
    section = "inference compute"
    fields = [
        Field(section, "steps answered", sum(int(r.figures.get("steps", 0)) for r in rollouts), "measured"),
        Field(section, "GPU hours", round(sum(map(gpu_hours, rollouts)), 4), "measured"),
        Field(section, "CPU hours", round(sum(r.total("cpu_hours") for r in rollouts), 4), "measured"),
    ]
    for run in rollouts:
        n, name = run.figures.get("steps", 0), f"{run.start['model']}, {run.start['mode']}, per 1,000 steps"
        if not n or run.outcome != "finished":
            continue
        fields += [
            Field(section, f"{name}: GPU hours", round(1000 * gpu_hours(run) / n, 4), "measured"),
            Field(section, f"{name}: CPU hours", round(1000 * run.total("cpu_hours") / n, 4), "measured"),
            Field(section, f"{name}: seconds answering", round(1000 * run.figures["busy_s"] / n, 1), "measured"),
            Field(section, f"{name}: energy (kWh)", 1000 * run.total("energy_kwh") / n, "estimated"),
        ]
        if run.figures.get("flops_batch_tokens"):
            flops = estimate_rollout_flops(run)
            fields.append(Field(section, f"{name}: FLOPs", 1000 * flops / n, "estimated"))
            fields.append(Field(section, f"{run.start['model']}, {run.start['mode']}: FLOPs", flops, "estimated"))
    return fields


def _build_efficiency(trainings: Sequence[RunRecord]) -> list[Field]:
    section = "efficiency"
    run = next((r for r in reversed(trainings) if r.outcome == "finished" and r.figures.get("busy_s")), None)
    if run is None:
        return [Field(section, "training speed", "missing: no training has finished", "measured")]
    seconds, n_tokens = run.figures["busy_s"], run.total("tokens_text") + run.total("tokens_image")
    per_device = run.total("flops") / seconds / run.start["n_processes"] / 1e12
    gpus = run.start["hardware"].get("gpus") or []
    peak = find_peak_tflops(gpus[0]["name"]) if gpus and run.start["n_gpus"] else None
    unknown = "missing: the peak of this processor is not known"
    return [
        Field(section, "tokens a second", round(n_tokens / seconds, 1), "measured"),
        Field(section, "samples a second", round(run.total("samples") / seconds, 3), "measured"),
        Field(section, "packing factor", round(run.figures.get("packing_factor", 1.0), 3), "measured"),
        Field(
            section, "share of time waiting for data", round(run.figures.get("data_wait_share", 0.0), 4), "measured"
        ),
        Field(section, "TFLOP/s of one process", round(per_device, 4), "estimated"),
        Field(section, "share of the bf16 peak", round(per_device / peak, 4) if peak else unknown, "estimated"),
    ]


def estimate_rollout_flops(run: RunRecord) -> float:
    """Return the operations of a rollout: those of its first batch, by tokens."""
    n_tokens = run.figures["prompt_tokens"] + run.figures["answer_tokens"]
    return run.figures["flops_batch_measured"] * n_tokens / run.figures["flops_batch_tokens"]


def _peak(runs: Sequence[RunRecord], name: str, otherwise: str) -> Any:
    values = [f[name] for run in runs for f in run.figures_of_rank.values() if f.get(name)]
    return round(max(values), 3) if values else otherwise
