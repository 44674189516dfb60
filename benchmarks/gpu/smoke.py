"""Does it run on a GPU at all? Trains the demonstration's base three steps in bf16 and rolls two tasks out.

python -m benchmarks.gpu.smoke --json FILE

The commands are a user's own, in processes of their own; their output goes to standard error.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.recipe import CPU, describe_gpu
from benchmarks.machine import publish

ROOT = Path(__file__).parents[2]
TRAIN_CSV, TEST_CSV = "demo/data/train.csv", "demo/data/test.csv"
N_TRAIN_TASKS, N_TEST_TASKS = 10, 2
TRAINING = f"""
    recipes/demo.yaml --dtype bfloat16 --bf16 true --gradient_checkpointing true --max_steps 3 --logging_steps 1
    --task_end {N_TRAIN_TASKS} --val_csv null --val_split 0.2 --val_rollout_tasks 1 --eval_steps 3 --save_steps 3
"""
GPU = ("--use_cpu", "false", "--optim", "paged_adamw_8bit", "--dataloader_num_workers", "4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="on the CPU, to test this program")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        out, results, screenshots = (Path(name, part) for part in ("out", "results", "screenshots"))
        paths = ("--output_dir", str(out), "--screenshot_cache", str(screenshots))
        training = ["sft/run.py", *TRAINING.split(), *(CPU if arguments.tiny else GPU), *paths]
        rollout = ["eval/rollout.py", "--model_path", str(out), "--test_csv", TEST_CSV]
        rollout += ["--max_tasks", str(N_TEST_TASKS), "--output_dir", str(results)]
        for command, folder in ((training, out), (rollout, results)):
            rows.append(run_command(command, folder))
            publish("Training and rollout of demo/base in bf16", rows, describe_gpu(), arguments.json)
    if any(row["exit_code"] for row in rows):
        sys.exit(1)


def run_command(command: list[str], folder: Path) -> dict[str, Any]:
    """Run a command of the project and return what its compute ledger says."""
    from sft.compute.ledger import load_runs

    started = time.perf_counter()
    exit_code = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=sys.stderr).returncode
    seconds = time.perf_counter() - started
    runs = load_runs(folder) if folder.is_dir() else []
    figures, logs = (runs[-1].figures, runs[-1].logs) if runs else ({}, ())
    names = ("steps", "peak_gpu_gb", "flops_batch_measured", "flops_batch_formula")
    return {
        "command": command[0],
        "exit_code": exit_code,
        "seconds": seconds,
        "outcome": runs[-1].outcome if runs else None,
        "last_loss": next((log["loss"] for log in reversed(logs) if "loss" in log), None),
        **{name: figures.get(name) for name in names},
    }


def list_screenshots() -> set[str]:
    """Return the demonstration's screenshots that the two commands show, relative to the checkout."""
    from sft.data.load import load_trajectories

    chosen = ((TRAIN_CSV, N_TRAIN_TASKS), (TEST_CSV, N_TEST_TASKS))
    tasks = [t for csv, n in chosen for t in load_trajectories(ROOT / csv, task_end=n, show_progress=False)]
    return {str(step.image_path.resolve().relative_to(ROOT)) for task in tasks for step in task.steps}


if __name__ == "__main__":
    main()
