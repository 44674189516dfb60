"""Rollout speed: steps a second at several batch sizes against the obvious loop, with the same answers.

python benchmarks/rollout_throughput.py --model_path outputs/demo --test_csv demo/data/test.csv [--json FILE]

The obvious loop takes one task after the other, one step after the other, and calls the model's own `generate`. Both
carry the memory the model writes. Answers are compared step by step: what was read from each, and the memory after it.
The loop runs the model as PEFT and bitsandbytes load it. Loop and batch sizes take turns, and the median of each is
reported: a machine is not equally fast all the time. Then each saving is switched off alone, once, at batch size 16.
`tokens_a_call` are the tokens that one call of the model gives to an answer; `n_shown` are the screenshots of all
batches, each once a batch, and `n_shown_before` those that an earlier batch has had.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from eval.step_result import StepResult
from sft.agent import AgentConfig
from sft.data.load import Trajectory, load_trajectories
from sft.versions import read_versions

BATCH_SIZES = (1, 4, 16, 64)
SAVINGS = ("guessed answers", "kept screenshots", "merged adapter", "own layers", "asked tokens alone")
SAVINGS_BATCH_SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default="outputs/demo", help="trained model [outputs/demo]")
    parser.add_argument("--agent_config", help="agent_config.json [the one in --model_path]")
    parser.add_argument("--test_csv", default="demo/data/test.csv", help="trajectory CSV [demo/data/test.csv]")
    parser.add_argument("--max_tasks", type=int, default=64, help="tasks for the batched runs [64]")
    parser.add_argument("--loop_tasks", type=int, default=8, help="of these, the tasks for the obvious loop [8]")
    parser.add_argument("--turns", type=int, default=3, help="runs of each, in turns [3]")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    import torch

    import eval.policies.hf
    import eval.predictor
    from benchmarks.counted_stores import CountedAnswers, CountedPrefixes
    from benchmarks.obvious_loop import ObviousLoop
    from eval.policies.hf import ModelPolicy
    from sft.models.merged_adapter import merge_adapter

    to_merge: list[torch.nn.Module] = []
    eval.predictor.merge_adapter = to_merge.append  # it is merged below, and where it is not, the loader says so
    predictor = eval.predictor.load_model_for_inference(arguments.model_path, agent_config=arguments.agent_config)
    tasks = load_trajectories(
        arguments.test_csv,
        actions=predictor.agent.actions,
        task_end=arguments.max_tasks,
        needs_elements=predictor.agent.use_grounding,
    )
    few = tasks[: arguments.loop_tasks]
    model, encoder = predictor.policy.model, predictor.policy.encoder

    def run_loop() -> tuple[dict[tuple[str, int], Any], float]:
        with stock_layers(model):
            time_rollout(few[:1], ObviousLoop(predictor.policy), predictor.agent, 1)  # warm-up
            return time_rollout(few, ObviousLoop(predictor.policy), predictor.agent, 1)

    def measure(batch_size: int, without: str | None = None) -> dict[str, Any]:
        policy = ModelPolicy(model, encoder)  # no screenshot prepared yet, and nothing guessed from
        policy._store, policy._prefixes = answers, prefixes = CountedAnswers(), CountedPrefixes()
        answers.guesses = without != "guessed answers"
        if without == "kept screenshots":
            prefixes.capacity = 0
        with ExitStack() as stack:
            if without == "own layers":
                stack.enter_context(stock_layers(model))
            if without == "asked tokens alone":
                stack.enter_context(patch.object(eval.policies.hf, "asked_alone", lambda _: nullcontext()))
            if to_merge and without != "merged adapter":
                stack.callback(merge_adapter(model))
            results, rate = time_rollout(few if batch_size == 1 else tasks, policy, predictor.agent, batch_size)
        return {
            "batch_size": batch_size,
            "steps_per_s": rate,
            "n_compared": len(expected),
            "n_same": sum(results[key] == answer for key, answer in expected.items()),
            "tokens_a_call": answers.n_tokens / answers.n_calls,
            "n_shown": prefixes.n_shown,
            "n_shown_before": prefixes.n_shown_before,
        }

    loops, turns = [], []
    for _ in range(arguments.turns):
        expected, rate = run_loop()
        loops.append(rate)
        turns.append([measure(batch_size) for batch_size in BATCH_SIZES])
    loop_rate = median(loops)
    rows = [take_median(runs) for runs in zip(*turns)]
    savings = [{"without": without, **measure(SAVINGS_BATCH_SIZE, without)} for without in SAVINGS]
    for row in [*rows, *savings]:
        row["ratio"] = row["steps_per_s"] / loop_rate
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print_table([*rows, *savings], loop_rate)
    packages = ", ".join(f"{name} {version}" for name, version in read_versions().items())
    print(f"{len(tasks)} tasks, {len(few)} of them by the obvious loop and at batch size 1; {device}; {packages}")
    if arguments.json:
        content: dict[str, Any] = {
            "loop_steps_per_s": loop_rate,
            "loop_steps_per_s_in_turns": loops,
            "n_tasks": len(tasks),
            "rows": rows,
            "savings": savings,
        }
        content |= {"device": device, "versions": read_versions()}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if any(row["n_same"] < row["n_compared"] for row in [*rows, *savings]):
        sys.exit("The answers are not those of the obvious loop.")


def take_median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one row for the runs of one batch size; answers that differ in any run count as different."""
    rates = [run["steps_per_s"] for run in runs]
    n_same = min(run["n_same"] for run in runs)
    return {**runs[0], "n_same": n_same, "steps_per_s": median(rates), "steps_per_s_in_turns": rates}


@contextmanager
def stock_layers(model: Any) -> Iterator[None]:
    """Let the layers compute as PEFT, bitsandbytes and transformers have them.

    4-bit weights are dequantised at every call, and attention repeats keys and values (`sft/models/kernels.py`).
    """
    from sft.models.dequantised import DequantisedLinear4bit
    from sft.models.fused_lora import FusedLoraLinear, FusedLoraLinear4bit
    from sft.models.kernels import SHARED_KEYS

    ours = (DequantisedLinear4bit, FusedLoraLinear, FusedLoraLinear4bit)
    changed = [module for module in model.modules() if isinstance(module, ours)]
    classes = [type(module) for module in changed]
    shares_keys = os.environ.pop(SHARED_KEYS, None)
    for module, own in zip(changed, classes):
        module.__class__ = own.__base__
    try:
        yield
    finally:
        for module, own in zip(changed, classes):
            module.__class__ = own
        if shares_keys is not None:
            os.environ[SHARED_KEYS] = shares_keys


def time_rollout(
    tasks: list[Trajectory], policy: Any, agent: AgentConfig, batch_size: int
) -> tuple[dict[tuple[str, int], Any], float]:
    """Roll out in mode own; return what each step came to, and the steps a second."""
    from eval.rollouts.walk import walk_tasks

    started = time.perf_counter()
    results: list[StepResult] = list(walk_tasks(tasks, policy, agent, "own", batch_size))
    rate = len(results) / (time.perf_counter() - started)
    return {(r.task_id, r.index): (r.predicted, r.memory_after) for r in results}, rate


def print_table(rows: list[dict[str, Any]], loop_rate: float) -> None:
    table = Table(
        "batch size", "steps/s", "times the loop", "same answers", "tokens a call", "screenshots seen before"
    )
    table.add_row("obvious loop", f"{loop_rate:.2f}", "1.0")
    for row in rows:
        same = f"{row['n_same']} of {row['n_compared']}"
        name = f"{row['batch_size']}, without {row['without']}" if "without" in row else str(row["batch_size"])
        seen = f"{row['n_shown_before']} of {row['n_shown']}"
        speed = f"{row['steps_per_s']:.2f}", f"{row['ratio']:.1f}"
        table.add_row(name, *speed, same, f"{row['tokens_a_call']:.1f}", seen)
    Console().print(table)


if __name__ == "__main__":
    main()
