"""Steps a second of a rollout with the 8B's shapes: a batch of 16, 1920x1080, an adapter on the 4-bit base.

python -m benchmarks.gpu.rollout BASE --json FILE     # BASE: a folder of benchmarks.gpu.base_8b

The product loads base and adapter and walks the tasks. Random weights hardly ever end an answer, so that each has the
64 tokens that it may have, about as many as the demonstration's answers; the memory shown is the recording's. The
first batch is not timed.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.base_8b import random_weights
from benchmarks.gpu.recipe import TINY_SCREEN_WH, build_arguments, describe_gpu
from benchmarks.gpu.tasks import write_tasks
from benchmarks.machine import publish

N_TASKS, STEPS_A_TASK, BATCH_SIZE = 32, 3, 16
ANSWER_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to test this program")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, random_weights():
        row = measure(arguments.base, Path(folder), arguments.tiny)
    publish("Rollout", [row], describe_gpu(), arguments.json)


def measure(base: Path, folder: Path, is_tiny: bool) -> dict[str, Any]:
    """Roll out and return the speed of all batches but the first."""
    import torch

    from eval.predictor import load_model_for_inference
    from eval.rollouts.walk import walk_tasks
    from sft.data.load import load_trajectories

    screen_wh = TINY_SCREEN_WH if is_tiny else (1920, 1080)
    csv_path = write_tasks(folder, screen_wh, N_TASKS, STEPS_A_TASK, steps_a_screenshot=8)
    write_adapter(base, folder / "adapter", csv_path, is_tiny)
    predictor = load_model_for_inference(folder / "adapter", str(base))
    policy = _TimedPolicy(predictor.policy)
    tasks = load_trajectories(csv_path, show_progress=False)
    n_steps = sum(1 for _ in walk_tasks(tasks, policy, predictor.agent, "teacher", BATCH_SIZE))
    timed = policy.batches[1:]
    n_answered, n_tokens, seconds = (sum(column) for column in zip(*timed))
    return {
        "batch_size": BATCH_SIZE,
        "steps": n_steps,
        "steps_a_s": n_answered / seconds,
        "answer_tokens_a_step": n_tokens / n_answered,
        "median_s_a_batch": sorted(batch[2] for batch in timed)[len(timed) // 2],
        "first_batch_s": policy.batches[0][2],
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
    }


class _TimedPolicy:
    """A policy whose batches are timed: steps, answer tokens and seconds of each."""

    def __init__(self, policy: Any):
        self.policy, self.batches = policy, list[tuple[int, int, float]]()

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        from benchmarks.clocks import read_clock

        started = read_clock()
        answers = self.policy.answer(requests)
        n_tokens = sum(answer.n_answer_tokens for answer in answers)
        self.batches.append((len(answers), n_tokens, read_clock() - started))
        return answers


def write_adapter(base: Path, folder: Path, csv_path: Path, is_tiny: bool) -> None:
    """Write what a training with the recipe leaves, with random adapter weights."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file

    from sft.models.model import build_empty_model, build_lora_config, find_family
    from sft.models.model_folder import ADAPTER_FILE
    from sft.recipe.recipe import parse_recipe

    limit = 8 if is_tiny else ANSWER_TOKENS
    recipe = parse_recipe(build_arguments(base, csv_path, folder, is_tiny, max_answer_tokens=limit))
    config = build_lora_config(recipe.model, find_family(str(base)))
    tensors = get_peft_model_state_dict(get_peft_model(build_empty_model(recipe.model), config))
    folder.mkdir()
    config.save_pretrained(folder)
    save_file({name: 0.01 * torch.randn(tensor.shape) for name, tensor in tensors.items()}, folder / ADAPTER_FILE)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (folder / "agent_config.json").write_text(json.dumps(asdict(recipe.agent)), encoding="utf-8")


if __name__ == "__main__":
    main()
