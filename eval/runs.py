"""One rollout in one folder: goes on where it stopped, appends every step, ends in one order. Knows no metrics."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from eval.manifest import close_run, open_run
from eval.results import StepResult, append_result, format_result, load_results
from eval.writers import write_text
from sft.prompts import AgentConfig
from sft.trajectory import Trajectory

if TYPE_CHECKING:
    from eval.policy import Policy
    from eval.walk import Mode


def run_tasks(
    folder: Path,
    info: dict[str, Any],
    trajectories: Sequence[Trajectory],
    agent: AgentConfig,
    mode: "Mode",
    batch_size: int,
    build_policy: Callable[[], "Policy"],
) -> tuple[list[StepResult], dict[str, Any]]:
    """Answer every step that has no result yet, appending each to `steps.jsonl`; the policy is built only then.

    Returns:
        All results, tasks and steps in the order of the data, and the finished run's `run.json`.

    Raises:
        UserError: the folder holds a rollout of something else.
    """
    info = open_run(folder, info)
    path = folder / "steps.jsonl"
    cut_last_line(path)
    results = list(load_results(path)) if path.is_file() else []
    n_steps = sum(len(t.steps) for t in trajectories)
    if len(results) < n_steps:
        from eval.walk import walk_tasks

        done: dict[str, list[StepResult]] = defaultdict(list)
        for result in results:
            done[result.task_id].append(result)
        walk = walk_tasks(trajectories, build_policy(), agent, mode, batch_size, done)
        with path.open("a", encoding="utf-8") as file:
            for result in tqdm(walk, desc=f"Rolling out ({mode})", unit="step", total=n_steps, initial=len(results)):
                append_result(file, result)
                results.append(result)
    ordered = write_in_order(path, results, trajectories)
    return ordered, close_run(folder, info)


def write_in_order(path: Path, results: Sequence[StepResult], trajectories: Sequence[Trajectory]) -> list[StepResult]:
    """Bring a finished `steps.jsonl` into the order of the data, which no interruption changes; return the results."""
    order = {t.task_id: i for i, t in enumerate(trajectories)}
    ordered = sorted(results, key=lambda r: (order[r.task_id], r.index))
    write_text(path, "".join(map(format_result, ordered)))
    return ordered


def cut_last_line(path: Path) -> None:
    """Remove a last line that a kill left half-written."""
    if path.is_file():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            path.write_bytes(whole)
