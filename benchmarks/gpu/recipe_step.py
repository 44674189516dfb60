"""How much memory does a step of recipes/qwen3vl.yaml take? Trains three through `sft/run.py` itself, under a cap.

python -m benchmarks.gpu.recipe_step BASE --json FILE [--cap_gb 40]     # BASE: a folder of benchmarks.gpu.base_8b

PyTorch's allocator refuses what goes beyond the cap, as a card of that size would; the CUDA context, half a gigabyte,
is not in it. Data: 1920x1080 screenshots that 3 steps share, of which 4 fill a pack of the recipe's budget to within
25 tokens. The plan (`--plan`) of the same recipe is printed above the result.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.base_8b import random_weights
from benchmarks.gpu.recipe import TINY_SCREEN_WH, build_arguments, describe_gpu
from benchmarks.gpu.tasks import write_tasks
from benchmarks.machine import publish

N_STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--cap_gb", type=float, default=40.0, help="most memory that may be allocated [40]")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to test this program")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, random_weights():
        row = measure(arguments.base, Path(folder), arguments.cap_gb, arguments.tiny)
    publish(f"{N_STEPS} steps of recipes/qwen3vl.yaml", [row], describe_gpu(), arguments.json)


def measure(base: Path, folder: Path, cap_gb: float, is_tiny: bool) -> dict[str, Any]:
    """Run the recipe and return what its compute ledger says."""
    import torch

    from sft.compute.ledger import load_runs
    from sft.run import main as run
    from sft.run import print_plan

    screen_wh, n_steps = (TINY_SCREEN_WH, 2) if is_tiny else ((1920, 1080), 26)
    csv_path = write_tasks(folder, screen_wh, n_tasks=9, n_steps=n_steps, steps_a_screenshot=3)
    sizes = {"gradient_accumulation_steps": 1, "tokens_per_batch": 2048} if is_tiny else {}
    out = folder / "out"
    form = {"gradient_checkpointing": "true"}  # what auto takes on a card of the cap's size: it would not see the cap
    command = build_arguments(base, csv_path, out, is_tiny, max_steps=N_STEPS, **form, **sizes)
    print_plan(command)
    row: dict[str, Any] = {"cap_gb": cap_gb, "note": ""}
    if torch.cuda.is_available() and not is_tiny:
        torch.cuda.set_per_process_memory_fraction(cap_gb * 1e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        run(command)
    except torch.OutOfMemoryError:
        row["note"] = "over the cap"
    figures = load_runs(out)[-1].figures
    names = ("steps", "samples", "busy_s", "peak_gpu_gb", "peak_gpu_reserved_gb", "peak_host_gb", "data_wait_share")
    counted = {name: figures.get(name) for name in ("flops_batch_measured", "flops_batch_formula")}
    tokens = (figures.get("tokens_text") or 0) + (figures.get("tokens_image") or 0)
    return {**row, **{name: figures.get(name) for name in names}, "tokens": tokens, **counted}


if __name__ == "__main__":
    main()
