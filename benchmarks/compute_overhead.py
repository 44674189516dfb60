"""What the compute ledger costs a training step: the time spent in it, as a share of the time of the steps.

python -m benchmarks.compute_overhead [RECIPE.yaml] [--steps 200]

Trains the demo for a few steps with the ledger's every entry timed: counting each batch, handing figures over at each
log, and the processor time of the thread that reports and measures energy, its start included. Not among them: the one
batch of a run whose operations are counted as they run.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

spent_s: dict[str, float] = defaultdict(float)


def timed(name: str, function: Callable[..., Any], clock: Callable[[], float]) -> Callable[..., Any]:
    """Return a function that adds up what each of its calls takes."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        started = clock()
        try:
            return function(*args, **kwargs)
        finally:
            spent_s[name] += clock() - started

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="recipes/demo.yaml", help="[recipes/demo.yaml]")
    parser.add_argument("--steps", type=int, default=200, help="[200]")
    arguments = parser.parse_args()
    from sft import run
    from sft.compute.ledger import load_runs
    from sft.compute.recorder import RunRecorder
    from sft.compute.step_meter import StepMeter, _Counts

    for owner, name in ((_Counts, "add"), (StepMeter, "on_step_end"), (StepMeter, "on_log")):
        setattr(owner, name, timed(name, getattr(owner, name), time.perf_counter))
    RunRecorder._report = timed("report thread", RunRecorder._report, time.thread_time)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--max_steps", str(arguments.steps), "--output_dir", folder, "--eval_strategy", "no"]
        options += ["--save_strategy", "no", "--load_best_model_at_end", "false", "--report_to", "none"]
        run.main([arguments.recipe, *options])
        (record,) = load_runs(Path(folder))
    busy_s = record.figures["busy_s"]
    for name, seconds in spent_s.items():
        print(f"{name:<16} {1000 * seconds / arguments.steps:9.3f} ms a step {100 * seconds / busy_s:8.3f} %")
    share = 100 * sum(spent_s.values()) / busy_s
    print(f"{'all':<16} {1000 * sum(spent_s.values()) / arguments.steps:9.3f} ms a step {share:8.3f} %")
    print(f"steps: {arguments.steps} of {1000 * busy_s / arguments.steps:.0f} ms")


if __name__ == "__main__":
    main()
