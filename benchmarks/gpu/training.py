"""Speed of the 8B recipe's training on a GPU, packed and by stock TRL on the same steps; and where a step's time goes.

python -m benchmarks.gpu.training BASE --side packed --json FILE      # BASE: a folder of benchmarks.gpu.base_8b
python -m benchmarks.gpu.training BASE --side stock --json FILE       # adds its row, and the ratio
    --profile FILE      operations and kernels of one more optimiser step, behind those that are timed
    --checkpointing true, selective or false; --compiled off: norms, RoPE and SwiGLU operation by operation

Both sides load the model as the product does, with its LoRA, 4-bit layers, checkpointing and optimiser, and train
about 16 steps of tasks an optimiser step: packed in sequences of up to 8,192 tokens, stock in micro-batches of 4. No
two optimiser steps have the same steps of tasks. The first two are not timed.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.base_8b import random_weights
from benchmarks.gpu.recipe import TINY_SCREEN_WH, build_arguments, describe_gpu
from benchmarks.gpu.tasks import write_tasks
from benchmarks.machine import publish, save

N_WARMUP, N_TIMED = 2, 3
STEPS_A_BATCH = 16
STOCK_MICRO_BATCH = 4  # about as many tokens as a packed sequence
N_TASKS, STEPS_A_TASK = 8, (N_WARMUP + N_TIMED + 1) * STEPS_A_BATCH // 8  # and one to profile
N_OPERATIONS, N_KERNELS = 25, 25
_OF_A_ROW = ("side", "checkpointing", "compiled", "tokens_per_batch")  # what tells rows of a file apart
Times = dict[str, tuple[float, int]]  # milliseconds and calls by name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--side", choices=("packed", "stock"), default="packed")
    parser.add_argument("--screen", default="1920x1080", help="width and height of a screenshot [1920x1080]")
    parser.add_argument("--steps_a_screenshot", type=int, default=8, help="steps that show the same one [8]")
    parser.add_argument("--checkpointing", choices=("true", "selective", "false"), default="true")
    parser.add_argument("--tokens_per_batch", type=int, help="size of a packed sequence [as the recipe says]")
    parser.add_argument("--compiled", choices=("on", "off"), default="on")
    parser.add_argument("--profile", type=Path, help="file for where the time of one more step goes")
    parser.add_argument("--json", type=Path, required=True, help="file for the rows; the other side's row is kept")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to test this program")
    arguments = parser.parse_args()
    width, height = TINY_SCREEN_WH if arguments.tiny else map(int, arguments.screen.split("x"))
    with tempfile.TemporaryDirectory() as folder, random_weights():
        csv_path = write_tasks(Path(folder), (width, height), N_TASKS, STEPS_A_TASK, arguments.steps_a_screenshot)
        about = {"side": arguments.side, "screen": f"{width}x{height}"}
        about["steps_a_screenshot"] = arguments.steps_a_screenshot
        about |= {"checkpointing": arguments.checkpointing, "compiled": arguments.compiled}
        if arguments.tokens_per_batch:
            about["tokens_per_batch"] = arguments.tokens_per_batch
        if arguments.compiled == "off":
            import torch

            torch.compiler.set_stance("force_eager")
        measure(arguments.base, csv_path, about, arguments.json, arguments.tiny, arguments.profile)


def measure(
    base: Path,
    csv_path: Path,
    about: dict[str, Any],
    json_path: Path,
    is_tiny: bool,
    profile_path: Path | None = None,
) -> None:
    """Train a few optimiser steps; the side's row is saved after each that is timed, so that a cut run keeps it."""
    import torch
    from transformers import TrainerCallback

    from benchmarks.clocks import Clock

    last = N_WARMUP + N_TIMED
    trainer, figures = build_trainer(base, csv_path, about, is_tiny, last + (profile_path is not None))
    clock, machine = Clock(trainer), describe_gpu()
    title = f"QLoRA training, {'tiny model' if is_tiny else 'Qwen3-VL-8B shapes, random weights'}"

    class Saved(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if N_WARMUP < len(clock.seconds) <= last:
                row.update(describe_speed(clock.seconds[N_WARMUP:], clock.counts[N_WARMUP:], figures))
                save(title, add_row(json_path, row), machine, json_path)

    row: dict[str, Any] = {**about}
    trainer.add_callback(Saved())
    if profile_path is not None:
        trainer.add_callback(build_profiler(last, clock, profile_path))  # behind the clock, which waits for the GPU
    try:
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        row |= {"loss": logs[-1]["loss"], "note": ""}
        if not all(math.isfinite(log["loss"]) and math.isfinite(log["grad_norm"]) for log in logs):
            row["note"] = "loss or gradient not finite"
    except torch.OutOfMemoryError:
        row["note"] = "out of memory"
    publish(title, add_row(json_path, row), machine, json_path)


def describe_speed(
    seconds: Sequence[float], counts: Sequence[tuple[int, int]], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """Return speed, peak memory and the achieved share of peak arithmetic of optimiser steps.

    `counts` are their steps of tasks and tokens, `figures` what the step meter noted of all until then.
    """
    import torch

    from sft.compute.hardware import find_peak_tflops

    n_steps, n_tokens = (sum(column) for column in zip(*counts))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    metered = figures.get("tokens_text", 0) + figures.get("tokens_image", 0)
    flops_a_token = _divide(figures.get("flops"), metered)
    tflops = flops_a_token * n_tokens / sum(seconds) / 1e12 if flops_a_token else None
    return {
        "n_timed": len(seconds),
        "steps_a_s": n_steps / sum(seconds),
        "tokens_a_s": n_tokens / sum(seconds),
        "median_s": statistics.median(seconds),
        "slowest_s": max(seconds),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if gpu else None,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if gpu else None,
        "tflops": tflops,
        "share_of_peak": _divide(tflops, find_peak_tflops(gpu)) if gpu else None,
        "measured_by_formula": _divide(figures.get("flops_batch_measured"), figures.get("flops_batch_formula")),
    }


def add_row(path: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the file's rows with this one, each with its ratio to stock TRL's steps a second."""
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    rows = [*(r for r in kept if any(r.get(name) != row.get(name) for name in _OF_A_ROW)), row]
    stock = next((r.get("steps_a_s") for r in rows if r["side"] == "stock"), None)
    return [{**r, "ratio": _divide(r.get("steps_a_s"), stock)} for r in rows]


def build_profiler(n_before: int, clock: Any, json_path: Path) -> Any:
    """Return what profiles the optimiser step behind the first `n_before` and publishes where its time went."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as start_profile
    from transformers import TrainerCallback

    on_gpu = torch.cuda.is_available()
    profile = start_profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])])

    class ProfiledStep(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == n_before:
                profile.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == n_before + 1:
                profile.stop()
                publish_profile(profile, clock.seconds[n_before], json_path)

    return ProfiledStep()


def publish_profile(profile: Any, seconds: float, json_path: Path) -> None:
    """Publish the operations, and the kernels they started, that took most time in one optimiser step."""
    import torch

    on_gpu = torch.cuda.is_available()
    operations, kernels = sum_gpu_times(profile) if on_gpu else (sum_cpu_times(profile), {})
    total = sum(ms for ms, _ in operations.values()) or 1
    rows = [
        {"kind": kind, "name": name[:80], "calls": count, "ms": ms, "share": ms / total}
        for kind, times, n in (("operation", operations, N_OPERATIONS), ("kernel", kernels, N_KERNELS))
        for name, (ms, count) in sorted(times.items(), key=lambda item: -item[1][0])[:n]
    ]
    where = "GPU" if on_gpu else "CPU"
    title = f"One optimiser step: {1e3 * seconds:.0f} ms under the profiler, {where} busy for {total:.0f} ms"
    publish(title, rows, describe_gpu(), json_path)


def sum_gpu_times(profile: Any) -> tuple[Times, Times]:
    """Sum the kernels' times by the operation that started each, and by kernel, from the profiler's plain events.

    Its own table builds a tree of a quarter of a million events in Python, which took longer than all else.
    """
    from torch.autograd import DeviceType

    operations, kernels = dict[str, tuple[float, int]](), dict[str, tuple[float, int]]()
    events = profile.profiler.kineto_results.events()
    # an operation's events are linked to no other; those of its launches and kernels to it
    names = {event.correlation_id(): event.name() for event in events if event.linked_correlation_id() == 0}
    for event in events:
        if event.device_type() == DeviceType.CPU or event.is_user_annotation():  # a span over others
            continue
        started_by = names.get(event.linked_correlation_id(), "unknown")
        for times, name in ((operations, started_by), (kernels, event.name())):
            ms, count = times.get(name, (0.0, 0))
            times[name] = ms + event.duration_ns() / 1e6, count + 1
    return operations, kernels


def sum_cpu_times(profile: Any) -> Times:
    return {event.key: (event.self_cpu_time_total / 1e3, event.count) for event in profile.key_averages()}


def build_trainer(
    base: Path, csv_path: Path, about: Mapping[str, Any], is_tiny: bool, n_steps: int
) -> tuple[Any, dict[str, Any]]:
    """Return the trainer of one side, and the figures that the product's step meter has noted (none on stock's)."""
    from benchmarks.sides import build_our_trainer, build_stock_trainer
    from sft.batches.encoder import StepEncoder
    from sft.batches.examples import build_step_rows, read_step_sizes
    from sft.batches.sampler import PackSampler
    from sft.compute.step_meter import StepMeter
    from sft.data.load import load_trajectories
    from sft.models.model import build_lora_config, find_family, load_model
    from sft.models.processors import load_processor
    from sft.recipe.launch import build_training_arguments
    from sft.recipe.recipe import parse_recipe

    side, form = about["side"], about.get("checkpointing", "true")
    padded = {"packing": "none", "per_device_train_batch_size": STOCK_MICRO_BATCH}
    overrides: dict[str, Any] = {"max_steps": n_steps, **(padded if side == "stock" else {})}
    overrides |= {"gradient_checkpointing": form}
    if is_tiny or "tokens_per_batch" in about:
        overrides |= {"tokens_per_batch": about.get("tokens_per_batch", 4096)}
    recipe = parse_recipe(build_arguments(base, csv_path, csv_path.parent / "out", is_tiny, **overrides))
    training = build_training_arguments(recipe)
    processor = load_processor(base, recipe.agent.min_pixels, recipe.agent.max_pixels)
    encoder = StepEncoder(processor, recipe.agent)
    tasks = load_trajectories(csv_path, show_progress=False)
    rows = build_step_rows(tasks, str(csv_path), encoder, show_progress=False).dataset
    family = find_family(str(base))
    parts = {"args": training, "peft_config": build_lora_config(recipe.model, family)}
    if side == "stock":
        training.gradient_accumulation_steps = STEPS_A_BATCH // STOCK_MICRO_BATCH
        return build_stock_trainer(rows.to_list(), encoder, model=load_model(recipe.model, family), **parts), {}
    sizes, budget = read_step_sizes(rows), recipe.batch.tokens_per_batch
    n_packs = len(PackSampler(sizes, budget, training.seed))
    training.gradient_accumulation_steps = max(1, round(STEPS_A_BATCH * n_packs / len(rows)))
    sampler = PackSampler(sizes, budget, training.seed, accumulation=training.gradient_accumulation_steps)
    figures = _Figures()
    meter = StepMeter(figures)
    model = load_model(recipe.model, family)
    parts |= {"step_meter": meter, "keeps_products": form == "selective"}
    trainer = build_our_trainer(rows.to_list(), encoder, sampler, model=model, **parts)
    return trainer, figures.noted


class _Figures:
    """Takes what a step meter notes, as the compute ledger's recorder does."""

    def __init__(self) -> None:
        self.noted: dict[str, Any] = {}

    def note(self, **figures: Any) -> None:
        self.noted.update(figures)

    def log(self, **fields: Any) -> None:
        """Ignore it: nobody reads how the figures went."""


def _divide(number: float | None, by: float | None) -> float | None:
    return number / by if number and by else None


if __name__ == "__main__":
    main()
