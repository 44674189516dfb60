"""Supervised fine-tuning of vision-language models as GUI agents for clinical software."""

import logging
import warnings


def _is_of_use(record: logging.LogRecord) -> bool:
    """Say whether a record of bitsandbytes is more than its advice to install `kernels`, whose kernel is not used.

    It gives that advice whenever it is imported on a CPU with AVX512-BF16; `sft.models.model` keeps to the kernel that
    it has.
    """
    return "gemm_4bit_forward from kernels-community" not in str(record.msg)


def _is_true(record: logging.LogRecord) -> bool:
    """Say whether a record of transformers is not about the best checkpoint's place: here it is known by its step."""
    return "recorded in the resumed state does not exist" not in str(record.msg)


logging.getLogger("transformers.trainer").addFilter(_is_true)
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_of_use)
# TRL (1.16) and peft call by old names what transformers has renamed; the export unties a tied head that was trained.
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing(_enable)?` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer", UserWarning)
