"""The 8B recipe as the GPU benchmarks run it, and what they ran on. Used by all of them."""

from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parents[2] / "recipes/qwen3vl.yaml"
CPU = ("--use_cpu", "true", "--optim", "adamw_torch", "--dataloader_num_workers", "1")
TINY = ("--dtype", "float32", "--bf16", "false", *CPU)
TINY_SCREEN_WH = (320, 200)
# Nothing but steps: one line of figures each, no evaluation and no checkpoint.
BARE = """
    --logging_steps 1 --eval_strategy no --eval_on_start false --save_strategy no --load_best_model_at_end false
    --report_to none
"""


def build_arguments(base: Path, train_csv: Path, output_dir: Path, is_tiny: bool, **overrides: Any) -> list[str]:
    """Return the command line of `sft/run.py` for the recipe on other weights and data."""
    paths = {"model_name_or_path": base, "train_csv": train_csv, "val_csv": "null", "output_dir": output_dir}
    own = [text for key, value in {**paths, **overrides}.items() for text in (f"--{key}", str(value))]
    return [str(RECIPE), *BARE.split(), *(TINY if is_tiny else ()), *own]


def describe_gpu() -> dict[str, Any]:
    """Return hardware, versions and commit, with what of PyTorch's GPU part shapes a figure."""
    import torch

    from benchmarks.machine import describe_machine
    from sft.compute.hardware import read_hardware

    hardware = read_hardware(Path.cwd())
    return {
        **describe_machine(),
        "gpus": hardware["gpus"],
        "driver": hardware["driver"],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
    }
