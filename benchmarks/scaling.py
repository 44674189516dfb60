"""Time and memory against the number of steps: reading and checking, training rows, the plan of an epoch's packs.

python benchmarks/scaling.py [--json FILE] [--plot FILE.png] [--rows 1000 10000 100000 500000]

The data are the demonstration's steps, repeated under other tasks and goals, on its 802 training screenshots. Each
number of rows is measured in a process of its own. Seconds are CPU time of the main thread, so that other programs
matter little; `screenshots s` is that of the threads that open and hash each screenshot once, whatever the number of
rows. Memory is the most that was the process's own (RssAnon, every 10 ms) by the end of each part. Where the time per
1,000 steps stays the same, time is proportional to the number of steps. Needs Linux.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.data_loading import DATA, write_tasks
from benchmarks.machine import describe_machine, publish, watch_own_mb

TOKENS_PER_BATCH = 8192  # that of the 8B recipe
PARTS = ("check", "rows", "packing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 500_000])
    parser.add_argument("--worker", metavar="CSV", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker)))
        return
    rows = [run_worker(n_rows) for n_rows in arguments.rows]
    publish("Cost against work", rows, describe_machine(), arguments.json)
    if arguments.plot:
        plot(rows, arguments.plot)


def run_worker(n_rows: int) -> dict[str, Any]:
    """Measure one number of rows in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        csv_path = Path(folder) / "tasks.csv"
        write_tasks(csv_path, n_rows)
        command = [sys.executable, "-m", "benchmarks.scaling", "--worker", str(csv_path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(csv_path: str) -> dict[str, Any]:
    """Do what a training does with its data before the first step; return seconds and memory by part."""
    from benchmarks.sides import build_encoder
    from sft.batches.examples import build_step_rows, read_step_sizes
    from sft.batches.sampler import PackSampler
    from sft.data.load import load_trajectories

    encoder = build_encoder(DATA.parent / "base")
    figures: dict[str, float] = {}
    started = time.process_time()
    with measured("check", figures):
        tasks = load_trajectories(csv_path, DATA)
    figures["screenshots_s"] = time.process_time() - started - figures["check_s"]
    with measured("rows", figures):
        rows = build_step_rows(tasks, csv_path, encoder).dataset
    with measured("packing", figures):
        sampler = PackSampler(read_step_sizes(rows), TOKENS_PER_BATCH, seed=0)
        n_packs = len(sampler.plan(0))
    per_1000 = {f"{part}_s_per_1000": 1000 * figures[f"{part}_s"] / len(rows) for part in PARTS}
    return {"n_rows": len(rows), "n_packs": n_packs, **figures, **per_1000}


@contextmanager
def measured(part: str, figures: dict[str, float]) -> Iterator[None]:
    """Note the CPU time of a part in this thread and the most memory that was held during it."""
    with watch_own_mb() as peak_mb:
        started = time.thread_time()
        yield
        figures[f"{part}_s"] = time.thread_time() - started
    figures[f"{part}_peak_mb"] = peak_mb[0]


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw time (both axes logarithmic: what is proportional has the dotted line's slope) and memory against steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = [row["n_rows"] for row in rows]
    figure, (times, memory) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for part in PARTS:
        times.plot(counts, [row[f"{part}_s"] for row in rows], marker="o", markersize=3, label=part)
        memory.plot(counts, [row[f"{part}_peak_mb"] for row in rows], marker="o", markersize=3, label=part)
    proportional = [rows[-1]["rows_s"] * n / counts[-1] for n in counts]
    times.plot(counts, proportional, color="grey", linestyle=":", label="proportional")
    times.set(xlabel="steps", ylabel="seconds of CPU time", xscale="log", yscale="log")
    memory.set(xlabel="steps", ylabel="most memory held (MB)")
    for axis in (times, memory):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
