"""The rollout on validation tasks by which a training chooses its best checkpoint."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from eval.policies.hf import ModelPolicy
from eval.rollouts.walk import walk_tasks
from eval.scoring.bootstrap import Bootstrap, Rates
from eval.scoring.matching import Verdict, judge
from sft.data.load import Trajectory
from sft.models.merged_adapter import merge_adapter
from sft.recipe.launch import read_launch
from sft.recipe.recipe import Recipe, resolves_to_bf16

if TYPE_CHECKING:
    from sft.batches.encoder import StepEncoder

log = logging.getLogger("sft")

T = TypeVar("T")


def build_validation_rollout(
    recipe: Recipe, tasks: list[Trajectory], encoder: "StepEncoder"
) -> Callable[[Any], dict[str, float]] | None:
    """Return what rolls the model out on validation tasks with its own memory and scores it, or None.

    Processes share the tasks out and all return the same scores. Under ZeRO-3, where each token takes all of them,
    every process walks every task.
    """
    chosen = choose_tasks(tasks, recipe.validation.val_rollout_tasks)
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
        judged = judge(results, recipe.agent.actions)
        counts = [(task_id, len(task), *count_right(task)) for task_id, task in judged.items()]
        if share is not chosen:
            counts = gather_object(counts)
        return compute_scores(counts)

    return roll_out


def choose_tasks(tasks: Sequence[T], n_most: int) -> list[T]:
    """Return at most so many tasks, spread over the order of the data and hence over its applications."""
    n_chosen = min(n_most, len(tasks))
    return [tasks[i * len(tasks) // n_chosen] for i in range(n_chosen)]


def count_right(task: Sequence[Verdict]) -> tuple[int, int]:
    """Return how many steps of a task are right by action, and by action and target."""
    return sum(v.is_right("action") for v in task), sum(v.is_right("action_target") for v in task)


def compute_scores(counts: Sequence[tuple[str, int, int, int]]) -> dict[str, float]:
    """Return SWA by action, and by action and target, with the bounds of their 95 % intervals.

    `counts` has of each task its id, steps, and steps right under either rule; their order does not matter.
    """
    _, n_steps, *n_right = zip(*sorted(counts))
    rates = Rates({"steps": n_steps, "swa": n_right[0], "swa_target": n_right[1]}, Bootstrap())
    scores: dict[str, float] = {}
    for name in ("swa", "swa_target"):
        rate = rates.compute(name, of="steps")
        assert rate is not None, "a task has steps"
        scores |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return scores
