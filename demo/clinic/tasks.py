"""The tasks of the clinic: which workflow, with which parameters, and the goal that asks for it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from demo.clinic import ohif_cases, ohif_goals, orthanc_cases

Program = Literal["orthanc", "ohif"]
APPLICATIONS: dict[Program, str] = {"orthanc": "Orthanc Explorer", "ohif": "OHIF Viewer"}
# Recorded tasks whose recorded actions do not reach their goal, and why: no agent is asked to carry them out.
LEFT_OUT = {
    "ohif_measure_two_03": "the recorded ZOOM begins on a measurement: it moves that, and does not zoom the image",
}
ORTHANC_GOALS = Path(__file__).with_name("orthanc_goals.txt")


@dataclass(frozen=True)
class ClinicTask:
    """One task. `case` holds the parameters of its workflow: a dictionary (Orthanc) or a `Case` (OHIF)."""

    task_id: str
    program: Program
    workflow: str
    goal: str
    case: Any


@cache
def load_tasks() -> dict[str, ClinicTask]:
    """Make every task, by id; case i of a workflow is worded by wording i (modulo the number of wordings).

    Raises:
        ValueError: two tasks would have the same goal.
    """
    wordings = load_wordings(ORTHANC_GOALS)
    tasks = []
    for workflow, cases in orthanc_cases.CASES.items():
        for number, case in enumerate(cases):
            goal = wordings[workflow][number % len(wordings[workflow])].format(**_choose_words(case))
            tasks.append(ClinicTask(f"orthanc-{workflow}-{number + 1:02d}", "orthanc", workflow, goal, case))
    for workflow, cases in ohif_cases.CASES.items():
        for number, case in enumerate(cases):
            goal = ohif_goals.format_goal(workflow, number, case.slots())
            tasks.append(ClinicTask(f"ohif_{workflow}_{number + 1:02d}", "ohif", workflow, goal, case))
    goals = [task.goal for task in tasks]
    if twice := {goal for goal in goals if goals.count(goal) > 1}:
        raise ValueError(f"{len(twice)} goals are used twice, for example {sorted(twice)[0]!r}")
    return {task.task_id: task for task in tasks}


def load_wordings(path: Path) -> dict[str, list[str]]:
    """Load goal wordings: a [workflow] line, then one wording a line."""
    wordings: dict[str, list[str]] = {}
    for line in filter(None, path.read_text(encoding="utf-8").splitlines()):
        if line.startswith("["):
            section = wordings.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            section.append(line)
    return wordings


def _choose_words(case: dict[str, Any]) -> dict[str, Any]:
    """Turn the parameters that a goal does not quote as they are into its words."""
    words = dict(case)
    if "tag" in case:
        words["tag"] = f"{case['tag']} ({orthanc_cases.TAGS[case['tag']]})"
    if "field" in case:
        words["field"] = case["field"].lower()
    if "lookup" in case:
        named = [f'{name.replace("_id", " ID").replace("_", " ")} "{text}"' for name, text in case["lookup"].items()]
        words["fields"] = " and ".join(named)
    return words
