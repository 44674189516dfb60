"""Speed and memory of loading: screenshots decoded anew, cached cold and cached warm; memory against number of rows.

python -m benchmarks.data_loading [--json FILE] [--rows 1000 50000] [--screenshots 64]

Steps are collated one by one in the main process, on screenshots of the demonstration data at the 8B recipe's pixel
budget. Memory is that of a process that holds the rows of a run, after reading every one of them once.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, publish

SCREENSHOTS = Path(__file__).parent.parent / "demo/data/images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 50_000])
    parser.add_argument("--screenshots", type=int, default=64)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure_memory(int(arguments.worker))))
        return
    images = sorted(SCREENSHOTS.iterdir())[: arguments.screenshots]
    rows = [*measure_speed(images), *(run_worker(n) for n in arguments.rows)]
    publish("Data loading", rows, describe_machine(), arguments.json)


def measure_speed(images: list[Path]) -> list[dict[str, Any]]:
    """Collate one step on each screenshot, three ways."""
    from benchmarks.sides import build_encoder, build_goal, build_rows
    from demo.tiny_qwen3vl import build_tiny_checkpoint
    from sft.collator import PaddingCollator
    from sft.encoding import StepEncoder

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_checkpoint(Path(folder) / "model", [build_goal(i) for i in range(16)])
        plain = build_encoder(model)
        cached = StepEncoder(plain.processor, plain.agent, Path(folder) / "cache")
        steps = build_rows(plain, images)
        for setting, encoder in (("no cache", plain), ("cache, cold", cached), ("cache, warm", cached)):
            collate = PaddingCollator(encoder)
            started = time.perf_counter()
            for step in steps:
                collate([step])
            seconds = time.perf_counter() - started
            rows.append(
                {"setting": setting, "rows": len(steps), "rows_a_second": len(steps) / seconds, "peak_mb": None}
            )
    return rows


def run_worker(n_rows: int) -> dict[str, Any]:
    """Measure memory in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data_loading", "--worker", str(n_rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(n_rows: int) -> dict[str, Any]:
    """Build `n_rows` training rows as a run does, read each once and return peak memory."""
    from datasets import Dataset

    rows = [
        {"task_id": f"t{i}", "image": f"{i}.png", "prompt": f"{i} " * 400, "completion": f"{i} " * 60}
        for i in range(n_rows)
    ]
    dataset = Dataset.from_list(rows)  # as sft.data.build_step_rows does
    del rows
    started = time.perf_counter()
    for _ in dataset:
        pass
    seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"setting": "rows held", "rows": n_rows, "rows_a_second": n_rows / seconds, "peak_mb": peak_mb}


if __name__ == "__main__":
    main()
