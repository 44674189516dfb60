"""Training speed and memory against TRL's stock SFTTrainer on the same steps.

python benchmarks/train_throughput.py [--json FILE] [--steps_per_screenshot 1 2 4 8 16] [--demo]

Stock: `SFTTrainer` with `DataCollatorForVisionLanguageModeling` on prompt/completion rows, at its best micro-batch
size. Ours: shared-screenshot packing. Same tiny model and weights, same steps, same trained tokens, same optimiser,
no checkpointing on either side. Each side runs in a process of its own, in turn; times are medians over optimiser
steps after a warm-up.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, publish
from benchmarks.sides import (
    Clock,
    build_encoder,
    build_goal,
    build_our_trainer,
    build_pack_sampler,
    build_rows,
    build_stock_trainer,
)

IMAGE_WH = (1280, 1024)  # 1,280 image tokens of 32x32 pixels
STEPS_A_BATCH = 16
TOKENS_PER_BATCH = 4608
N_WARMUP, N_TIMED = 1, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps_per_screenshot", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--micro_batch_sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(**json.loads(arguments.worker))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        build_inputs(Path(folder))
        for shared in arguments.steps_per_screenshot:
            rows.append(compare(Path(folder), shared, arguments.micro_batch_sizes))
            print(rows[-1], file=sys.stderr)
    publish(
        "Training: ours against stock TRL, one optimiser step of 16 steps", rows, describe_machine(), arguments.json
    )


def compare(folder: Path, shared: int, micro_batch_sizes: list[int]) -> dict[str, Any]:
    """Measure both sides on screenshots that `shared` steps share."""
    ours = run_worker(folder=str(folder), side="ours", shared=shared, micro_batch=1)
    stock = [run_worker(folder=str(folder), side="stock", shared=shared, micro_batch=m) for m in micro_batch_sizes]
    best = min(stock, key=lambda result: result["seconds"])
    if best["trained_tokens"] != ours["trained_tokens"]:
        raise AssertionError(f"trained tokens differ: stock {best['trained_tokens']}, ours {ours['trained_tokens']}")
    return {
        "steps_per_screenshot": shared,
        "stock_s": best["seconds"],
        "stock_micro_batch": best["micro_batch"],
        "ours_s": ours["seconds"],
        "ratio": best["seconds"] / ours["seconds"],
        "token_ratio": best["tokens"] / ours["tokens"],
        "stock_peak_mb": best["peak_mb"],
        "ours_peak_mb": ours["peak_mb"],
        "loss_difference": abs(best["loss"] - ours["loss"]) / best["loss"],
    }


def run_worker(**job: Any) -> dict[str, Any]:
    """Run one measurement in its own process, so that peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.train_throughput", "--worker", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return {**job, **json.loads(done.stdout.splitlines()[-1])}


def build_inputs(folder: Path) -> None:
    """Write a tiny Qwen3-VL and sixteen distinct screenshots."""
    import numpy as np
    from PIL import Image

    from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint

    size = TinySize(hidden=128, layers=4, heads=4, kv_heads=2, intermediate=384, vision_hidden=64, vision_depth=2)
    build_tiny_checkpoint(folder / "model", [build_goal(i) for i in range(16)], size=size)
    rng = np.random.default_rng(0)
    for i in range(STEPS_A_BATCH):
        pixels = np.kron(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8), np.ones((32, 32, 1), dtype=np.uint8))
        Image.fromarray(pixels).resize(IMAGE_WH).save(folder / f"{i}.png")


def measure(folder: str, side: str, shared: int, micro_batch: int) -> dict[str, Any]:
    """Train a few optimiser steps on one side.

    Returns:
        Median seconds an optimiser step, tokens and trained tokens of one, first loss, peak memory in MB.
    """
    encoder = build_encoder(Path(folder) / "model")
    rows = build_rows(encoder, [Path(folder) / f"{i // shared}.png" for i in range(STEPS_A_BATCH)])
    if side == "stock":
        arguments = build_arguments(folder, micro_batch, accumulation=STEPS_A_BATCH // micro_batch)
        trainer = build_stock_trainer(rows, encoder, model=load(folder), args=arguments)
    else:
        sampler = build_pack_sampler(rows, TOKENS_PER_BATCH)
        arguments = build_arguments(folder, 1, accumulation=len(sampler))
        trainer = build_our_trainer(rows, encoder, sampler, model=load(folder), args=arguments)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    batches = list(trainer.get_train_dataloader())
    return {
        "seconds": statistics.median(clock.seconds[N_WARMUP:]),
        "tokens": sum(batch["input_ids"].numel() for batch in batches),
        "trained_tokens": sum(int((batch["labels"] != -100).sum()) for batch in batches),
        "loss": trainer.state.log_history[0]["loss"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def load(folder: str) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(f"{folder}/model", dtype=torch.float32)


def build_arguments(folder: str, micro_batch: int, accumulation: int) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=f"{folder}/out",
        max_steps=N_WARMUP + N_TIMED,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=False,
        learning_rate=1e-4,
        use_cpu=True,
        bf16=False,
        max_length=None,
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main()
