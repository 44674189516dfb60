"""The rollout on validation tasks by which a training chooses its best checkpoint."""

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from eval.policies.hf import ModelPolicy
from eval.rollouts.walk import walk_tasks
from eval.scoring.matching import judge
from sft.data.load import Trajectory
from sft.models.merged_adapter import merge_adapter
from sft.recipe.launch import read_launch
from sft.recipe.recipe import Recipe, resolves_to_bf16

if TYPE_CHECKING:
    from sft.batches.encoder import StepEncoder

log = logging.getLogger("sft")


def build_validation_rollout(
    recipe: Recipe, tasks: list[Trajectory], encoder: "StepEncoder"
) -> Callable[[Any], dict[str, float]] | None:
    """Return what rolls the model out on validation tasks with its own memory and scores it, or None.

    Processes share the tasks out and all return the same scores. Under ZeRO-3, where each token takes all of them,
    every process walks every task.
    """
    n_chosen = min(recipe.validation.val_rollout_tasks, len(tasks))
    chosen = [tasks[i * len(tasks) // n_chosen] for i in range(n_chosen)]  # spread over the order, hence applications
    if not chosen:
        return None
    process = PartialState()
    share = (
        chosen if read_launch(os.environ).engine == "zero3" else chosen[process.process_index :: process.num_processes]
    )

    is_fp32 = not (resolves_to_bf16(recipe.training) or recipe.training.get("fp16"))

    def roll_out(model: Any) -> dict[str, float]:
        policy = ModelPolicy(model, encoder)
        restore = merge_adapter(model) if is_fp32 else None
        try:
            results = list(walk_tasks(share, policy, recipe.agent, "own", recipe.validation.val_rollout_batch_size))
        finally:
            if restore is not None:
                restore()
        if errors := [result.error for result in results if result.error is not None]:
            log.warning(
                "validation rollout: %d of %d steps are errors; first: %s", len(errors), len(results), errors[0]
            )
        verdicts = [v for task in judge(results, recipe.agent.actions).values() for v in task]
        n_right = [sum(v.is_right(name) for v in verdicts) for name in ("action", "action_target")]
        counts = reduce(torch.tensor([*n_right, len(results)], device=process.device), "sum")
        right, right_target, n_steps = counts.tolist()
        return {"swa": right / n_steps, "swa_target": right_target / n_steps}

    return roll_out
