"""What the training benchmarks share: the same steps for both sides, stock TRL's rows and ours."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEMO_DATA = Path(__file__).parent.parent / "demo/data"
VOCAB = 1536  # with a vocabulary of the demonstration's texts, its branches have about 180 tokens


def read_demo_texts() -> list[str]:
    """Return goals and answers of the demonstration data, for a tokenizer to learn."""
    with (DEMO_DATA / "train.csv").open(encoding="utf-8", newline="") as file:
        return [row[column] for row in csv.DictReader(file) for column in ("Instruction", "Output")]


def build_goal(i: int) -> str:
    return (
        f"Open study {i} of patient DOE^J{i}, zoom in twice, then measure the lesion on slice {3 * i} with the Length "
        "tool, track the measurement, and zoom out again before you leave the viewer"
    )


def build_encoder(model_folder: Path) -> Any:
    """Return the encoder at the default pixel budget, that of the 8B recipe."""
    from sft.agent import AgentConfig
    from sft.batches.encoder import StepEncoder
    from sft.models.processors import load_processor

    agent = AgentConfig()
    return StepEncoder(load_processor(model_folder, agent.min_pixels, agent.max_pixels), agent)


def build_rows(encoder: Any, images: Sequence[Path]) -> list[dict[str, Any]]:
    """Build one training row per image, in the columns of `build_step_rows`: the second step of a task on it."""
    from sft.actions import Action
    from sft.answers import Answer
    from sft.batches.examples import build_examples
    from sft.data.cells import Grounding
    from sft.data.steps import Step, Trajectory

    tasks = []
    for i, image in enumerate(images):
        targets = {f"Layout {i}": ["open study", "zoom in"], f"Length {i}": ["open study", "zoom in", "measure"]}
        golds = [Answer(Action("CLICK", target), *_build_memory(target, done)) for target, done in targets.items()]
        steps = [Step(str(i), n, n, image, image.name, gold, Grounding(), image.name) for n, gold in enumerate(golds)]
        tasks.append(Trajectory(str(i), build_goal(i), "", "", tuple(steps)))
    examples = build_examples(tasks, encoder.agent, Path("benchmark"), encoder)
    return [example.build_row("benchmark") for example in examples if example.step.index == 1]


def _build_memory(target: str, done: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return short-term and long-term memory as the demonstration data writes them."""
    left = ["zoom in", "measure length", "track", "zoom out"][len(done) - 1 :]
    short_term = {"last_action": "CLICK", "last_target": target, "last_observation": f"{target} active"}
    return short_term, {"completed_subtasks": done, "remaining_subtasks": left}


def build_stock_trainer(rows: Sequence[dict[str, Any]], encoder: Any, **trainer: Any) -> Any:
    """Return TRL's own trainer and collator on the same steps, as prompt/completion rows."""
    from datasets import Dataset, Image
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    end = encoder.tokenizer.eos_token
    plain = [{"prompt": r["prompt"], "completion": r["completion"] + end, "images": [r["image"]]} for r in rows]
    return SFTTrainer(
        train_dataset=Dataset.from_list(plain).cast_column("images", [Image()]),
        data_collator=DataCollatorForVisionLanguageModeling(encoder.processor, completion_only_loss=True),
        processing_class=encoder.processor,
        **trainer,
    )


def build_our_trainer(rows: Sequence[dict[str, Any]], encoder: Any, pack_sampler: Any, **trainer: Any) -> Any:
    """Return our trainer: packed by the sampler, or padded where there is none."""
    from datasets import Dataset

    from sft.batches.collator import PackingCollator, PaddingCollator
    from sft.trainer import TrajectoryTrainer

    collator = PackingCollator(encoder) if pack_sampler else PaddingCollator(encoder)
    return TrajectoryTrainer(
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=encoder.processor,
        pack_sampler=pack_sampler,
        **{"data_collator": collator, **trainer},
    )


def build_pack_sampler(rows: Sequence[dict[str, Any]], tokens_per_batch: int) -> Any:
    """Return the sampler that packs the rows."""
    from datasets import Dataset

    from sft.batches.examples import read_step_sizes
    from sft.batches.sampler import PackSampler

    return PackSampler(read_step_sizes(Dataset.from_list(list(rows))), tokens_per_batch, seed=0)


def build_cpu_arguments(folder: str, n_steps: int, micro_batch: int, accumulation: int, **settings: Any) -> Any:
    """Return TRL's configuration of a run of `n_steps` optimiser steps in fp32 on the CPU, without checkpointing."""
    from trl import SFTConfig

    fixed = {
        "output_dir": f"{folder}/out",
        "max_steps": n_steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_checkpointing": False,
        "learning_rate": 1e-4,
        "use_cpu": True,
        "bf16": False,
        "max_length": None,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return SFTConfig(**{**fixed, **settings})


def load_model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
