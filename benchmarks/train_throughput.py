"""Training speed and memory against TRL's stock SFTTrainer on the same steps.

python benchmarks/train_throughput.py [--json FILE] [--steps_per_screenshot 1 2 4 8 16]
python benchmarks/train_throughput.py --savings [--json FILE] [--turns 12]

Stock: `SFTTrainer` with `DataCollatorForVisionLanguageModeling` on prompt/completion rows, at the better of two
micro-batch sizes. Ours: shared-screenshot packing, at the better of two token budgets. Same tiny model and weights,
same steps, same trained tokens, same optimiser, no checkpointing on either side. A screenshot has 1,280 image tokens
and a branch about 180 tokens; the last row trains packs of the demonstration data, drawn evenly from one epoch.

Stock's model is loaded by transformers, ours as a recipe's training loads it, with the kernels it chooses.

Each side has a process of its own, hence a peak of its own. They take turns optimiser step by optimiser step; `ratio`
is the median over the turns of stock's time by ours, after a warm-up. Fetching a batch is not in the time of either.
Two rows compare our side with itself: vision outputs kept (`vision_cache_gb`) against computed, LoRA on the language.

With `--savings`: what each thing that training leaves out or computes once gives, one added after the other. Packs of
the demo as its recipe trains them, forward and backward pass on one thread, processor time; the variants take turns in
one process, pack by pack. Then what kept vision outputs give where LoRA is on the language layers alone, and the
processor time that writing and reading one of the 8B's takes.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.machine import describe_machine, publish, read_peak_mb
from benchmarks.sides import (
    DEMO_DATA,
    VOCAB,
    build_cpu_arguments,
    build_encoder,
    build_our_trainer,
    build_pack_sampler,
    build_rows,
    build_stock_trainer,
    load_model,
    read_demo_texts,
)

IMAGE_WH = (1280, 1024)  # 1,280 image tokens of 32x32 pixels
STEPS_A_BATCH = 16
N_WARMUP = 1
DEMO_TOKENS_PER_BATCH = 4608  # of the packs of which the demonstration data's steps are taken
N_DEMO_PACKS = 5
DEMO = "demo"
KEPT_VISION = ("1", "8")  # steps per screenshot at which keeping vision outputs is compared with computing them
SPAWN = multiprocessing.get_context("spawn")
SAVINGS = {  # what has to be in place of what, so that it is not saved
    "head for scored tokens alone": None,
    "last layer for scored tokens alone": None,
    "4-bit weights dequantised once": "sft.models.model.dequantise_once",
    "LoRA in one product": "sft.trainer.fuse_lora",
}
# `side`: stock, ours, or ours with LoRA (frozen vision, kept vision); `size`: its micro-batch size or token budget
Side = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps_per_screenshot", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--micro_batch_sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--token_budgets", type=int, nargs="+", default=[2304, 4608])
    parser.add_argument("--turns", type=int, default=3, help="optimiser steps of each side that are timed [3]")
    parser.add_argument("--savings", action="store_true", help="what each saving gives, without stock")
    arguments = parser.parse_args()
    if arguments.savings:
        savings = measure_savings(arguments.turns)
        publish("Training: what each saving gives", savings, describe_machine(), arguments.json)
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        build_inputs(Path(folder))
        settings = [*map(str, arguments.steps_per_screenshot), DEMO]
        # stock's work is the same however many steps share a screenshot, so one choice holds for all settings
        stock = choose(folder, settings[0], [{"side": "stock", "size": n} for n in arguments.micro_batch_sizes])
        for setting in settings:
            ours = choose(folder, setting, [{"side": "ours", "size": n} for n in arguments.token_budgets])
            rows.append(compare(folder, setting, [stock, ours], arguments.turns))
            print(rows[-1], file=sys.stderr)
            if setting in KEPT_VISION:
                rows.append(compare_kept_vision(folder, setting, ours["size"], arguments.turns))
                print(rows[-1], file=sys.stderr)
    publish("Training: ours against stock TRL", rows, describe_machine(), arguments.json)


def build_inputs(folder: Path) -> None:
    """Write a tiny Qwen3-VL and sixteen distinct screenshots."""
    import numpy as np
    from PIL import Image

    from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint

    size = TinySize(VOCAB, hidden=128, layers=4, heads=4, kv_heads=2, intermediate=384, vision_depth=2)
    build_tiny_checkpoint(folder / "model", read_demo_texts(), size=size)
    rng = np.random.default_rng(0)
    for i in range(STEPS_A_BATCH):
        pixels = np.kron(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8), np.ones((32, 32, 1), dtype=np.uint8))
        Image.fromarray(pixels).resize(IMAGE_WH).save(folder / f"{i}.png")


def choose(folder: str, setting: str, sides: list[Side]) -> Side:
    """Return the side whose fastest turn of two is faster, after a warm-up."""
    if len(sides) == 1:
        return sides[0]
    seconds, _ = take_turns(folder, setting, sides, n_turns=N_WARMUP + 2)
    return sides[min(range(len(sides)), key=lambda i: min(seconds[i][N_WARMUP:]))]


def compare(folder: str, setting: str, sides: list[Side], n_timed: int) -> dict[str, Any]:
    """Measure stock and ours in turn and return one row of the table."""
    seconds, (stock, ours) = take_turns(folder, setting, sides, N_WARMUP + n_timed)
    if stock["trained_tokens"] != ours["trained_tokens"]:
        raise AssertionError(f"trained tokens differ: stock {stock['trained_tokens']}, ours {ours['trained_tokens']}")
    stock_s, ours_s = (times[N_WARMUP:] for times in seconds)
    ratio = statistics.median(s / o for s, o in zip(stock_s, ours_s))
    token_ratio = stock["tokens"] / ours["tokens"]
    return {
        "setting": "demo data" if setting == DEMO else "1,280 image tokens",
        "steps_per_screenshot": ours["steps_per_screenshot"],
        "n_steps": ours["n_steps"],
        "stock_micro_batch": sides[0]["size"],
        "our_tokens_per_batch": sides[1]["size"],
        "stock_s": statistics.median(stock_s),
        "ours_s": statistics.median(ours_s),
        "ratio": ratio,
        "token_ratio": token_ratio,
        "share_of_token_ratio": ratio / token_ratio,
        "stock_peak_mb": stock["peak_mb"],
        "ours_peak_mb": ours["peak_mb"],
        "loss_difference": abs(stock["loss"] - ours["loss"]) / stock["loss"],
    }


def compare_kept_vision(folder: str, setting: str, size: int, n_timed: int) -> dict[str, Any]:
    """Measure our side with LoRA on the language layers, vision outputs computed and kept, in turn.

    The warm-up sees every screenshot, so that all are kept by the turns that are timed.
    """
    sides: list[Side] = [{"side": "frozen vision", "size": size}, {"side": "kept vision", "size": size}]
    seconds, (computed, kept) = take_turns(folder, setting, sides, N_WARMUP + n_timed)
    computed_s, kept_s = (times[N_WARMUP:] for times in seconds)
    return {
        "setting": "vision outputs kept: on against off",
        "steps_per_screenshot": kept["steps_per_screenshot"],
        "n_steps": kept["n_steps"],
        "our_tokens_per_batch": size,
        "computed_s": statistics.median(computed_s),
        "kept_s": statistics.median(kept_s),
        "ratio": statistics.median(c / k for c, k in zip(computed_s, kept_s)),
        "loss_difference": abs(computed["loss"] - kept["loss"]) / computed["loss"],
    }


def take_turns(
    folder: str, setting: str, sides: list[Side], n_turns: int
) -> tuple[list[list[float]], list[dict[str, Any]]]:
    """Train each side in a process of its own, one optimiser step of one side at a time.

    Returns:
        The seconds of every optimiser step of each side, and what each side says of its run.
    """
    connections: list[Connection] = []
    processes = []
    for side in sides:
        connection, remote = SPAWN.Pipe()
        process = SPAWN.Process(target=train, args=(remote, folder, setting, n_turns), kwargs=side, daemon=True)
        process.start()
        remote.close()  # so that a side that dies is an EOFError here, not a wait without end
        connections.append(connection)
        processes.append(process)
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(n_turns):
        for times, connection in zip(seconds, connections):
            connection.send("your turn")
            times.append(connection.recv())
    summaries = [connection.recv() for connection in connections]
    for process in processes:
        process.join()
    return seconds, summaries


def train(connection: Connection, folder: str, setting: str, n_turns: int, side: str, size: int) -> None:
    """Train `n_turns` optimiser steps of one side, each when the connection says so, and send a summary.

    `size` is stock's micro-batch size and our token budget.
    """
    encoder = build_encoder(Path(folder) / "model")
    rows = build_demo_rows(encoder) if setting == DEMO else build_shared_rows(encoder, Path(folder), int(setting))
    if side == "stock":
        accumulation = -(-len(rows) // size)
        arguments = build_cpu_arguments(folder, n_turns, size, accumulation)
        trainer = build_stock_trainer(rows, encoder, model=load_model(Path(folder) / "model"), args=arguments)
    else:
        sampler = build_pack_sampler(rows, size)
        arguments = build_cpu_arguments(folder, n_turns, 1, len(sampler))
        model = load_as_training_does(Path(folder) / "model", use_peft=side != "ours")
        more = {} if side == "ours" else freeze_vision(model, encoder, Path(folder), is_kept=side == "kept vision")
        trainer = build_our_trainer(rows, encoder, sampler, model=model, args=arguments, **more)
    from benchmarks.clocks import Turns

    trainer.add_callback(Turns(connection))
    trainer.train()
    peak_mb = read_peak_mb()
    n_tokens = n_trained = 0
    for batch in trainer.get_train_dataloader():
        n_tokens += int(batch["attention_mask"].sum()) if side == "stock" else batch["input_ids"].numel()
        n_trained += int((batch["labels"] != -100).sum())
    connection.send(
        {
            "n_steps": len(rows),
            "steps_per_screenshot": len(rows) / len({row["image_sha256"] for row in rows}),
            "tokens": n_tokens,
            "trained_tokens": n_trained,
            "loss": trainer.state.log_history[0]["loss"],
            "peak_mb": peak_mb,
        }
    )


def load_as_training_does(folder: Path, use_peft: bool) -> Any:
    """Load the model as a recipe's training does, with its kernels; unquantised, since stock's is."""
    from sft.models.model import find_family, load_model
    from sft.recipe.settings import ModelSettings

    settings = ModelSettings(str(folder), dtype="float32", load_in_4bit=False, use_peft=use_peft)
    return load_model(settings, find_family(str(folder)))


def freeze_vision(model: Any, encoder: Any, folder: Path, is_kept: bool) -> dict[str, Any]:
    """Return what of our trainer puts LoRA on the language layers alone, and keeps what the vision tower makes."""
    from sft.batches.collator import PackingCollator
    from sft.batches.vision_cache import VisionCache
    from sft.models.model import build_lora_config, find_family
    from sft.models.vision_features import FrozenTower
    from sft.recipe.settings import ModelSettings

    base = str(folder / "model")
    lora = {"peft_config": build_lora_config(ModelSettings(base), find_family(base))}
    if not is_kept:
        return lora
    cache = VisionCache(folder / "vision", "benchmark", free_bytes=1e9)
    collator = PackingCollator(encoder, vision_cache=cache)
    return {**lora, "frozen_tower": FrozenTower(model, cache.keep), "data_collator": collator}


def build_shared_rows(encoder: Any, folder: Path, shared: int) -> list[dict[str, Any]]:
    """Build 16 steps on screenshots that `shared` steps share."""
    return build_rows(encoder, [folder / f"{i // shared}.png" for i in range(STEPS_A_BATCH)])


def build_demo_rows(
    encoder: Any, tokens_per_batch: int = DEMO_TOKENS_PER_BATCH, n_packs: int = N_DEMO_PACKS
) -> list[dict[str, Any]]:
    """Take the steps of every n-th pack of an epoch on the demonstration data, packs in the order of their steps."""
    from sft.batches.examples import build_step_rows
    from sft.data.load import load_trajectories

    csv_path = DEMO_DATA / "train.csv"
    tasks = load_trajectories(csv_path, show_progress=False)
    rows = build_step_rows(tasks, str(csv_path), encoder, show_progress=False).dataset.to_list()
    packs = sorted(build_pack_sampler(rows, tokens_per_batch).plan(epoch=1), key=len)
    chosen = packs[len(packs) // (2 * n_packs) :: len(packs) // n_packs][:n_packs]
    return [rows[i] for pack in chosen for i in pack]


def measure_savings(n_turns: int) -> list[dict[str, Any]]:
    """Train packs of the demo without any saving, with the first, with two and so on, and return one row for each.

    Then with LoRA on the language layers alone, vision outputs computed and kept, and what keeping one takes.
    """
    import torch

    from sft.batches.encoder import StepEncoder
    from sft.batches.vision_cache import VisionCache
    from sft.models.processors import load_processor
    from sft.recipe.recipe import parse_recipe

    torch.set_num_threads(1)
    recipe = parse_recipe([str(DEMO_DATA.parents[1] / "recipes/demo.yaml")])
    base = Path(DEMO_DATA.parent / "base")
    encoder = StepEncoder(load_processor(base, recipe.agent.min_pixels, recipe.agent.max_pixels), recipe.agent)
    rows = build_demo_rows(encoder, recipe.batch.tokens_per_batch, N_WARMUP + n_turns)
    sampler = build_pack_sampler(rows, recipe.batch.tokens_per_batch)
    on_language = replace(recipe.model, lora_parts=("language",))
    with tempfile.TemporaryDirectory() as folder:
        parts = rows, encoder, sampler, folder
        names = list(SAVINGS)
        trainers = [build_saving_trainer(recipe.model, names[:n], *parts) for n in range(len(names) + 1)]
        batches = list(trainers[0].get_train_dataloader())
        savings = compare_steps([(trainer, batches) for trainer in trainers])
        cache = VisionCache(Path(folder) / "vision", "benchmark", free_bytes=1e9)
        computed = build_saving_trainer(on_language, names, *parts)
        kept = build_saving_trainer(on_language, names, *parts, vision_cache=cache)
        for batch in kept.get_train_dataloader():
            compute_step(kept, batch)  # and keep what the tower makes
        kept.frozen_tower.finish()
        vision = compare_steps([(computed, batches), (kept, list(kept.get_train_dataloader()))])
        costs = measure_keeping(cache, n_turns)
    words = ["none", names[0], *(f"and {name}" for name in names[1:])]
    of_vision = ["LoRA on the language layers alone", "and vision outputs kept"]
    return [{"saving": w, **row} for w, row in zip([*words, *of_vision], [*savings, *vision])] + costs


def compare_steps(sides: list[tuple[Any, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Compute each batch with every trainer in turn, and return a row for each, compared with the first."""
    results = [[compute_step(trainer, batches[i]) for trainer, batches in sides] for i in range(len(sides[0][1]))]
    timed = results[N_WARMUP:]
    return [
        {
            "cpu_ms": 1000 * statistics.median(turn[i][0] for turn in timed),
            "factor": statistics.median(turn[0][0] / turn[i][0] for turn in timed),
            "gradient_difference": max(compare_gradients(turn[i][1], turn[0][1]) for turn in timed),
        }
        for i in range(len(sides))
    ]


def measure_keeping(cache: Any, n_turns: int) -> list[dict[str, Any]]:
    """Return what writing and reading what the 8B's tower makes of one 1920x1080 screenshot take, 40 MB in bf16."""
    import torch

    features = torch.randn(4, 1222, 4096).bfloat16()
    seconds: dict[str, list[float]] = {"writing": [], "reading": []}
    for i in range(N_WARMUP + n_turns):
        started = time.process_time()
        cache.keep(f"8B {i}", features, [1, 68, 120])
        written = time.process_time()
        assert cache.load(f"8B {i}") is not None
        seconds["writing"].append(written - started)
        seconds["reading"].append(time.process_time() - written)
    return [
        {"saving": f"{name} one output of the 8B", "cpu_ms": 1000 * statistics.median(times[N_WARMUP:])}
        for name, times in seconds.items()
    ]


def build_saving_trainer(
    settings: Any, savings: list[str], rows: Any, encoder: Any, sampler: Any, folder: str, vision_cache: Any = None
) -> Any:
    """Build our trainer of the demo's model with these savings and no others."""
    from sft.batches.collator import PackingCollator
    from sft.models import model
    from sft.models.vision_features import FrozenTower

    family = model.find_family(settings.model_name_or_path)
    with contextlib.ExitStack() as stack:
        for name, function in SAVINGS.items():
            if function is not None and name not in savings:
                stack.enter_context(patch(function))
        parts = {"model": model.load_model(settings, family), "peft_config": model.build_lora_config(settings, family)}
        if vision_cache is not None:
            parts["frozen_tower"] = FrozenTower(parts["model"], vision_cache.keep)
            parts["data_collator"] = PackingCollator(encoder, vision_cache=vision_cache)
        trainer = build_our_trainer(rows, encoder, sampler, args=build_cpu_arguments(folder, 1, 1, 1), **parts)
    head, layer, *_ = SAVINGS
    trainer.scores_alone, trainer.cuts_last_layer = head in savings, layer in savings
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.01)  # as it begins, zero, LoRA's A has no gradient
    return trainer


def compute_step(trainer: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the processor time of a forward and backward pass, and the gradients."""
    trainer.model.train()
    trainer.model.zero_grad()
    started = time.process_time()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    seconds = time.process_time() - started
    return seconds, {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def compare_gradients(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest relative difference of any parameter's gradient."""
    if found.keys() != expected.keys():
        raise AssertionError(f"gradients of other parameters: {sorted(found.keys() ^ expected.keys())[:3]}")
    return max(float((found[n] - g).norm() / g.norm()) for n, g in expected.items() if g.any())


if __name__ == "__main__":
    main()
