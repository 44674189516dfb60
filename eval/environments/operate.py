"""Lets a policy carry out a task in an environment, with the memory that it wrote. Knows no program and no metric."""

import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from eval.environments.environment import Environment, EnvironmentFailure, Observation, Outcome, Verdict
from eval.environments.episode import Ending, Episode, LiveStep, StepOutcome
from eval.policies.policy import Policy, RawAnswer, StepRequest, read_raw_answer
from sft.actions import POINT, Action, find_action_type
from sft.agent import AgentConfig
from sft.answers import ParsedAnswer
from sft.data.screenshots import SUFFIXES, inspect_bytes, open_screenshot
from sft.data.steps import Trajectory
from sft.elements.detector import ElementDetector
from sft.files import is_full_disk, write_whole
from sft.memory import EMPTY_MEMORY, Memory, update

BUDGET = 2  # steps a task may take, for each that was recorded
# How many times `step_limit_s` a method may take before it is interrupted; a reset may have to start a program.
PATIENCE, PATIENCE_AT_RESET = 3, 10
SCREENS = "screens"

T = TypeVar("T")


class AskedToEnd(SystemExit):
    """The run was asked to end by a signal; any other `SystemExit` is an environment's own."""


@dataclass(frozen=True)
class Screen:
    """What the program shows: the kept screenshot, its size in pixels, and where the program stands."""

    path: Path
    image_id: str
    width_height: tuple[int, int]
    description: str


class ScreenStore:
    """Keeps screenshots in a run's folder, each content once, and finds their elements where the agent sees them."""

    def __init__(self, folder: Path, detector: ElementDetector | None = None):
        self.folder, self.detector = folder, detector
        self._elements: dict[str, Sequence[Mapping[str, Any]]] = {}

    def keep(self, observation: Observation) -> Screen:
        """Write the screenshot as a file named by its content.

        Raises:
            EnvironmentFailure: it is no screenshot.
        """
        facts = inspect_bytes(observation.screenshot, "the program's screen", "always")
        if facts.problem is not None:
            raise EnvironmentFailure(f"found no screenshot: {facts.problem}")
        image_id = f"{SCREENS}/{facts.sha256[:16]}.{SUFFIXES[facts.format]}"
        path = self.folder / image_id
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            write_whole(path, observation.screenshot)
        return Screen(path, image_id, facts.width_height, str(observation.description))

    def find_elements(self, screen: Screen) -> Sequence[Mapping[str, Any]]:
        """Return the texts on a screen, read once; nothing where the agent is shown none."""
        if self.detector is None:
            return ()
        if screen.image_id not in self._elements:
            self._elements[screen.image_id] = self.detector.detect(open_screenshot(screen.path)).elements
        return self._elements[screen.image_id]


@dataclass(frozen=True)
class _Effect:
    """What became of one answer: its outcome, the screen after it, and the verdict then."""

    outcome: StepOutcome
    reason: str
    screen: Screen
    point: tuple[float, float] | None = None
    verdict: Verdict = Verdict(False, "")


@dataclass(frozen=True)
class Operator:
    """Carries out one task after the other in one environment, asking one policy."""

    environment: Environment
    policy: Policy
    agent: AgentConfig
    screens: ScreenStore
    step_limit_s: float

    def carry_out(self, task: Trajectory) -> Episode:
        """Reset the program, then ask, act and verify until a final action is said or `BUDGET` is used up.

        An answer that cannot be read, or an action that cannot be carried out, leaves the screen as it is: the agent
        sees it again. The memory is that of a rollout in mode "own".
        """
        steps: list[LiveStep] = []
        screen: Screen | None = None
        memory = EMPTY_MEMORY
        ending: Ending = "budget"
        reason = ""
        try:
            if (obstacle := self._call("find_obstacle", self._find_obstacle, task)) is not None:
                return _describe(task, "left_out", reason=obstacle)
            screen = self._begin(task)
            for index in range(BUDGET * len(task.steps)):
                step, screen, memory = self._take_step(task, index, screen, memory)
                steps.append(step)
                if step.outcome in ("complete", "given_up"):
                    ending = step.outcome
                    break
                if step.outcome == "error":
                    ending, reason = "error", step.reason
                    break
        except EnvironmentFailure as failure:
            ending, reason = "error", _name(failure)
        return _describe(task, ending, tuple(steps), reason, screen.image_id if screen else "")

    def _begin(self, task: Trajectory) -> Screen:
        screen = self._call("reset", self._reset, task, patience=PATIENCE_AT_RESET)
        verdict = self._call("verify", self._verify)
        if verdict.is_reached:
            raise EnvironmentFailure(f"the goal is reached before the first step ({verdict.reason})")
        return screen

    def _take_step(
        self, task: Trajectory, index: int, screen: Screen, memory: Memory
    ) -> tuple[LiveStep, Screen, Memory]:
        """Ask, carry out what was said and verify; return the step, and screen and memory after it."""
        elements = self.screens.find_elements(screen)
        request = StepRequest(task.task_id, index, task.instruction, memory, screen.path, elements)
        raw = self.policy.answer([request])[0]
        parsed = read_raw_answer(raw, self.agent)
        after = update(memory, parsed.answer, self.agent.memory_writer, self.agent.memory_budget_chars)
        started = time.perf_counter()
        try:
            effect = self._act(raw, parsed, screen)
        except EnvironmentFailure as failure:
            effect = _Effect("error", _name(failure), screen)
        step = LiveStep(
            index=index,
            image_id=screen.image_id,
            description=screen.description,
            screen=list(screen.width_height),
            memory_before=(memory if raw.memory_shown is None else raw.memory_shown).to_json(),
            memory_after=after.to_json(),
            raw_text=raw.text,
            parse_status=parsed.status,
            parse_problem=parsed.problem,
            left_out=list(parsed.left_out),
            predicted=parsed.answer.action if parsed.answer else None,
            outcome=effect.outcome,
            reason=effect.reason,
            point=None if effect.point is None else list(effect.point),
            is_reached=effect.verdict.is_reached,
            verdict=effect.verdict.reason,
            finish_reason=raw.finish_reason,
            n_prompt_tokens=raw.n_prompt_tokens,
            n_answer_tokens=raw.n_answer_tokens,
            latency_s=raw.latency_s,
            execution_s=time.perf_counter() - started,
            said_elsewhere=dict(raw.said_elsewhere),
        )
        return step, effect.screen, after

    def _act(self, raw: RawAnswer, parsed: ParsedAnswer, screen: Screen) -> _Effect:
        """Carry an answer out, where it can be, and judge what the program is in then."""
        action = parsed.answer.action if parsed.answer else None
        action_type = find_action_type(action.kind, self.agent.actions) if action else None
        if raw.error is not None:
            effect = _Effect("unanswered", raw.error, screen)
        elif action is None or action_type is None:
            effect = _Effect("unreadable", parsed.problem, screen)
        elif action_type.is_final:  # whatever it names: it needs no target
            first = next(known for known in self.agent.actions if known.is_final)  # the one that says it is reached
            effect = _Effect("complete" if action_type == first else "given_up", "", screen)
        elif action_type.takes_target and not action.target and POINT not in action.arguments:
            effect = _Effect("unreadable", parsed.problem, screen)
        else:
            effect = self._call(f"the step {action.kind}", self._step, action)
        return replace(effect, verdict=self._call("verify", self._verify))

    def _find_obstacle(self, task: Trajectory) -> str | None:
        obstacle = self.environment.find_obstacle(task)
        if obstacle is not None and not isinstance(obstacle, str):
            raise EnvironmentFailure(f"find_obstacle: found {obstacle!r:.100}; expected a reason in words, or None")
        return obstacle

    def _reset(self, task: Trajectory) -> Screen:
        return self.screens.keep(self.environment.reset(task))

    def _step(self, action: Action) -> _Effect:
        done = self.environment.step(action)
        if done.outcome not in get_args(Outcome):
            raise EnvironmentFailure(f"step: found the outcome {done.outcome!r}; expected one of {get_args(Outcome)}")
        point = None
        if done.point is not None:
            point = (float(done.point[0]), float(done.point[1]))
            if not all(map(math.isfinite, point)):
                raise EnvironmentFailure(f"step: found the point {done.point!r:.100}; expected x and y in pixels")
        return _Effect(done.outcome, str(done.reason), self.screens.keep(done.observation), point)

    def _verify(self) -> Verdict:
        verdict = self.environment.verify()
        if verdict.is_reached not in (True, False):  # NumPy's booleans are; a text such as "no" would count as true
            raise EnvironmentFailure(f"verify: found is_reached {verdict.is_reached!r:.100}; expected True or False")
        return Verdict(bool(verdict.is_reached), str(verdict.reason))

    def _call(self, doing: str, method: Callable[..., T], *arguments: Any, patience: int = PATIENCE) -> T:
        """Call what asks the environment, in a time limit.

        Raises:
            EnvironmentFailure: it failed, however it says so: an environment is anybody's code. Not where the disk is
                full or the run was asked to end.
        """
        with limit_time(patience * self.step_limit_s, doing):
            try:
                return method(*arguments)
            except (EnvironmentFailure, AskedToEnd):
                raise
            except (Exception, SystemExit) as error:
                if is_full_disk(error):
                    raise
                raise EnvironmentFailure(f"{doing} failed: {describe_error(error)}") from error


@contextmanager
def limit_time(limit_s: float, doing: str) -> Iterator[None]:
    """Interrupt what does not return in time, by a signal to this process's main thread.

    Raises:
        EnvironmentFailure: it took longer. Raised again each second, for a program's library that caught it.
    """

    def interrupt(*_: object) -> None:
        raise EnvironmentFailure(f"{doing} took longer than {limit_s:g} s and was interrupted")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, limit_s, 1.0)
    try:
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # an alarm of just now interrupts that line, and may not go on to interrupt what has no limit
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)


def describe_error(error: BaseException) -> str:
    """Name what an environment raised, and the line; of its own failures the text says it all."""
    if isinstance(error, EnvironmentFailure):
        return _name(error)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"  # names its file and line
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


def _describe(
    task: Trajectory, ending: Ending, steps: tuple[LiveStep, ...] = (), reason: str = "", last_image_id: str = ""
) -> Episode:
    about = (task.task_id, task.application, task.group, task.instruction, len(task.steps))
    return Episode(*about, ending=ending, steps=steps, reason=reason, last_image_id=last_image_id)


def _name(failure: EnvironmentFailure) -> str:
    return str(failure) or type(failure).__name__
