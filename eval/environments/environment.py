"""What a running program must offer so that an agent can operate it and be judged. Knows no model and no program.

The terms are gymnasium's. A module named by `--environment` offers one function, `open_environment(step_limit_s)`,
which returns an `Environment`.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from sft.actions import Action
from sft.data.steps import Trajectory

# What became of an action: carried out; its target is not on the screen; it is there more than once; it is there, but
# the action cannot be done with it (typing into a picture); the program did not settle in `step_limit_s` seconds.
Outcome = Literal["done", "not_found", "ambiguous", "impossible", "unsettled"]


class EnvironmentFailure(Exception):
    """The program died, did not start or could not be reset: an error of the environment, never a wrong answer."""


@dataclass(frozen=True)
class Observation:
    """What the agent sees: `screenshot` is an encoded image, taken as the training screenshots were.

    `description` says where the program stands (an address), for the report alone; it reaches no prompt.
    """

    screenshot: bytes
    description: str = ""


@dataclass(frozen=True)
class Execution:
    """What one action did. `point` is where it was done, x and y in pixels of the screenshot before it.

    `reason` says in words why an outcome is not "done", or what else a reader should know. `observation` is the
    screen after the action, unchanged where nothing was done.
    """

    observation: Observation
    outcome: Outcome
    reason: str = ""
    point: tuple[float, float] | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether the goal is reached, by the program's own state, and the reason in words."""

    is_reached: bool
    reason: str


class Environment(Protocol):
    """A program in which tasks are carried out, one at a time.

    Every method may raise `EnvironmentFailure`; the task then counts as an error, and the next one begins with
    `reset`, which must bring back a program that died. A method that does not return is interrupted by that error too:
    `step`, `verify` and `find_obstacle` after three times `step_limit_s`, `reset` after ten times.
    """

    def find_obstacle(self, task: Trajectory) -> str | None:
        """Return why this task cannot be done here (no verification is known for it, ...), or None where it can be."""
        ...

    def reset(self, task: Trajectory) -> Observation:
        """Bring the program to the state in which the task was recorded, and show the first screen.

        Nothing of an earlier task may be left. Of `task` the environment may use the id, the goal and the recording
        where a state has to be found, but no later call may depend on the recorded actions.
        """
        ...

    def step(self, action: Action) -> Execution:
        """Carry out an action, wait until the screen is still, and return what it did.

        An action that ends the task (COMPLETE) is never passed, nor one that names neither target nor point where it
        should. What cannot be carried out is an outcome, no error.
        """
        ...

    def verify(self) -> Verdict:
        """Judge by the program's state outside the screen; called after every step, so it must change nothing.

        Right after `reset` the goal is not reached; where it is, the task counts as an error.
        """
        ...

    def close(self) -> None:
        """Stop what was started; the environment is not used again."""
        ...
