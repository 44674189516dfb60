"""What of an adapter does vLLM leave out? Asked before it is handed to vLLM; imports no model library."""

import logging
from pathlib import Path

from sft.errors import UserError
from sft.models.families import part_of
from sft.models.model_folder import ADAPTER_FILE, read_header

log = logging.getLogger("sft")


def find_left_out(folder: Path) -> list[str]:
    """Return in words what vLLM would leave out of an adapter's weights, nothing where it takes them all.

    vLLM (0.32) puts LoRA on the language model alone: it warns of LoRA elsewhere and goes on without, and of weights
    saved in full it takes none.
    """
    path = folder / ADAPTER_FILE
    names = list(read_header(path)) if path.is_file() else []
    is_lora = {name: ".lora_A." in name or ".lora_B." in name for name in names}
    parts = sorted({part_of(name) for name in names if is_lora[name]} - {"language"})
    in_full = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in names if not is_lora[name]})
    left_out = [f"LoRA on {' and '.join(parts)}"] if parts else []
    return [*left_out, *([f"weights saved in full ({', '.join(in_full)})"] if in_full else [])]


def refuse_left_out(folder: Path) -> None:
    """Make sure that vLLM takes the whole of an adapter.

    Raises:
        UserError: it would answer with another model than the one that was trained.
    """
    if left_out := find_left_out(folder):
        raise UserError(
            f"{folder}: found {' and '.join(left_out)}, which vLLM leaves out of an adapter; expected LoRA on the "
            f"language model alone: merge it with python -m sft.export --model_path {folder} --to DIR, and give DIR"
        )


def warn_of_left_out(folder: Path) -> None:
    """Log what a server may leave out, where the adapter lies here: it is not known what it serves."""
    if left_out := find_left_out(folder):
        log.warning(
            "%s: found %s, which vLLM leaves out if it serves this adapter on its base; serve the model that "
            "python -m sft.export merges",
            folder,
            " and ".join(left_out),
        )
