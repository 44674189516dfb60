"""Tasks and steps as the rest of the package sees them. Knows nothing of files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.actions import Action
from sft.answers import Answer
from sft.data.cells import Grounding


@dataclass(frozen=True)
class Step:
    """One recorded step; `index` is 0-based in its task. `gold` and `grounding` are labels and reach no prompt.

    Nor does `also_right`: the actions that are right beside that of `gold`. `image_sha256` is the screenshot's as it
    was when it was checked.
    """

    task_id: str
    index: int
    row: int
    image_path: Path
    image_id: str
    gold: Answer
    grounding: Grounding
    image_sha256: str = ""
    elements: tuple[Mapping[str, Any], ...] = ()
    also_right: tuple[Action, ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """One task: a goal and its steps in order. `group` is a free label by which results are also scored separately."""

    task_id: str
    instruction: str
    application: str
    group: str
    steps: tuple[Step, ...] = field(repr=False)

    @property
    def golds(self) -> list[Answer]:
        """The right answers, in order."""
        return [step.gold for step in self.steps]

    @property
    def applications(self) -> set[str]:
        """Every application that the task or one of its steps names; `application` is what it is counted under."""
        return {self.application, *(step.grounding.application for step in self.steps)} - {""}
