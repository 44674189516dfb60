"""Plots as PNG: a training's curves from the trainer's log history, the compute report's from the ledgers' lines."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.compute.ledger import RunRecord

Points = Sequence[tuple[float, float]]
PANELS = (
    ("Loss", (("loss", "training"), ("eval_loss", "validation"))),
    (
        "Own-memory step accuracy on validation tasks",
        (("eval_swa", "action"), ("eval_swa_target", "action and target")),
    ),
)


def plot_curves(log_history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss and, where it was rolled out, step-wise accuracy (SWA) against optimiser steps."""
    panels = {}
    for title, lines in PANELS:
        curves = [(label, [(row["step"], row[key]) for row in log_history if key in row]) for key, label in lines]
        if any(points for _, points in curves):
            panels[title] = curves
    if not panels:
        return
    plt = _load_pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.4), squeeze=False, layout="constrained")
    for axis, (title, curves) in zip(axes[0], panels.items()):
        _draw(axis, curves, title=title, xlabel="optimiser step")
        axis.set_ylim(bottom=0, top=1 if "accuracy" in title else None)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_runs(folder: Path, runs: Sequence[RunRecord]) -> list[Path]:
    """Draw memory, throughput and loss of each training over its time; returns the files."""
    plt = _load_pyplot()
    panels: tuple[tuple[str, str, Callable[[RunRecord], Sequence[tuple[str, Points]]]], ...] = (
        ("memory", "memory (GB)", _read_memory),
        ("throughput", "tokens a second", _read_throughput),
        ("loss", "loss", _read_loss),
    )
    paths = []
    for name, ylabel, read in panels:
        curves = [
            (f"{run.run[:6]} {what}", [(seconds / 60, value) for seconds, value in points])
            for run in runs
            for what, points in read(run)
            if points
        ]
        if not curves:
            continue
        figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        _draw(axis, curves, xlabel="minutes since the run began", ylabel=ylabel)
        axis.set_ylim(bottom=0)
        paths.append(folder / f"compute_{name}.png")
        figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths


def _load_pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _draw(axis: Any, curves: Sequence[tuple[str, Points]], **labels: str) -> None:
    for label, points in curves:
        if points:
            axis.plot(*zip(*points), label=label, marker="o" if len(points) < 30 else None, markersize=3)
    axis.set(**labels)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize="small")


def _read_memory(run: RunRecord) -> list[tuple[str, Points]]:
    host = [(log["seconds"], log["host_gb"]) for log in run.logs]
    gpu = [(log["seconds"], log["gpu_gb"]) for log in run.logs if log.get("gpu_gb")]
    return [("host", host), ("GPU", gpu)]


def _read_throughput(run: RunRecord) -> list[tuple[str, Points]]:
    logs, points = [log for log in run.logs if "loss" in log], []
    for before, after in zip(logs, logs[1:]):
        seconds = after["busy_s"] - before["busy_s"]
        tokens = sum(after[k] - before[k] for k in ("tokens_text", "tokens_image"))
        if seconds > 0:
            points.append((after["seconds"], tokens / seconds))
    return [("", points)]


def _read_loss(run: RunRecord) -> list[tuple[str, Points]]:
    return [
        (name, [(log["seconds"], log[key]) for log in run.logs if key in log])
        for key, name in (("loss", "training"), ("eval_loss", "validation"))
    ]
