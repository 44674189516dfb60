"""What is to be said of a step, beside it? Its problems, and what a person should look at. Reads no file."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sft.actions import POINT, carries_point
from sft.agent import AgentConfig
from sft.batches.examples import Example
from sft.check.notices import BOX_DOUBTS
from sft.data.boxes import find_doubts
from sft.data.hints import find_personal_data
from sft.data.load import TaskSet
from sft.data.problems import Problem
from sft.data.steps import Step
from sft.data.table import Cells

Level = Literal["problem", "warning"]


@dataclass(frozen=True)
class Note:
    """One thing to be said; `kind` is the word by which notes are filtered."""

    level: Level
    kind: str
    text: str


@dataclass(frozen=True)
class Notes:
    """Notes by the row that they are about, and those about a whole task by its id."""

    by_row: Mapping[int, Sequence[Note]] = field(default_factory=dict)
    by_task: Mapping[str, Sequence[Note]] = field(default_factory=dict)


def collect_notes(
    tasks: TaskSet | None,
    cells_of: Mapping[int, Cells],
    examples: Sequence[Example],
    agent: AgentConfig,
    report: Mapping[str, Any],
    problems: Iterable[Problem],
) -> Notes:
    """Gather what is said of the steps of a file: `problems`, and the warnings of every usable step.

    `tasks` is None where no task can be used.
    """
    by_row: dict[int, list[Note]] = defaultdict(list)
    by_task: dict[str, list[Note]] = defaultdict(list)
    for problem in problems:
        said = f"{problem.column}: {problem.message}" if problem.column else problem.message
        note = Note("problem", problem.column or "file", said)
        if problem.row is not None:
            by_row[problem.row].append(note)
        elif problem.task_id is not None:
            by_task[problem.task_id].append(note)
    if tasks is None:
        return Notes(by_row, by_task)
    steps = [example.step for example in examples]
    for row, kind, text in (
        *(entry for example in examples for entry in _doubt_example(example, tasks, agent)),
        *_find_other_labels(steps),
        *_list_from_report(report),
        *_find_personal_data(steps, cells_of),
    ):
        by_row[row].append(Note("warning", kind, text))
    for group in report["duplicate_goals"]:
        for task_id in group["tasks"]:
            others = [other for other in group["tasks"] if other != task_id]
            more = ", ..." if len(others) > 5 else ""
            text = f"task {', '.join(others[:5])}{more} has the same goal"
            by_task[task_id].append(Note("warning", "same goal", text))
    return Notes(by_row, by_task)


def _doubt_example(example: Example, tasks: TaskSet, agent: AgentConfig) -> Iterator[tuple[int, str, str]]:
    step = example.step
    facts, grounding = tasks.screenshots[step.image_path], step.grounding
    for doubt in find_doubts(grounding.bbox, grounding.screen_wh, facts.width_height):
        what, advice = BOX_DOUBTS[doubt]
        yield step.row, "box", f"{what}: {advice}"
    if carries_point(step.gold.action.kind, agent.actions) and read_point(example) is None:
        yield step.row, "point", "the answer has no point: Grounding has no box"
    if facts.note:
        yield step.row, "screenshot", facts.note
    if agent.writes_memory and (step.gold.short_term is None or step.gold.long_term is None):
        yield step.row, "memory", "Output carries no memory, or only a part of it"
    if example.is_shortened:
        yield step.row, "memory", "the memory is shortened, or the prompt would be too long"
    if example.n_left_out:
        yield step.row, "elements", f"the prompt leaves out {example.n_left_out} elements"
    is_last = step.index == example.n_steps - 1
    if is_last and not any(a.is_final and a.name == step.gold.action.kind for a in agent.actions):
        yield step.row, "end", "the task ends here, without a final action"


def read_point(example: Example) -> list[float] | None:
    """Return the point that an answer is trained to give: [x, y] in thousandths of the screenshot's sides."""
    point = json.loads(example.completion).get(POINT)
    return point if isinstance(point, list) else None


def _find_other_labels(steps: Sequence[Step]) -> Iterator[tuple[int, str, str]]:
    """Yield rows that contradict others on the same screenshot: a box with two targets, a target at two places."""
    labelled = [s for s in steps if s.grounding.bbox is not None and s.gold.action.target]
    for kind, said in (("label", "{found!r} for this box"), ("place", "{found!r} elsewhere")):
        groups: dict[Any, dict[Any, list[Step]]] = defaultdict(lambda: defaultdict(list))
        for step in labelled:
            target, box = step.gold.action.target.casefold(), step.grounding.bbox
            key, value = (box, target) if kind == "label" else (target, box)
            groups[step.image_sha256, key][value].append(step)
        for values in groups.values():
            most = sorted(values.values(), key=len, reverse=True)[:2]  # what most rows have is likely right
            for own in values.values() if len(most) == 2 else ():
                others = most[1] if own is most[0] else most[0]
                more = f" and {len(others) - 1} more have" if len(others) > 1 else " has"
                text = f"row {others[0].row}{more} {said.format(found=others[0].gold.action.target)}"
                yield from ((step.row, kind, f"on this screenshot {text}") for step in own)


def _list_from_report(report: Mapping[str, Any]) -> Iterator[tuple[int, str, str]]:
    for gap in report["step_number_gaps"]:
        yield gap["row"], "step number", f"Slide_number {gap['found']}; expected {gap['expected']}: steps were lost"
    for hit in report["hidden_characters"]:
        yield hit["row"], "hidden character", f"{hit['column']} holds {hit['character']}, which nobody sees"


def _find_personal_data(steps: Sequence[Step], cells_of: Mapping[int, Cells]) -> Iterator[tuple[int, str, str]]:
    for step in steps:
        for hint in find_personal_data([step], cells_of):
            shown = ", ".join(example["text"] for example in hint["examples"][:3])
            yield step.row, "personal data", f"{hint['column']} holds a {hint['kind']} ({shown}): personal data?"
