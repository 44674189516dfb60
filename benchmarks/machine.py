"""What a benchmark ran on, and how its table is printed and saved."""

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sft.versions import read_versions


def describe_machine() -> dict[str, Any]:
    """Return hardware, thread count, versions, commit and date."""
    import torch

    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": read_commit(),
        "versions": read_versions(),
    }


def read_commit() -> str | None:
    """Return the checkout's commit, "-dirty" where files differ; in a copy of one, what the environment says of it."""
    if commit := os.environ.get("BENCHMARK_COMMIT"):
        return commit
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def read_peak_mb() -> int:
    """Return the most memory this process has held, in MB; Linux only."""
    return _read_status("VmHWM")  # not getrusage: its ru_maxrss starts at what the parent process held


def read_own_mb() -> int:
    """Return the memory that is this process's own now, in MB: no files mapped into it; Linux only."""
    return _read_status("RssAnon")


@contextmanager
def watch_own_mb() -> Iterator[list[int]]:
    """Give a list that holds, once this ends, the most memory that was the process's own meanwhile, in MB."""
    peak_mb, is_done = [read_own_mb()], threading.Event()

    def watch() -> None:
        while not is_done.wait(0.01):
            peak_mb[0] = max(peak_mb[0], read_own_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak_mb
    finally:
        is_done.set()
        watcher.join()


def _read_status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) // 1024


def publish(title: str, rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any], json_path: Path | None) -> None:
    """Print the rows as a table and, where a path is given, save them with the machine as JSON."""
    table = Table(title=title)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")  # breaks over lines
    for row in rows:
        table.add_row(*(_format_cell(row.get(column, "")) for column in columns))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    packages = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    console.print(
        f"{machine['cpu']}, {machine['threads']} threads, GPU: {machine['gpu']}; {packages}; {machine['date']}"
    )
    if json_path:
        save(title, rows, machine, json_path)


def save(title: str, rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any], json_path: Path) -> None:
    """Write the rows and what they were measured on."""
    content = {"title": title, "machine": machine, "rows": list(rows)}
    json_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _format_cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
