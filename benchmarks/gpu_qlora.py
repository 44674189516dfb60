"""QLoRA on a model of Qwen3-VL-8B's size with random weights: memory, speed, share of peak arithmetic.

python -m benchmarks.gpu_qlora [--json FILE] [--cap_gb 40]       # one CUDA GPU, no weights needed
python -m benchmarks.gpu_qlora --tiny                            # the same code on a CPU, with a tiny model

Rows: 1280x800 and 1920x1080 screenshots, packing on and off, and stock TRL (`SFTTrainer` with its vision collator).
Eight steps a screenshot, two screenshots an optimiser step, gradient checkpointing on. A row whose memory exceeds the
cap says so instead of a time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, publish
from benchmarks.sides import (
    VOCAB,
    build_encoder,
    build_our_trainer,
    build_pack_sampler,
    build_rows,
    build_stock_trainer,
    read_demo_texts,
)

SCREENS = {"1280x800": (1280, 800), "1920x1080": (1920, 1080)}
TINY_SCREENS = {"320x200": (320, 200)}
STEPS_A_SCREENSHOT, N_SCREENSHOTS = 8, 2
TOKENS_PER_BATCH = 4096
N_WARMUP, N_TIMED = 2, 5
# Published dimensions of Qwen3-VL-8B-Instruct.
TEXT_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
}
VISION_8B = {
    "depth": 27,
    "hidden_size": 1152,
    "num_heads": 16,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
    "out_hidden_size": 4096,
    "num_position_embeddings": 2304,
}
# Dense bf16 peak in FLOP/s, from the makers' data sheets.
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cap_gb", type=float, default=40.0)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to test this program")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(**json.loads(arguments.worker))))
        return
    import torch

    if not arguments.tiny and not torch.cuda.is_available():
        parser.exit(2, "found no CUDA GPU; expected one, or --tiny\n")
    with tempfile.TemporaryDirectory() as folder:
        build_checkpoint(Path(folder), arguments.tiny)
        rows = [
            run_worker(folder=folder, screen=screen, side=side, tiny=arguments.tiny, cap_gb=arguments.cap_gb)
            for screen in (TINY_SCREENS if arguments.tiny else SCREENS)
            for side in ("packed", "padded", "stock")
        ]
    for row in rows:
        stock = next(r for r in rows if r["screen"] == row["screen"] and r["side"] == "stock")
        both = row["steps_a_second"] and stock["steps_a_second"]
        row["ratio"] = row["steps_a_second"] / stock["steps_a_second"] if both else None
    size = "tiny model" if arguments.tiny else "Qwen3-VL-8B size, random weights"
    publish(f"QLoRA, {size}, 8 steps a screenshot", rows, describe_machine(), arguments.json)


def run_worker(**job: Any) -> dict[str, Any]:
    """Run one row in its own process: peak memory is its own, and one that runs out ends only itself."""
    command = [sys.executable, "-m", "benchmarks.gpu_qlora", "--worker", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    row: dict[str, Any] = {"screen": job["screen"], "side": job["side"]}
    if done.returncode == 0:
        return {**row, **json.loads(done.stdout.splitlines()[-1])}
    if "OutOfMemoryError" not in done.stderr:
        raise RuntimeError(done.stderr[-4000:])
    return {
        **row,
        **dict.fromkeys(("steps_a_second", "tokens_a_second", "peak_gb", "share_of_peak")),
        "note": "over cap",
    }


def build_checkpoint(folder: Path, tiny: bool) -> None:
    """Write tokenizer, processor and config; the weights stay random and are never written at full size."""
    from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint

    build_tiny_checkpoint(folder, read_demo_texts(), size=TinySize(VOCAB))
    if not tiny:
        config = json.loads((folder / "config.json").read_text())
        config["text_config"].update(TEXT_8B)
        config["vision_config"].update(VISION_8B)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").unlink()


def measure(folder: str, screen: str, side: str, tiny: bool, cap_gb: float) -> dict[str, Any]:
    """Train a few optimiser steps and return speed, peak memory and the achieved share of peak arithmetic."""
    import torch

    if not tiny:
        torch.cuda.set_per_process_memory_fraction(cap_gb * 1e9 / torch.cuda.get_device_properties(0).total_memory)
    encoder = build_encoder(Path(folder))
    rows = build_rows(encoder, build_images(Path(folder), {**SCREENS, **TINY_SCREENS}[screen]))
    trainer = build_trainer(folder, encoder, rows, side, load(folder, tiny), tiny)
    from benchmarks.clocks import Clock

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    seconds = statistics.median(clock.seconds[N_WARMUP:])
    n_tokens = sum(batch["input_ids"].numel() for batch in trainer.get_train_dataloader())
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if not tiny else None
    return {
        "steps_a_second": len(rows) / seconds,
        "tokens_a_second": n_tokens / seconds,
        "peak_gb": peak_gb,
        "share_of_peak": None if tiny else compute_share_of_peak(trainer.model, n_tokens, seconds),
        "note": "",
    }


def compute_share_of_peak(model: Any, n_tokens: int, seconds: float) -> float | None:
    """Return achieved / peak FLOP/s: 2 forward, 2 recomputed and 2 backward a language weight and token, no more.

    Frozen weights need no weight gradient. Attention, vision tower and LoRA are left out, so this is a lower bound.
    """
    import torch

    from sft.models.model import count_parameters

    name = torch.cuda.get_device_name()
    peak = next((flops for card, flops in PEAK_FLOPS.items() if card in name), None)
    if peak is None:
        return None
    return 6 * count_parameters(model)["language"]["total"] * n_tokens / seconds / peak


def load(folder: str, tiny: bool) -> Any:
    """Build the model with random weights, each language layer quantised before the next is made."""
    import bitsandbytes as bnb
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from sft.models.model import find_family_of

    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.bfloat16)
    config = AutoConfig.from_pretrained(folder)
    skipped = find_family_of(config.model_type).not_quantised
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and not name.startswith(skipped):
            shape = (module.in_features, module.out_features)
            linear = bnb.nn.Linear4bit(
                *shape, bias=module.bias is not None, compute_dtype=dtype, quant_type="nf4", device=device
            )
            linear.weight = bnb.nn.Params4bit(
                torch.randn(shape[1], shape[0], dtype=dtype, device=device) * 0.02,
                requires_grad=False,
                quant_type="nf4",
                quant_storage=torch.uint8,
            ).to(device)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, linear)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            parent, _, child = name.rpartition(".")
            owner = model.get_submodule(parent)
            value = torch.randn(tensor.shape, dtype=tensor.dtype, device=device) * 0.02
            if isinstance(tensor, torch.nn.Parameter):
                setattr(owner, child, torch.nn.Parameter(value, requires_grad=False))
            else:
                owner.register_buffer(child, value, persistent=False)
    model.is_loaded_in_4bit = True
    return model


def build_images(folder: Path, screen_wh: tuple[int, int]) -> list[Path]:
    """Write 2 screenshots of the given size; return the screenshot of each of 16 steps."""
    import numpy as np
    from PIL import Image

    rng, paths = np.random.default_rng(0), []
    for i in range(N_SCREENSHOTS):
        paths.append(folder / f"{screen_wh[0]}_{i}.png")
        pixels = rng.integers(0, 256, (screen_wh[1] // 8, screen_wh[0] // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(screen_wh).save(paths[-1])
    return [path for path in paths for _ in range(STEPS_A_SCREENSHOT)]


def build_trainer(folder: str, encoder: Any, rows: list[dict[str, Any]], side: str, model: Any, tiny: bool) -> Any:
    """Build the trainer of one side; 16 steps an optimiser step on each."""
    from trl import SFTConfig

    from sft.models.model import build_lora_config, find_family_of
    from sft.recipe.settings import ModelSettings

    sampler = build_pack_sampler(rows, TOKENS_PER_BATCH) if side == "packed" else None
    arguments = SFTConfig(
        output_dir=f"{folder}/out",
        max_steps=N_WARMUP + N_TIMED,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=len(sampler) if sampler else len(rows),
        gradient_checkpointing=True,
        optim="adamw_torch" if tiny else "paged_adamw_8bit",
        use_cpu=tiny,
        bf16=not tiny,
        max_length=None,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    lora = build_lora_config(ModelSettings(folder, lora_r=64, lora_alpha=128), find_family_of("qwen3_vl"))
    parts = {"model": model, "args": arguments, "peft_config": lora}
    if side == "stock":
        return build_stock_trainer(rows, encoder, **parts)
    return build_our_trainer(rows, encoder, sampler, **parts)


if __name__ == "__main__":
    main()
