"""Performs one action at a time in a page and records what was seen and done. Knows nothing of workflows or splits."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from playwright.sync_api import Page

from demo.clinic import screen
from demo.clinic.screen import BBox, Point, UnsettledError, compute_centre, take_stable_screenshot
from demo.clinic.targets import TargetError, find_target, list_elements

MIN_STEPS, MAX_STEPS = 6, 20
MAX_ELEMENTS = 60
CHANGE_TIMEOUT_S, STABLE_TIMEOUT_S = 10.0, 25.0
APPEAR_TIMEOUT_S = 15.0


class SuspectStep(RuntimeError):
    """A step that did not visibly change the page, or whose element is not where a person could use it."""


@dataclass(frozen=True)
class Task:
    """One goal and the way to reach it.

    `play` gets the Recorder after `start`; it calls subtask/click/text/... and ends with `complete`.
    `changes_store`: the task writes to the PACS, so the store is reset after it.
    """

    task_id: str
    workflow: str
    goal: str
    subtasks: tuple[str, ...]
    play: Callable[["Recorder"], None]
    new_workflow: bool = False
    changes_store: bool = False


@dataclass
class Recorder:
    """Record one trajectory after the other from `page` into `out_dir`.

    Before every action: wait for a stable page, take the screenshot, collect the page's elements, find the target by
    its name, as an agent's action is carried out. `program` is the module of the program's pages.
    """

    page: Page
    out_dir: Path
    application: str
    program: ModuleType
    _task: dict = field(default_factory=dict, init=False)
    _screenshots: list[bytes] = field(default_factory=list, init=False)
    _subtask: str | None = field(default=None, init=False)

    def start(
        self, task_id: str, workflow: str, goal: str, subtasks: Sequence[str], new_workflow: bool = False
    ) -> None:
        """Begin a task; the page must already show the task's first screen."""
        if not 2 <= len(subtasks) <= 5 or len(set(subtasks)) != len(subtasks):
            raise ValueError(f"{task_id}: subtasks must be 2 to 5 different items, got {list(subtasks)}")
        self._task = {
            "task_id": task_id,
            "workflow": workflow,
            "application": self.application,
            "group": "new_workflow" if new_workflow else "known_workflow",
            "goal": goal,
            "subtasks": list(subtasks),
            "steps": [],
        }
        self._screenshots = []
        self._subtask = None
        screen.park(self.page)

    def subtask(self, name: str) -> None:
        """Let the following steps belong to plan item `name`; items come in the order of the plan."""
        plan = self._task["subtasks"]
        expected = plan[0] if self._subtask is None else plan[plan.index(self._subtask) + 1]
        if name != expected:
            raise ValueError(f"{self._task['task_id']}: subtask {name!r} out of order, expected {expected!r}")
        self._subtask = name

    def click(self, target: str, observation: str) -> None:
        """Click the middle of the visible part of the target."""
        with self._step("CLICK", target, observation) as bbox:
            screen.click(self.page, compute_centre(bbox))

    def text(self, target: str, text: str, observation: str) -> None:
        """Replace the content of a field by typing `text`; nothing is submitted."""
        with self._step("TEXT", target, observation, text=text) as bbox:
            screen.type_text(self.page, compute_centre(bbox), text)

    def scroll(self, target: str, direction: str, observation: str) -> None:
        """Turn the mouse wheel over the target."""
        with self._step("SCROLL", target, observation, direction=direction) as bbox:
            point = compute_centre(bbox)
            screen.turn_wheel(self.page, point, direction, self.program.count_ticks(self.page, point))

    def zoom(self, target: str, direction: str, observation: str) -> None:
        """Zoom the image of a viewport."""
        with self._step("ZOOM", target, observation, direction=direction) as bbox:
            self.program.zoom_image(self.page, compute_centre(bbox), bbox, direction)

    def segment(self, tool: str, bbox: BBox, points: Sequence[Point], observation: str) -> None:
        """Draw with the active tool."""
        arguments = {"points": [list(map(round, point)) for point in points]}
        with self._step("SEGMENT", tool, observation, bbox, **arguments):
            self.program.draw(self.page, tool, list(points))

    def complete(self, observation: str) -> None:
        """Record the last step: the screen shows that the goal is reached."""
        self._subtask = None
        with self._step("COMPLETE", "task", observation):
            pass

    def finish(self) -> None:
        """Check the whole trajectory and write it; nothing of a task that fails its checks is written."""
        _check_trajectory(self._task)
        self.out_dir.mkdir(parents=True, exist_ok=True)
        for step, screenshot in zip(self._task["steps"], self._screenshots, strict=True):
            (self.out_dir / step["png"]).write_bytes(screenshot)
        text = json.dumps(self._task, ensure_ascii=False, indent=1)
        (self.out_dir / f"{self._task['task_id']}.json").write_text(text)

    @contextmanager
    def _step(
        self, action: str, target: str, observation: str, bbox: BBox | None = None, **arguments: object
    ) -> Iterator[BBox | None]:
        """Record the screen before the action and yield the target's bbox."""
        number = len(self._task["steps"]) + 1
        is_named = action not in ("SEGMENT", "COMPLETE")
        if is_named:
            self._find_bbox(action, target)  # waits until it is there
        screenshot = self._take_stable_screenshot()
        if is_named:
            bbox = self._find_bbox(action, target)
        step = {"step": number, "png": f"{self._task['task_id']}_{number:02d}.png", "action": action, "target": target}
        step |= arguments
        step |= {"bbox": bbox and [round(v) for v in bbox], "subtask": self._subtask, "observation": observation}
        step["elements"] = list_elements(self.page, MAX_ELEMENTS)
        self._task["steps"].append(step)
        self._screenshots.append(screenshot)
        yield bbox

    def _take_stable_screenshot(self) -> bytes:
        """Wait until the page differs from the step before and stands still."""
        before = self._screenshots[-1] if self._screenshots else None
        try:
            frame = take_stable_screenshot(self.page, self.program.is_busy, before, CHANGE_TIMEOUT_S, STABLE_TIMEOUT_S)
        except UnsettledError as error:
            raise SuspectStep(f"{error}, last step: {self._describe_last()}") from error
        if frame == before:
            raise SuspectStep(f"step {len(self._screenshots)} did not change the page: {self._describe_last()}")
        return frame

    def _describe_last(self) -> str:
        steps = self._task["steps"]
        return f"{steps[-1]['action']} {steps[-1]['target']!r}" if steps else "start"

    def _find_bbox(self, action: str, target: str) -> BBox:
        """Return the visible part of the target (x1, y1, x2, y2 px), once it is there."""
        deadline = time.monotonic() + APPEAR_TIMEOUT_S
        while True:
            try:
                return find_target(self.page, action, target, self.program.NAMES).bbox
            except TargetError as error:
                if time.monotonic() > deadline:
                    raise SuspectStep(f"{action}: {error}") from error
            time.sleep(screen.FRAME_INTERVAL_S)


def _check_trajectory(task: dict) -> None:
    """Raise ValueError unless the task keeps the rules of length, plan order, ending and repetition."""
    steps, name = task["steps"], task["task_id"]
    if not MIN_STEPS <= len(steps) <= MAX_STEPS:
        raise ValueError(f"{name}: {len(steps)} steps, expected {MIN_STEPS} to {MAX_STEPS}")
    if [step["action"] == "COMPLETE" for step in steps] != [False] * (len(steps) - 1) + [True]:
        raise ValueError(f"{name}: COMPLETE must be the last step and only the last")
    used = list(dict.fromkeys(step["subtask"] for step in steps[:-1]))
    if used != task["subtasks"]:
        raise ValueError(f"{name}: steps belong to {used}, the plan is {task['subtasks']}")
    keys = [tuple(step.get(key) for key in ("action", "target", "text", "direction")) for step in steps]
    for first, second, third in zip(keys, keys[1:], keys[2:], strict=False):
        if first == second == third:
            raise ValueError(f"{name}: {first} three times in a row")
