"""The compute report's files: JSON, Markdown, CSV, plots. Knows nothing of where a value comes from."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sft.compute.fields import Field
from sft.compute.ledger import RunRecord

SECTIONS = (
    "hardware",
    "infrastructure",
    "task",
    "performance",
    "dataset",
    "model",
    "training configuration",
    "compute totals",
    "FLOPs",
    "inference compute",
    "efficiency",
    "development breakdown",
    "timeline",
    "log files",
    "notes",
)


def sort_fields(fields: Sequence[Field]) -> list[Field]:
    """Bring fields into the order of the sections, number those of one name, and leave no value empty."""
    seen: Counter[tuple[str, str]] = Counter()
    ordered = []
    for field in sorted(fields, key=lambda field: SECTIONS.index(field.section)):
        seen[field.section, field.name] += 1
        n = seen[field.section, field.name]
        name = field.name if n == 1 else f"{field.name} ({n})"
        value = "missing: not known" if field.value in (None, "") else field.value
        ordered.append(replace(field, name=name, value=value))
    return ordered


def write_json(path: Path, fields: Sequence[Field], runs: Sequence[RunRecord]) -> None:
    """Write every field by section, and each run with its outcome and figures."""
    content: dict[str, Any] = {"sections": {}, "runs": [_describe_run(run) for run in runs]}
    for field in fields:
        content["sections"].setdefault(field.section, {})[field.name] = {"value": field.value, "status": field.status}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")


def write_csv(path: Path, fields: Sequence[Field]) -> None:
    """Write the columns Section, Field, Value, Status."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("Section", "Field", "Value", "Status"))
    writer.writerows((f.section, f.name, format_value(f.value), f.status) for f in fields)
    path.write_text(file.getvalue(), encoding="utf-8", errors="replace")


def write_markdown(path: Path, fields: Sequence[Field], plots: Sequence[Path]) -> None:
    """Write one table a section."""
    lines = ["# Compute report", ""]
    for section in SECTIONS:
        rows = [f for f in fields if f.section == section]
        lines += [f"## {section[0].upper()}{section[1:]}", "", "| field | value | status |", "| --- | --- | --- |"]
        lines += [f"| {_cell(f.name)} | {_cell(format_value(f.value))} | {f.status} |" for f in rows]
        lines.append("")
    if plots:
        lines += ["## Plots", "", *(f"![{plot.stem}]({plot.name})" for plot in plots), ""]
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")


def plot_runs(folder: Path, runs: Sequence[RunRecord]) -> list[Path]:
    """Draw memory, throughput and loss of each training over its time; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: tuple[tuple[str, str, Callable[[RunRecord], Sequence[tuple[str, list[tuple[float, float]]]]]], ...] = (
        ("memory", "memory (GB)", _read_memory),
        ("throughput", "tokens a second", _read_throughput),
        ("loss", "loss", _read_loss),
    )
    paths = []
    for name, label, read in panels:
        curves = [(run, *curve) for run in runs for curve in read(run) if curve[1]]
        if not curves:
            continue
        figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for run, what, points in curves:
            minutes = [(seconds / 60, value) for seconds, value in points]
            axis.plot(
                *zip(*minutes), label=f"{run.run[:6]} {what}", marker="o" if len(points) < 30 else None, markersize=3
            )
        axis.set(xlabel="minutes since the run began", ylabel=label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
        paths.append(folder / f"compute_{name}.png")
        figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths


def format_value(value: Any) -> str:
    """Render a value for people: thousands apart, small numbers with four digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 1000 or abs(value) >= 1e9 else f"{value:,.1f}"


def _describe_run(run: RunRecord) -> dict[str, Any]:
    start = {k: v for k, v in run.start.items() if k not in ("event", "host", "pid", "process_started")}
    ranks = {str(rank): figures for rank, figures in run.figures_of_rank.items()}
    return {**start, "outcome": run.outcome, "error": run.error or "none", "wall_s": run.wall_s, "ranks": ranks}


def _read_memory(run: RunRecord) -> list[tuple[str, list[tuple[float, float]]]]:
    host = [(log["seconds"], log["host_gb"]) for log in run.logs]
    gpu = [(log["seconds"], log["gpu_gb"]) for log in run.logs if log.get("gpu_gb")]
    return [("host", host), ("GPU", gpu)]


def _read_throughput(run: RunRecord) -> list[tuple[str, list[tuple[float, float]]]]:
    logs, points = [log for log in run.logs if "loss" in log], []
    for before, after in zip(logs, logs[1:]):
        seconds = after["busy_s"] - before["busy_s"]
        tokens = sum(after[k] - before[k] for k in ("tokens_text", "tokens_image"))
        if seconds > 0:
            points.append((after["seconds"], tokens / seconds))
    return [("", points)]


def _read_loss(run: RunRecord) -> list[tuple[str, list[tuple[float, float]]]]:
    return [
        (name, [(log["seconds"], log[key]) for log in run.logs if key in log])
        for key, name in (("loss", "training"), ("eval_loss", "validation"))
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
