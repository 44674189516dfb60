"""The compute ledger: one append-only JSON-lines file an output folder. Knows nothing of what is measured."""

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil

Outcome = Literal["finished", "failed", "killed", "running"]

LEDGER_NAME = "compute_ledger.jsonl"
PATTERN = "compute_ledger*.jsonl"
# A run on another host whose ledger has been silent for so long counts as killed.
SILENT_S = 600.0


@dataclass(frozen=True)
class RunRecord:
    """What the ledger says of one run. `start` and `figures` are the fields of its start and of its last report.

    `figures_of_rank` has one entry a process that reported: the newest value of each of its figures.
    """

    run: str
    folder: Path
    start: Mapping[str, Any]
    outcome: Outcome
    ended: str
    wall_s: float
    error: str | None = None
    figures_of_rank: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    logs: tuple[Mapping[str, Any], ...] = ()

    @property
    def figures(self) -> Mapping[str, Any]:
        """The main process's figures."""
        return self.figures_of_rank.get(0, {})

    def total(self, name: str) -> float:
        """Return a figure summed over the processes that reported it."""
        return sum(figures.get(name) or 0 for figures in self.figures_of_rank.values())

    @property
    def gpu_hours(self) -> float:
        """GPU hours; a run that was killed before its first report held its GPUs until its last sign."""
        return self.total("gpu_hours") or self.start.get("n_gpus", 0) * self.wall_s / 3600


def name_ledger(folder: Path, rank: int = 0) -> Path:
    """Return the ledger of one process; each process has a file of its own, for network file systems."""
    return folder / (LEDGER_NAME if rank == 0 else f"compute_ledger.rank{rank}.jsonl")


def append_event(path: Path, event: str, run: str, **fields: Any) -> None:
    """Append one line in one write; a line that a kill left half-written is ended first."""
    line = json.dumps({"event": event, "run": run, "time": format_now(), **fields}, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())


def load_events(path: Path) -> list[dict[str, Any]]:
    """Read a ledger's lines; torn ones are left out."""
    events = []
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and {"event", "run", "time"} <= set(event):
            events.append(event)
    return events


def load_runs(folder: Path) -> list[RunRecord]:
    """Return every run of the ledgers below a folder, oldest first."""
    records = []
    for parent in sorted({path.parent for path in folder.rglob(PATTERN)}):
        events: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(parent.glob(PATTERN)):
            for event in load_events(path):
                events.setdefault(event["run"], []).append(event)
        records += [_read_run(parent, run, of_run) for run, of_run in events.items()]
    return sorted((r for r in records if r.start), key=lambda r: r.start["time"])


def close_killed_runs(folder: Path, by: str) -> list[str]:
    """Close every run of a folder's ledger that was killed; returns their names. A living run is left alone."""
    if not name_ledger(folder).is_file():
        return []
    events = load_events(name_ledger(folder))
    closed = {e["run"] for e in events if e["event"] in ("end", "closed")}
    killed = []
    for start in (e for e in events if e["event"] == "start" and e["run"] not in closed):
        last = max(e["time"] for e in events if e["run"] == start["run"])
        if not is_alive(start, last):
            append_event(name_ledger(folder), "closed", start["run"], outcome="killed", last_sign=last, by=by)
            killed.append(start["run"])
    return killed


def is_alive(start: Mapping[str, Any], last: str) -> bool:
    """Tell whether a run without an end is still running: by its process here, by its last sign elsewhere."""
    if start.get("host") == hash_host():
        try:
            return abs(psutil.Process(start["pid"]).create_time() - start["process_started"]) < 1
        except psutil.NoSuchProcess:
            return False
    return seconds_between(last, format_now()) < SILENT_S


def hash_host() -> str:
    """Return what tells this machine from another without naming it."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]


def format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def seconds_between(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _read_run(folder: Path, run: str, events: list[dict[str, Any]]) -> RunRecord:
    """Bring a run's lines together. Its own end counts before what another run concluded of it."""
    start = next((e for e in events if e["event"] == "start"), {})
    figures: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "figures":
            fields = {k: v for k, v in event.items() if k not in ("event", "run", "time", "rank")}
            figures.setdefault(event["rank"], {}).update(fields)
    end = next((e for e in events if e["event"] == "end"), None)
    last = max((e["time"] for e in events if e["event"] != "closed"), default="")
    outcome: Outcome = "killed"
    if end is not None:
        outcome, last = end["outcome"], end["time"]
    elif start and not any(e["event"] == "closed" for e in events) and is_alive(start, last):
        outcome = "running"
    wall_s = end["wall_s"] if end else (seconds_between(start["time"], last) if start else 0.0)
    logs = tuple(e for e in events if e["event"] == "log")
    return RunRecord(run, folder, start, outcome, last, wall_s, (end or {}).get("error"), figures, logs)
