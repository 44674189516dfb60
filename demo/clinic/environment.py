"""Orthanc Explorer and OHIF as programs that an agent operates: reset, carry out an action, verify."""

import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO

from playwright.sync_api import Error, Page, Playwright, sync_playwright

from demo.clinic import ohif_checks, ohif_page, ohif_state, orthanc_checks, orthanc_page, orthanc_state
from demo.clinic.browser import SCREEN, Browser, find_chromium
from demo.clinic.screen import (
    DIRECTIONS,
    Point,
    UnsettledError,
    click,
    compute_centre,
    park,
    take_stable_screenshot,
    turn_wheel,
    type_text,
)
from demo.clinic.screenshots import encode
from demo.clinic.stack import FOLDER, PORT_BASE, Stack, StackFailure
from demo.clinic.targets import TargetError, find_field_at, find_target
from demo.clinic.tasks import LEFT_OUT, ClinicTask, load_tasks
from demo.clinic.verification import Check, State
from eval.environments.environment import EnvironmentFailure, Execution, Observation, Verdict
from sft.actions import POINT, Action, to_pixels
from sft.data.steps import Trajectory
from sft.files import is_full_disk

# Each program: its pages, the state that is read of it, and what a goal asks of these states.
PROGRAMS: dict[str, tuple[ModuleType, ModuleType, ModuleType]] = {
    "orthanc": (orthanc_page, orthanc_state, orthanc_checks),
    "ohif": (ohif_page, ohif_state, ohif_checks),
}
CHANGE_TIMEOUT_S = 1.5  # an action that changes nothing on the screen is taken for done after this
# A page that answers nothing is ended, and with it the browser, after so many times the limit of a step.
HANGS_IN_STEP, HANGS_IN_RESET = 2, 8
DEFAULT_BOX = (0.4, 0.4, 0.6, 0.6)  # the size of a drawing, where the goal names no structure


class Clinic:
    """The environment; one at a time in a folder.

    What runs already is used and left running; what does not is started, and stopped by `close`.
    `outside_requests` lists what pages asked for beyond 127.0.0.1, none of which was reached; a step's reason names
    what came since the step before it.
    """

    def __init__(
        self,
        step_limit_s: float = 30.0,
        folder: Path = FOLDER,
        ohif_dist: Path | None = None,
        port_base: int = PORT_BASE,
    ):
        self.step_limit_s = step_limit_s
        self.stack = Stack(folder, ohif_dist, port_base)
        self.outside_requests: list[str] = []
        self._n_told = 0  # of these
        self._started: set[str] = set()
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None
        self.page: Page | None = None
        self._lock: IO[str] | None = None

    def find_missing(self) -> list[str]:
        """Name the programs that must be installed first."""
        return self.stack.find_missing() + ([] if find_chromium() else ["chromium"])

    def find_obstacle(self, task: Trajectory) -> str | None:
        found = load_tasks().get(task.task_id)
        if found is None:
            return "no task of the clinic has this id"
        if found.goal != task.instruction:
            return f"the clinic's task of this id has another goal: {found.goal!r}"
        return LEFT_OUT.get(task.task_id)

    def reset(self, task: Trajectory) -> Observation:
        if obstacle := self.find_obstacle(task):
            raise EnvironmentFailure(f"{task.task_id}: {obstacle}")
        self._task: ClinicTask = load_tasks()[task.task_id]
        self._drawn = 0
        self._n_told = len(self.outside_requests)
        with self._failures(HANGS_IN_RESET):
            self._start()
            self.stack.reset()
            self.page = self._browser.open_page([self.stack.orthanc_url, self.stack.ohif_url])
            self._program, self._state, self._checks = PROGRAMS[self._task.program]
            self._program.open_start(self.page, self.stack)
            park(self.page)
            self._frame = take_stable_screenshot(self.page, self._program.is_busy, None, 0, self.step_limit_s)
            self.stack.check()
            self._check: Check = self._checks.build_check(self._task, self.stack)
            self._states: list[State] = [self._state.read_state(self.page, self.stack)]
            self._observation = self._observe()
        return self._observation

    def step(self, action: Action) -> Execution:
        with self._failures(HANGS_IN_STEP):
            self._check_programs()
            try:
                point = self._perform(action)
            except TargetError as error:
                return Execution(self._observation, error.outcome, str(error))
            outcome, reason = "done", ""
            try:
                self._frame = take_stable_screenshot(
                    self.page, self._program.is_busy, self._frame, CHANGE_TIMEOUT_S, self.step_limit_s
                )
            except UnsettledError as error:
                self._frame, outcome, reason = error.frame, "unsettled", str(error)
            for opened in self._browser.context.pages[1:]:
                if opened is not self.page:
                    opened.close()
            self._check_programs()
            self._states.append(self._state.read_state(self.page, self.stack))
            self._observation = self._observe()
            return Execution(
                self._observation, outcome, "; ".join(filter(None, (reason, self._tell_outside()))), point
            )

    def verify(self) -> Verdict:
        with self._failures(HANGS_IN_STEP):
            self._check_programs()
            is_reached, reason = self._check.judge([*self._states, self._state.read_state(self.page, self.stack)])
        return Verdict(is_reached, reason)

    def judge_as(self, task: ClinicTask) -> Verdict:
        """Judge what was done as if another task of the same program had been asked for; to test the checks."""
        return Verdict(*self._checks.build_check(task, self.stack).judge(self._states))

    def close(self) -> None:
        try:
            self._close_browser()
            if self._playwright:
                self._playwright.stop()
                self._playwright = None
        finally:
            self.stack.stop(sorted(self._started))
            self._started = set()
            if self._lock:
                self._lock.close()
                self._lock = None

    def _start(self) -> None:
        """Start what does not run: programs, browser."""
        if self._lock is None:
            self.stack.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.stack.folder / "lock").open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise StackFailure(f"{self.stack.folder} is in use by another run; one at a time") from None
            self._lock = lock
        self._started |= set(self.stack.start())
        if self._playwright is None:
            self._playwright = sync_playwright().start()
        if self._browser is None:
            shutil.rmtree(self._profile, ignore_errors=True)
            self._browser = Browser(self._playwright, self._profile, self.outside_requests)

    @property
    def _profile(self) -> Path:
        return self.stack.folder / "profile"

    def _perform(self, action: Action) -> Point:
        """Carry out an action and return where; raise `TargetError` where it cannot be."""
        page, names = self.page, self._program.NAMES
        arguments = action.arguments
        given = to_pixels(arguments[POINT], *SCREEN) if POINT in arguments else None
        if action.kind == "SEGMENT":
            return self._draw(action.target, given)
        if action.kind not in ("CLICK", "TEXT", "SCROLL", "ZOOM"):
            raise TargetError("impossible", f"{action.kind} is no action of these programs")
        needed = {"TEXT": "text", "SCROLL": "direction", "ZOOM": "direction"}.get(action.kind)
        if needed and needed not in arguments:
            raise TargetError("impossible", f"{action.kind} without {needed}")
        if given and action.kind == "TEXT" and not find_field_at(page, given):
            raise TargetError("impossible", "no text can be typed at this point")
        point = given or find_target(page, action.kind, action.target, names).centre
        if action.kind == "CLICK":
            click(page, point)
        elif action.kind == "TEXT":
            type_text(page, point, str(arguments["text"]))
        elif action.kind == "SCROLL":
            if arguments["direction"] not in DIRECTIONS:
                raise TargetError("impossible", f"SCROLL {arguments['direction']}")
            turn_wheel(page, point, arguments["direction"], self._program.count_ticks(page, point))
        else:
            viewport = ohif_page.find_viewport_at(page, point)
            if viewport is None:
                raise TargetError("impossible", "only an image of the viewer can be zoomed")
            ohif_page.zoom_image(page, point, viewport[1], arguments["direction"])
        return point

    def _draw(self, named: str, given: Point | None) -> Point:
        """Draw a tool's shape: at the point, else on the structure that the goal names for this drawing."""
        page = self.page
        tool = next((tool for tool in ohif_page.TOOLS if tool.casefold() == named.strip().casefold()), None)
        if tool is None:
            raise TargetError("not_found", "no drawing tool has this name")
        places = self._task.case.drawings() if self._task.program == "ohif" else []
        box, where = places[min(self._drawn, len(places) - 1)] if places else (DEFAULT_BOX, None)
        if given is None and not places:
            raise TargetError("impossible", "the goal names nothing to draw on, and the action no point")
        viewport = ohif_page.find_viewport_at(page, given) if given else ohif_page.find_viewport(page, where)
        if viewport is None:
            raise TargetError("not_found", "no image is there to draw on")
        points = ohif_page.locate_drawing(page, tool, box, viewport[0])
        if given:
            points = ohif_page.move_drawing(points, given, viewport[1])
        ohif_page.draw(page, tool, points)
        self._drawn += 1
        return compute_centre(ohif_page.compute_extent(points))

    def _check_programs(self) -> None:
        if self.page is None:
            raise StackFailure("the browser has ended, or no task was begun")
        for name in ("orthanc", "nginx", "peer"):
            if not self.stack.is_running(name):
                raise StackFailure(f"{name} has ended")
        self.stack.get("/system")

    def _tell_outside(self) -> str:
        asked, self._n_told = self.outside_requests[self._n_told :], len(self.outside_requests)
        return f"asked beyond this machine, and not reached: {', '.join(asked)[:300]}" if asked else ""

    def _observe(self) -> Observation:
        return Observation(encode(self._frame), self.page.url.partition("127.0.0.1")[2].partition("/")[2])

    @contextmanager
    def _failures(self, patience: int) -> Iterator[None]:
        """Turn what the programs and the browser raise into failures; end a browser that hangs or has crashed."""
        watch = threading.Timer(patience * self.step_limit_s, self.kill_browser)
        watch.daemon = True
        watch.start()
        try:
            yield
        except EnvironmentFailure:
            self._close_browser()  # interrupted from outside, in the middle of something
            raise
        except UnsettledError as error:
            raise EnvironmentFailure(f"{self._task.task_id}: {error}") from error
        except (StackFailure, OSError) as error:
            if is_full_disk(error):
                raise  # ends the run, which the same command then continues
            raise EnvironmentFailure(str(error)) from error
        except Error as error:
            self._close_browser()
            raise EnvironmentFailure(f"the browser failed: {' '.join(str(error).split())[:300]}") from error
        finally:
            watch.cancel()

    def _close_browser(self) -> None:
        browser, self._browser, self.page = self._browser, None, None
        if browser:
            try:
                browser.close()
            except Error:
                self.kill_browser()  # it has crashed

    def kill_browser(self) -> None:
        """End Chromium at once, however it is."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if f"--user-data-dir={self._profile}".encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
            except OSError:
                continue
