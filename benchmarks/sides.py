"""What the training benchmarks share: the same steps for both sides, stock TRL's rows and ours."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Times optimiser steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def build_goal(i: int) -> str:
    return f"Open study {i} of patient DOE^J{i} and measure the lesion on slice {3 * i} with the length tool"


def build_encoder(model_folder: Path) -> Any:
    """Return the encoder at the default pixel budget, that of the 8B recipe."""
    from sft.encoding import StepEncoder
    from sft.processors import load_processor
    from sft.prompts import AgentConfig

    agent = AgentConfig()
    return StepEncoder(load_processor(model_folder, agent.min_pixels, agent.max_pixels), agent)


def build_rows(encoder: Any, images: Sequence[Path]) -> list[dict[str, Any]]:
    """Build one training row an image, in the columns of `sft.data.build_step_rows`."""
    from sft.actions import Action
    from sft.memory import Answer, Memory
    from sft.prompts import format_answer

    rows = []
    for i, image in enumerate(images):
        memory = Memory({"last_action": "CLICK", "last_target": f"Layout {i}"}, {"completed_subtasks": ["open study"]})
        done = {"completed_subtasks": ["open study", "set window"]}
        answer = Answer(Action("CLICK", f"Length {i}"), {"last_action": "CLICK"}, done)
        prompt, completion = encoder.build_prompt(build_goal(i), memory, image), format_answer(answer, encoder.agent)
        rows.append(
            {
                "image": str(image),
                "image_sha256": image.name,
                "prompt": prompt.text,
                "completion": completion,
                "n_prefix_tokens": encoder.count_prefix_tokens(image),
                "n_prompt_tokens": prompt.n_tokens,
                "n_answer_tokens": len(encoder.encode_completion(completion)),
            }
        )
    return rows


def build_stock_trainer(rows: Sequence[dict[str, Any]], encoder: Any, **trainer: Any) -> Any:
    """Return TRL's own trainer and collator on the same steps, as prompt/completion rows."""
    from datasets import Dataset, Image
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    end = encoder.tokenizer.eos_token
    plain = [{"prompt": r["prompt"], "completion": r["completion"] + end, "images": [r["image"]]} for r in rows]
    return SFTTrainer(
        train_dataset=Dataset.from_list(plain).cast_column("images", [Image()]),
        data_collator=DataCollatorForVisionLanguageModeling(encoder.processor, max_length=None),
        processing_class=encoder.processor,
        **trainer,
    )


def build_our_trainer(rows: Sequence[dict[str, Any]], encoder: Any, pack_sampler: Any, **trainer: Any) -> Any:
    """Return our trainer: packed by the sampler, or padded where there is none."""
    from datasets import Dataset

    from sft.collator import PackingCollator, PaddingCollator
    from sft.trainer import TrajectoryTrainer

    return TrajectoryTrainer(
        train_dataset=Dataset.from_list(list(rows)),
        data_collator=PackingCollator(encoder) if pack_sampler else PaddingCollator(encoder),
        processing_class=encoder.processor,
        pack_sampler=pack_sampler,
        **trainer,
    )


def build_pack_sampler(rows: Sequence[dict[str, Any]], tokens_per_batch: int) -> Any:
    """Return the sampler that packs the rows."""
    from datasets import Dataset

    from sft.data import read_step_sizes
    from sft.sampler import PackSampler

    return PackSampler(read_step_sizes(Dataset.from_list(list(rows))), tokens_per_batch, seed=0)
