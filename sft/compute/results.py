"""What the compute report reads beside the ledgers: scores from metrics.json, and the log files themselves."""

import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from sft.compute.fields import Field
from sft.data.data_notes import list_data_notes
from sft.evaluations import format_rate

LOG_PATTERNS = ("compute_ledger*.jsonl", "steps.jsonl", "trainer_state.json", "events.out.tfevents.*", "*.log")


def load_performance(folders: Sequence[Path]) -> list[Field]:
    """Read every metrics.json of a model: metric, ours, baseline (always the most frequent action), improvement.

    A replayed recording, an empty policy and one shard of a rollout measure no model; they are left out.
    """
    fields = []
    for folder in folders:
        for path in sorted(folder.rglob("metrics.json")):
            metrics = json.loads(path.read_text(encoding="utf-8"))
            run = metrics.get("run", {})
            if run.get("policy", "model") != "model" or run.get("shard") is not None:
                continue
            notes = "".join(
                f"; {note.rstrip('.')}" for note in list_data_notes(run.get("data") or {}, names_tasks=False)
            )
            name = f"{path.parent.relative_to(folder.parent)}, {metrics['mode']}{notes}"
            baseline, over = metrics["majority_baseline"], metrics["over_majority"]
            for matcher, rates in metrics["matchers"].items():
                for measure in ("swa", "ta"):
                    label = f"{name}: {measure.upper()} by {matcher} (%), ours"
                    fields.append(Field("performance", label, format_rate(rates[measure]), "measured"))
            label = f"{name}: SWA of always {baseline['action']} (%), baseline"
            fields.append(Field("performance", label, format_rate({**baseline, "value": baseline["swa"]}), "measured"))
            label = f"{name}: SWA by action, ours - baseline (points), improvement"
            fields.append(Field("performance", label, format_rate(over), "measured"))
    return fields or [Field("performance", "metrics", "missing: no metrics.json; roll a model out first", "measured")]


def list_log_files(folders: Sequence[Path]) -> list[Field]:
    """List log files with size and dates. Their names are made relative; a host's name in one is taken out."""
    fields = []
    for folder in folders:
        for path in sorted({p for pattern in LOG_PATTERNS for p in folder.rglob(pattern) if p.is_file()}):
            first, last = find_dates(path)
            text = f"{path.stat().st_size} bytes, {first} to {last}"
            fields.append(Field("log files", anonymise(str(path.relative_to(folder.parent))), text, "measured"))
    return fields


def find_dates(path: Path) -> tuple[str, str]:
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


def anonymise(text: str) -> str:
    """Take user and host names out of a path: TensorBoard writes the host into its files' names."""
    text = re.sub(r"(events\.out\.tfevents\.\d+)\..+?(\.\d+\.\d+)$", r"\1.HOST\2", text)
    for name in (os.uname().nodename, Path.home().name):
        if len(name) > 2:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "NAME", text)
    return text
