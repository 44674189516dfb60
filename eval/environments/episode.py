"""One task carried out in a running program, and its line in `episodes.jsonl`. Knows no model and no metric."""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from io import RawIOBase
from pathlib import Path
from typing import Any, Literal, get_args

from eval.environments.environment import Outcome
from eval.step_result import parse_written_action, read_lines
from sft.actions import Action, format_action
from sft.errors import UserError
from sft.json_text import parse_json

# What became of a step: what the environment says of its action, or what kept one from being passed to it. "complete":
# the model said that the goal is reached, by the first final action of its agent; "given_up": it ended the task by
# another one, such as FAIL; "unreadable": no action, or none with a target; "unanswered": what answers failed (a
# prompt that is too long, a request that a server refused); "error": the program failed.
StepOutcome = Literal[Outcome, "complete", "given_up", "unreadable", "unanswered", "error"]
STEP_OUTCOMES: tuple[StepOutcome, ...] = (
    "done",
    "complete",
    "given_up",
    *get_args(Outcome)[1:],
    "unreadable",
    "unanswered",
    "error",
)

# How a task ended: COMPLETE was said, or another final action was; the budget of steps was used up; the program
# failed; the environment says that the task cannot be done there, so that nothing was tried.
Ending = Literal["complete", "given_up", "budget", "error", "left_out"]

# What a task counts as; each task that was tried is one of these.
Result = Literal["success", "silent_wrong_effect", "not_noticed", "given_up", "budget", "error"]
RESULTS: tuple[Result, ...] = get_args(Result)


@dataclass(frozen=True)
class LiveStep:
    """One step: the screen that was shown, the answer, what became of it, and whether the goal was reached then.

    `image_id` is the screen before the action, a path relative to the run's folder; `screen` its [width, height] and
    `point`, where the action was done, in its pixels. Memories, `parse_status` and `left_out` are those of a
    `StepResult`. `reason` says why an outcome is not "done", or what the environment tells besides, `verdict` why the
    goal is reached or not. `latency_s` is the time of the answer, `execution_s` that of the program.
    """

    index: int
    image_id: str
    description: str
    screen: list[int]
    memory_before: dict[str, Any]
    memory_after: dict[str, Any]
    raw_text: str
    parse_status: str
    parse_problem: str
    left_out: list[str]
    predicted: Action | None
    outcome: StepOutcome
    reason: str = ""
    point: list[float] | None = None
    is_reached: bool = False
    verdict: str = ""
    finish_reason: str = ""
    n_prompt_tokens: int = 0
    n_answer_tokens: int = 0
    latency_s: float = 0.0
    execution_s: float = 0.0
    said_elsewhere: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Episode:
    """One task, carried out. `n_recorded` is the number of recorded steps, the one that says COMPLETE included.

    `reason` says why it ended in an error or was left out. `last_image_id` is the screen after the last step, "" where
    there was none. `n_tries` counts how often it was begun: a task that `never_began` is tried again by the next run
    of the same command.
    """

    task_id: str
    application: str
    group: str
    instruction: str
    n_recorded: int
    ending: Ending
    steps: tuple[LiveStep, ...] = ()
    reason: str = ""
    last_image_id: str = ""
    n_tries: int = 1

    @property
    def never_began(self) -> bool:
        """Whether the program failed before the agent's first step: that says nothing of the agent."""
        return self.ending == "error" and not self.steps

    @property
    def reached_at(self) -> int | None:
        """How many steps it took until the goal was first reached; None where it never was."""
        return next((step.index + 1 for step in self.steps if step.is_reached), None)

    @property
    def is_left_again(self) -> bool:
        """Whether the goal was reached at a step, and was no longer at the last one; after an error nobody knows."""
        return self.ending != "error" and self.reached_at is not None and not self.steps[-1].is_reached

    @property
    def result(self) -> Result | None:
        """What it counts as; None where it was left out."""
        if self.ending == "left_out":
            return None
        if self.ending == "error":
            return "error"
        if self.ending == "complete":
            return "success" if self.steps[-1].is_reached else "silent_wrong_effect"
        if self.reached_at is not None:
            return "not_noticed"
        return "given_up" if self.ending == "given_up" else "budget"


def format_episode(episode: Episode) -> str:
    """Return the episode's line; ASCII holds half characters, and no kill can cut one in two."""
    values = asdict(episode)
    for written, step in zip(values["steps"], episode.steps, strict=True):
        written["predicted"] = format_action(step.predicted) if step.predicted else None
    return json.dumps(values) + "\n"


def parse_episode(line: str) -> Episode:
    """Read the line that `format_episode` wrote.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the line is not one.
    """
    values = parse_json(line)
    for step in values["steps"]:
        if step["predicted"] is not None:
            step["predicted"] = parse_written_action(step["predicted"])
    steps = [LiveStep(**step) for step in values["steps"]]
    return Episode(**{**values, "steps": tuple(steps)})


def append_episode(file: RawIOBase, episode: Episode) -> None:
    """Write one line and force it to disk: a task is there whole or not at all.

    `file` is unbuffered: on a full disk nothing is left that closing it would try to write again.
    """
    line = format_episode(episode).encode("ascii")
    while line:
        line = line[file.write(line) :]
    os.fsync(file.fileno())


def load_episodes(path: Path) -> list[Episode]:
    """Return the tasks of `episodes.jsonl`, each as it first began; a last line that a kill cut off is left out.

    Raises:
        UserError: a line before the last one cannot be read, or a task that had not ended in an error is there again.
    """
    found: dict[str, Episode] = {}
    expected = "what eval/live.py wrote: restore the file, or delete it and run the tasks again"
    for number, episode in read_lines(path, parse_episode, "task", expected):
        earlier = found.get(episode.task_id)
        if earlier is not None and earlier.ending != "error":
            raise UserError(
                f"{path}:{number}: found task {episode.task_id} again; expected each task once: two processes wrote "
                "into this folder. Delete this file and run the tasks again, or choose another --output_dir"
            )
        if earlier is None or earlier.never_began:  # the first verdict on the agent stands, whatever came after it
            found[episode.task_id] = replace(episode, n_tries=earlier.n_tries + 1 if earlier else 1)
    return list(found.values())
