"""Performs one action at a time in a page and records what was seen and done. Knows nothing of workflows or splits."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Locator, Page

SCREEN = (1280, 800)
MIN_STEPS, MAX_STEPS = 6, 20
MAX_ELEMENTS = 60
PARKED_MOUSE = (1, 798)
FRAME_INTERVAL_S = 0.2
STABLE_TIMEOUT_S = 25.0
CHANGE_TIMEOUT_S = 10.0
WHEEL_TICK_PX = 100
ZOOM_DRAG_PX = 110
COLLECT_ELEMENTS = (Path(__file__).parents[1] / "clinic/elements.js").read_text()

BBox = tuple[float, float, float, float]
Point = tuple[float, float]


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

    Before every action: wait for a stable page, take the screenshot, collect the page's elements, find the bbox.
    `is_busy`: tells whether the page still loads although its pixels stand still.
    """

    page: Page
    out_dir: Path
    application: str
    is_busy: Callable[[Page], bool] = lambda page: False
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
        self.page.mouse.move(*PARKED_MOUSE)

    def subtask(self, name: str) -> None:
        """Let the following steps belong to plan item `name`; items come in the order of the plan."""
        plan = self._task["subtasks"]
        expected = plan[0] if self._subtask is None else plan[plan.index(self._subtask) + 1]
        if name != expected:
            raise ValueError(f"{self._task['task_id']}: subtask {name!r} out of order, expected {expected!r}")
        self._subtask = name

    def click(self, place: Locator | BBox, target: str, observation: str) -> None:
        """Click the middle of the visible part of `place`."""
        with self._step("CLICK", target, observation, place) as bbox:
            self.page.mouse.click(*_centre(bbox))

    def text(self, place: Locator | BBox, target: str, text: str, observation: str) -> None:
        """Replace the content of a field by typing `text`; nothing is submitted."""
        with self._step("TEXT", target, observation, place, text=text) as bbox:
            self.page.mouse.click(*_centre(bbox))
            self.page.keyboard.press("Control+A")
            self.page.keyboard.type(text, delay=12)

    def scroll(self, place: Locator | BBox, target: str, direction: str, observation: str, amount: int = 600) -> None:
        """Turn the mouse wheel over `place` by `amount` px, in ticks of 100 px (one slice a tick in a stack)."""
        delta = {"down": (0, 1), "up": (0, -1), "right": (1, 0), "left": (-1, 0)}[direction]
        with self._step("SCROLL", target, observation, place, direction=direction) as bbox:
            self.page.mouse.move(*_centre(bbox))
            for _ in range(max(1, round(amount / WHEEL_TICK_PX))):
                self.page.mouse.wheel(delta[0] * WHEEL_TICK_PX, delta[1] * WHEEL_TICK_PX)
                time.sleep(0.03)

    def zoom(
        self, place: Locator | BBox, target: str, direction: str, observation: str, distance: int = ZOOM_DRAG_PX
    ) -> None:
        """Zoom an image as OHIF does it: drag with the right button, downwards to zoom in."""
        down = {"in": 1, "out": -1}[direction] * distance
        with self._step("ZOOM", target, observation, place, direction=direction) as bbox:
            x, y = _centre(bbox)
            self._drag([(x, y - down / 2), (x, y + down / 2)], button="right")

    def segment(
        self, place: Locator | BBox, target: str, points: Sequence[Point], observation: str, clicks: bool = False
    ) -> None:
        """Draw with the active tool: one drag through `points`, or a click on each of them."""
        with self._step("SEGMENT", target, observation, place, points=[list(map(round, p)) for p in points]):
            if not clicks:
                self._drag(points)
                return
            for x, y in points:
                self.page.mouse.move(x, y, steps=6)
                self.page.mouse.click(x, y)
                time.sleep(0.35)  # faster clicks are taken for a double click

    def complete(self, observation: str) -> None:
        """Record the last step: the screen shows that the goal is reached."""
        self._subtask = None
        with self._step("COMPLETE", "task", observation, None):
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
    def _step(self, action: str, target: str, observation: str, place: Locator | BBox | None, **arguments):
        """Record the screen before the action, yield the bbox, park the mouse after the action."""
        number = len(self._task["steps"]) + 1
        if isinstance(place, Locator):
            place.wait_for(state="visible", timeout=15_000)
        screenshot = self._take_stable_screenshot()
        bbox = self._find_bbox(place, target) if place is not None else None
        step = {"step": number, "png": f"{self._task['task_id']}_{number:02d}.png", "action": action, "target": target}
        step |= arguments
        step |= {"bbox": bbox and [round(v) for v in bbox], "subtask": self._subtask, "observation": observation}
        step["elements"] = self.page.evaluate(COLLECT_ELEMENTS, MAX_ELEMENTS)
        self._task["steps"].append(step)
        self._screenshots.append(screenshot)
        yield bbox
        self.page.mouse.move(*PARKED_MOUSE)

    def _take_stable_screenshot(self) -> bytes:
        """Wait until the page differs from the step before and two frames in a row are equal."""
        before = self._screenshots[-1] if self._screenshots else None
        began = time.monotonic()
        last = None
        while time.monotonic() - began < STABLE_TIMEOUT_S:
            frame = self.page.screenshot(animations="disabled", caret="hide")
            if frame == before and time.monotonic() - began > CHANGE_TIMEOUT_S:
                raise SuspectStep(f"step {len(self._screenshots)} did not change the page: {self._describe_last()}")
            if frame != before and frame == last and not self.is_busy(self.page):
                return frame
            last = frame
            time.sleep(FRAME_INTERVAL_S)
        raise SuspectStep(f"page not stable after {STABLE_TIMEOUT_S} s, last step: {self._describe_last()}")

    def _describe_last(self) -> str:
        steps = self._task["steps"]
        return f"{steps[-1]['action']} {steps[-1]['target']!r}" if steps else "start"

    def _find_bbox(self, place: Locator | BBox, target: str) -> BBox:
        """Return the visible part of `place` (x1, y1, x2, y2 px); refuse what a person could not use."""
        if not isinstance(place, Locator):
            return place
        box = place.bounding_box()
        if box is None:
            raise SuspectStep(f"{target!r} has no box")
        x1, y1 = max(0.0, box["x"]), max(0.0, box["y"])
        x2, y2 = min(SCREEN[0], box["x"] + box["width"]), min(SCREEN[1], box["y"] + box["height"])
        if (x2 - x1) < 4 or (y2 - y1) < 4:
            raise SuspectStep(f"{target!r} is outside the screen: {box}")
        is_hit = place.evaluate(
            """(element, [x, y]) => {
                const hit = document.elementFromPoint(x, y);
                return hit !== null && (element.contains(hit) || hit.contains(element)
                    || [...(element.labels || [])].some(label => label.contains(hit)));
            }""",
            list(_centre((x1, y1, x2, y2))),
        )
        if not is_hit:
            raise SuspectStep(f"{target!r} is covered by something else at {(x1, y1, x2, y2)}")
        return x1, y1, x2, y2

    def _drag(self, points: Sequence[Point], button: str = "left") -> None:
        self.page.mouse.move(*points[0])
        self.page.mouse.down(button=button)
        for x, y in points[1:]:
            self.page.mouse.move(x, y, steps=10)
        time.sleep(0.1)
        self.page.mouse.up(button=button)


def _centre(bbox: BBox) -> Point:
    return (bbox[0] + bbox[2]) / 2, (bbox[1] + bbox[3]) / 2


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
