"""One rollout in one folder: resumes where it stopped, appends every step, ends in one order. Knows no metrics."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from eval.rollouts.run_info import RunInfo, close_run, open_run, read_earlier, read_run
from eval.scoring.matching import cut_at_first_error, judge
from eval.step_result import StepResult, append_result, format_result, load_results
from sft.agent import AgentConfig
from sft.data.load import Trajectory
from sft.errors import UserError
from sft.files import claim_folder, read_folder, refuse_foreign, write_whole

if TYPE_CHECKING:
    from eval.policies.policy import Policy

# What a rollout writes, `run.json` before all else.
WRITTEN = ("steps.jsonl", "predictions.csv", "metrics.json", "details.json", "report.html")


@contextmanager
def claim_folders(infos: Mapping[Path, RunInfo], written: Sequence[str] = WRITTEN) -> Iterator[None]:
    """Keep the folders of a rollout for this process; all are looked at before anything is written into one.

    Nobody may train into those of its model meanwhile.

    Raises:
        UserError: a folder holds a rollout of something else, or another process is rolling out into it; or a training
            is writing the model.
    """
    for folder, info in infos.items():
        read_earlier(folder, info)
        refuse_foreign(folder, written, "run.json")
    models = {Path(path).resolve() for info in infos.values() for path in (info.model_path, info.base_model) if path}
    with ExitStack() as stack:
        for model in models - {folder.resolve() for folder in infos}:
            stack.enter_context(read_folder(model))
        for folder in infos:
            stack.enter_context(claim_folder(folder, "rolls out into this folder"))
        yield


def run_tasks(
    folder: Path,
    info: RunInfo,
    trajectories: Sequence[Trajectory],
    agent: AgentConfig,
    batch_size: int,
    build_policy: Callable[[], "Policy"],
) -> tuple[list[StepResult], RunInfo]:
    """Answer every step that has no result yet, appending each to `steps.jsonl`; the policy is built only then.

    Mode "own_stop" answers what mode "own" does; each task is cut at its first error when all are answered.

    Returns:
        All results, tasks and steps in the order of the data, and what the finished run's `run.json` holds.

    Raises:
        UserError: the folder holds a rollout of something else.
    """
    info = open_run(folder, info)
    path = folder / "steps.jsonl"
    cut_last_line(path)
    results = list(load_results(path)) if path.is_file() else []
    n_steps = sum(len(t.steps) for t in trajectories)
    if len(results) < n_steps:
        from eval.rollouts.walk import Mode, walk_tasks

        mode: Mode = "teacher" if info.mode == "teacher" else "own"
        done: dict[str, list[StepResult]] = defaultdict(list)
        for result in results:
            done[result.task_id].append(result)
        walk = walk_tasks(trajectories, build_policy(), agent, mode, batch_size, done)
        with path.open("a", encoding="utf-8") as file:
            for result in tqdm(
                walk, desc=f"Rolling out ({info.mode})", unit="step", total=n_steps, initial=len(results)
            ):
                append_result(file, result)
                results.append(result)
    if info.mode == "own_stop":  # a view of mode own
        results = cut_at_first_error(judge(results, agent.actions))
    ordered = write_in_order(path, results, trajectories)
    return ordered, close_run(folder, info)


def load_run(folder: Path) -> tuple[list[StepResult], RunInfo]:
    """Read the results and the `run.json` of a rollout's folder.

    Raises:
        UserError: a file is missing or is not what the rollout wrote.
    """
    info, steps = read_run(folder), folder / "steps.jsonl"
    if info.environment is not None:
        raise UserError(
            f"{folder}: found a live run, in which a program was operated; expected a rollout of recorded steps. The "
            "command that made a live run scores it again, without carrying a finished task out again"
        )
    if not steps.is_file():
        raise UserError(f"{steps}: found no such file; expected the --output_dir of a rollout")
    return list(load_results(steps)), info


def write_in_order(path: Path, results: Sequence[StepResult], trajectories: Sequence[Trajectory]) -> list[StepResult]:
    """Bring a finished `steps.jsonl` into the order of the data, which no interruption changes; return the results."""
    order = {t.task_id: i for i, t in enumerate(trajectories)}
    ordered = sorted(results, key=lambda r: (order[r.task_id], r.index))
    write_whole(path, "".join(map(format_result, ordered)))
    return ordered


def cut_last_line(path: Path) -> None:
    """Remove a last line that a kill left half-written."""
    if path.is_file():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)  # in place: a kill now must not cost the lines before it
