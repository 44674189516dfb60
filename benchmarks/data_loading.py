"""Speed and memory of loading: screenshots decoded anew, cached cold and cached warm; memory against number of rows.

python benchmarks/data_loading.py [--json FILE] [--rows 1000 50000] [--screenshots 64]

Speed: steps collated one by one in the main process, on screenshots of the demonstration data at the 8B recipe's pixel
budget; `data_wait_share` is what a short training of a tiny model logs as the share of its time spent waiting for
data, without workers. Memory: the steps of the demonstration data, repeated under other tasks and goals, are read,
checked, made into training rows, planned into packs and read back one by one, as a run does before and while it
trains; the peak is that of memory that is the process's own (RssAnon, every 10 ms). Needs Linux.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, publish, watch_own_mb

DATA = Path(__file__).parent.parent / "demo/data"
TOKENS_PER_BATCH, N_TRAINED = 4608, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 50_000])
    parser.add_argument("--screenshots", type=int, default=64)
    parser.add_argument("--worker", nargs=2, metavar=("CSV", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure_memory(*arguments.worker)))
        return
    from benchmarks.sides import VOCAB, read_demo_texts
    from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_checkpoint(Path(folder) / "model", read_demo_texts(), size=TinySize(VOCAB))
        rows = measure_speed(sorted((DATA / "images").iterdir())[: arguments.screenshots], model, Path(folder))
        rows += [run_worker(n_rows, model, Path(folder)) for n_rows in arguments.rows]
    publish("Data loading", rows, describe_machine(), arguments.json)


def measure_speed(images: list[Path], model: Path, folder: Path) -> list[dict[str, Any]]:
    """Collate one step on each screenshot, three ways, and train a few."""
    from benchmarks.sides import build_encoder, build_rows
    from sft.batches.collator import PaddingCollator
    from sft.batches.encoder import StepEncoder

    plain = build_encoder(model)
    cached = StepEncoder(plain.processor, plain.agent, folder / "cache")
    steps = build_rows(plain, images)
    measured = []
    for setting, encoder in (("no cache", plain), ("cache, cold", cached), ("cache, warm", cached)):
        collate = PaddingCollator(encoder)
        started = time.perf_counter()
        for step in steps:
            collate([step])
        seconds = time.perf_counter() - started
        if setting == "cache, cold":
            encoder = StepEncoder(plain.processor, plain.agent, folder / "cold")  # those just collated are warm now
        measured.append(
            {
                "setting": setting,
                "n_rows": len(steps),
                "rows_a_second": len(steps) / seconds,
                "images_a_second": len({step["image"] for step in steps}) / seconds,
                "data_wait_share": train(encoder, steps, model, folder),
                "peak_mb": None,
            }
        )
    return measured


def train(encoder: Any, steps: list[dict[str, Any]], model: Path, folder: Path) -> float:
    """Train a few packed batches; return the share of the time that the trainer says it waited for data."""
    from benchmarks.sides import build_cpu_arguments, build_our_trainer, build_pack_sampler, load_model

    sampler = build_pack_sampler(steps, TOKENS_PER_BATCH)
    arguments = build_cpu_arguments(str(folder), N_TRAINED, 1, 1, logging_steps=N_TRAINED)
    trainer = build_our_trainer(steps, encoder, sampler, model=load_model(model), args=arguments)
    trainer.train()
    return float(trainer.state.log_history[0]["data_wait_share"])


def run_worker(n_rows: int, model: Path, folder: Path) -> dict[str, Any]:
    """Measure memory in a process of its own."""
    write_tasks(folder / "tasks.csv", n_rows)
    command = [sys.executable, "-m", "benchmarks.data_loading", "--worker", str(folder / "tasks.csv"), str(model)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_tasks(path: Path, n_rows: int) -> None:
    """Write `n_rows` steps: the demonstration's tasks over and over, each under an id and a goal of its own."""
    with (DATA / "train.csv").open(encoding="utf-8", newline="") as file:
        steps = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(steps[0]))
        writer.writeheader()
        for i in range(n_rows):
            again, step = i // len(steps), steps[i % len(steps)]
            goal = f"{step['Instruction']} Study {again}."
            writer.writerow({**step, "Task_id": f"{step['Task_id']}_{again}", "Instruction": goal})


def measure_memory(csv_path: str, model: str) -> dict[str, Any]:
    """Prepare a run on a file and read its rows once; return the peak of the process's own memory."""
    with watch_own_mb() as peak_mb:
        n_rows, seconds = prepare_and_read(csv_path, model)
    rates = {"rows_a_second": n_rows / seconds, "images_a_second": None, "data_wait_share": None}
    return {"setting": "run prepared, rows read", "n_rows": n_rows, **rates, "peak_mb": peak_mb[0]}


def prepare_and_read(csv_path: str, model: str) -> tuple[int, float]:
    """Do what a run does with its data, without a model; return the number of rows and the seconds to read them."""
    from sft.agent import AgentConfig
    from sft.batches.examples import build_step_rows, read_step_sizes
    from sft.batches.sampler import PackSampler
    from sft.data.train_val import load_task_split
    from sft.recipe.settings import DataSettings

    split = load_task_split(DataSettings(csv_path, image_root=str(DATA)), AgentConfig(), 0, show_progress=False)

    from benchmarks.sides import build_encoder

    rows = build_step_rows(split.train, csv_path, build_encoder(Path(model)), show_progress=False).dataset
    for pack in PackSampler(read_step_sizes(rows), TOKENS_PER_BATCH, seed=0):
        assert pack
    started = time.perf_counter()
    for _ in rows:
        pass
    return len(rows), time.perf_counter() - started


if __name__ == "__main__":
    main()
