"""Prove of tasks that their recorded actions reach their goals in the clinic, and the goals of no other patient.

    python -m demo.clinic.prove [--data demo/data/test.csv] [--only NAME_PART] [--per_workflow N]

For each task: the goal is not reached before, every action can be carried out, the goal is reached after, and the
checks of the same workflow's tasks of other patients say that theirs is not. Prints a line a task; ends with 1 if one
fails.
"""

import argparse
import io
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from demo.clinic.environment import Clinic
from demo.clinic.tasks import ClinicTask, load_tasks
from eval.environments.environment import EnvironmentFailure, Observation
from sft.data.load import load_trajectories
from sft.data.steps import Trajectory


def replay(clinic: Clinic, task: Trajectory) -> list[Observation]:
    """Carry out the recorded actions but the last, COMPLETE; return what was seen, the first screen included.

    Raises:
        AssertionError: the goal is reached before them, or one cannot be carried out.
    """
    seen = [clinic.reset(task)]
    assert not clinic.verify().is_reached, "the goal is reached before the first action"
    for number, answer in enumerate(task.golds[:-1], 1):
        execution = clinic.step(answer.action)
        assert execution.outcome == "done", f"step {number}: {execution.outcome}: {execution.reason}"
        seen.append(execution.observation)
    return seen


def find_others(task_id: str) -> list[ClinicTask]:
    """List the tasks of the same workflow that are about other patients."""
    own = load_tasks()[task_id]
    same = [task for task in load_tasks().values() if task.workflow == own.workflow]
    return [task for task in same if _find_patient(task) != _find_patient(own)]


def compute_difference(screenshot: bytes, recorded: Path) -> float:
    """Return the mean difference of a screenshot from a recorded one, 0..255; 0 where they are the same file."""
    content = recorded.read_bytes()
    if content == screenshot:
        return 0.0
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float) for data in (screenshot, content)]
    return float(abs(pixels[0] - pixels[1]).mean())


def _find_patient(task: ClinicTask) -> str:
    if task.program == "ohif":
        return task.case.study
    return (task.case.get("s") or task.case["r"]).patient_id


def _prove(clinic: Clinic, task: Trajectory) -> str:
    seen = replay(clinic, task)
    verdict = clinic.verify()
    assert verdict.is_reached, f"after the recorded actions: {verdict.reason}"
    others = find_others(task.task_id)
    wrong = [other.task_id for other in others if clinic.judge_as(other).is_reached]
    assert not wrong, f"the goals of other patients count as reached: {wrong}"
    assert not clinic.outside_requests, clinic.outside_requests
    differences = [compute_difference(one.screenshot, step.image_path) for one, step in zip(seen, task.steps)]
    n_equal = sum(difference == 0 for difference in differences)
    first = "the same file" if differences[0] == 0 else f"differs by {differences[0]:.2f}"
    return f"proved; {len(others)} others not; first screen {first}, {n_equal} of {len(seen)} screens the same files"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("demo/data/test.csv"))
    parser.add_argument("--only", default="", metavar="NAME_PART", help="tasks whose id holds this")
    parser.add_argument("--per_workflow", type=int, default=1_000, metavar="N", help="the first N tasks of each")
    args = parser.parse_args()
    failed = []
    chosen = list(_choose(load_trajectories(args.data, show_progress=False), args.only, args.per_workflow))
    clinic = Clinic()
    try:
        for number, task in enumerate(chosen, 1):
            try:
                result = _prove(clinic, task)
            except (AssertionError, EnvironmentFailure) as error:
                failed.append(task.task_id)
                result = f"FAILED: {error}"
            print(f"{number}/{len(chosen)} {task.task_id} {result}", flush=True)
    finally:
        clinic.close()
    print(f"{len(chosen) - len(failed)} proved, {len(failed)} failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


def _choose(tasks: Iterable[Trajectory], part: str, per_workflow: int) -> Iterable[Trajectory]:
    counts: Counter[str] = Counter()
    for task in tasks:
        workflow = load_tasks()[task.task_id].workflow
        counts[workflow] += 1
        if part in task.task_id and counts[workflow] <= per_workflow:
            yield task


if __name__ == "__main__":
    main()
