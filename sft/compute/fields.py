"""The compute report's fields, section by section, from the ledgers' runs. Reads no file and knows no format."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sft.compute.ledger import RunRecord

Status = Literal["measured", "estimated", "author"]
FAILED = "failed and killed runs"


@dataclass(frozen=True)
class Field:
    """One line of the report. A value that is not there says why in its place."""

    section: str
    name: str
    value: Any
    status: Status


def build_machine_fields(runs: Sequence[RunRecord]) -> list[Field]:
    """Describe hardware and infrastructure; what differed between runs is listed with `; `."""
    hardware = [run.start.get("hardware", {}) for run in runs]
    fields: list[Field] = []

    def add(section: str, name: str, values: Iterable[Any], unknown: str) -> None:
        known = dict.fromkeys(str(v) for v in values if v is not None)
        fields.append(Field(section, name, "; ".join(known) or unknown, "measured"))

    none = "none: no GPU was visible"
    add("hardware", "GPU model", (g["name"] for h in hardware for g in h.get("gpus", [])), none)
    add("hardware", "GPU memory (GB)", (g["memory_gb"] for h in hardware for g in h.get("gpus", [])), none)
    add("hardware", "GPUs used by a run", (run.start.get("n_gpus") for run in runs), "missing: no run")
    add("hardware", "CPU model", (h.get("cpu_model") for h in hardware), "missing: the system does not say")
    add("hardware", "CPU cores", (h.get("cpu_cores") for h in hardware), "missing: the system does not say")
    add("hardware", "RAM (GB)", (h.get("ram_gb") for h in hardware), "missing: the system does not say")
    add("hardware", "storage", (h.get("storage") for h in hardware), "missing: the system does not say")
    add("infrastructure", "processes of a run", (run.start.get("n_processes") for run in runs), "missing: no run")
    add("infrastructure", "machines of a run", (_count_machines(run) for run in runs), "missing: no run")
    add("infrastructure", "GPU driver", (h.get("driver") for h in hardware), none)
    add("infrastructure", "CUDA version of the driver", (h.get("cuda_of_driver") for h in hardware), none)
    add("infrastructure", "operating system", (h.get("system") for h in hardware), "missing: the system does not say")
    add(
        "infrastructure",
        "container",
        ({True: "yes", False: "no"}.get(h.get("is_container")) for h in hardware),
        "missing: not known",
    )
    for package in dict.fromkeys(p for run in runs for p in run.start.get("versions", {})):
        add("infrastructure", f"version of {package}", (r.start["versions"].get(package) for r in runs), "none")
    return fields


def build_model_fields(runs: Sequence[RunRecord]) -> list[Field]:
    """Describe model, training data and configuration: those of the last training that finished."""
    trainings = [run for run in runs if run.start["kind"] == "training"]
    run = next((r for r in reversed(trainings) if r.outcome == "finished"), None)
    none = "missing: no training has finished"
    fields = []
    for each in dict.fromkeys(_describe_data(r) for r in runs):
        fields.append(Field("dataset", *each, "measured"))
    parameters = run.figures.get("parameters") if run else None
    counts: dict[str, Any] = dict.fromkeys(("total", "trainable"), none)
    if parameters:
        counts = {name: sum(part[name] for part in parameters.values()) for name in counts}
    fields += [
        Field("model", "name", run.start["model"] if run else none, "measured"),
        Field("model", "parameters, total", counts["total"], "measured"),
        Field("model", "parameters, trainable", counts["trainable"], "measured"),
        Field(
            "model",
            "parameters, in 4 bits",
            run.figures.get("quantised_parameters", none) if run else none,
            "measured",
        ),
    ]
    settings = {**run.start["recipe"], **run.start["training"]} if run else {}
    for name, value in settings.items():
        if name in ("actions", "output_dir"):
            continue
        shown = "none" if value is None else value
        fields.append(Field("training configuration", name, shown, "measured"))
    return fields or [Field("training configuration", "recipe", none, "measured")]


def build_breakdown(runs: Sequence[RunRecord]) -> list[Field]:
    """Share the compute among purposes, failed and killed runs apart; the shares add up to exactly 100 %."""
    uses_gpu = any(gpu_hours(run) for run in runs)
    amounts: dict[str, float] = {}
    for run in runs:
        purpose = FAILED if run.outcome in ("failed", "killed") else run.start["purpose"]
        hours = gpu_hours(run) if uses_gpu else run.total("cpu_hours") or run.wall_s / 3600
        amounts[purpose] = amounts.get(purpose, 0.0) + hours
    unit = "GPU hours" if uses_gpu else "CPU hours"
    shares = round_shares(amounts)
    return [
        Field("development breakdown", f"{name} (% of {unit})", share, "measured") for name, share in shares.items()
    ]


def round_shares(amounts: Mapping[str, float], decimals: int = 1) -> dict[str, float]:
    """Return percentages whose sum is exactly 100: the largest remainders are rounded up."""
    total, unit = sum(amounts.values()), 10**decimals
    if not total:
        return {}
    exact = {name: 100 * unit * amount / total for name, amount in amounts.items()}
    floors = {name: int(value) for name, value in exact.items()}
    left = 100 * unit - sum(floors.values())
    for name in sorted(exact, key=lambda n: floors[n] - exact[n])[:left]:
        floors[name] += 1
    return {name: value / unit for name, value in floors.items()}


def build_timeline(runs: Sequence[RunRecord]) -> list[Field]:
    """List every run: when, how long, what for, how it ended."""
    fields = []
    for run in runs:
        start, error = run.start, f" ({run.error})" if run.error else ""
        text = f"{run.wall_s:.0f} s, {start['kind']} of {start['model']}, {start['purpose']}, {run.outcome}{error}"
        fields.append(Field("timeline", f"{start['time'][:19]} {run.run}", text, "measured"))
    return fields


def gpu_hours(run: RunRecord) -> float:
    """Return a run's GPU hours; one that was killed before its first report held its GPUs until its last sign."""
    return run.total("gpu_hours") or run.start.get("n_gpus", 0) * run.wall_s / 3600


def _describe_data(run: RunRecord) -> tuple[str, str]:
    data, use = run.start.get("data", {}), "trained on" if run.start["kind"] == "training" else "rolled out on"
    sha256 = (data.get("sha256") or "?")[:16]
    text = f"{data.get('n_tasks')} tasks, {data.get('n_steps')} steps, SHA-256 {sha256}..."
    return f"{data.get('csv')}, {use}", text


def _count_machines(run: RunRecord) -> int:
    return -(-run.start.get("n_processes", 1) // run.start.get("n_local_processes", 1))
