"""One live run in one folder: opens the program, resumes at the next task, appends each when it ended. No metrics."""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tqdm import tqdm

from eval.environments.environment import Environment
from eval.environments.episode import Episode, append_episode, load_episodes
from eval.environments.operate import (
    PATIENCE_AT_RESET,
    AskedToEnd,
    Operator,
    ScreenStore,
    describe_error,
    limit_time,
)
from eval.rollouts.run_folder import cut_last_line
from eval.rollouts.run_info import RunInfo, close_run, open_run
from sft.agent import AgentConfig
from sft.data.steps import Trajectory
from sft.elements.detector import ElementDetector
from sft.errors import UserError, as_printable
from sft.files import hash_file, hash_files, is_full_disk

if TYPE_CHECKING:
    from eval.policies.policy import Policy

log = logging.getLogger("sft")

# What a live run writes, `run.json` before all else.
WRITTEN = ("episodes.jsonl", "steps.jsonl", "metrics.json", "report.html", "screens/*", "films/*")
# Tasks in a row that did not begin: the program does not come back, and the others would take hours for nothing.
MAX_ERRORS = 3
METHODS = ("find_obstacle", "reset", "step", "verify", "close")


def find_opener(module_name: str) -> Callable[[float], Environment]:
    """Return the function `open_environment` of a module.

    Raises:
        UserError: there is no such module, it cannot be imported, or none is in it.
    """
    try:
        module = import_module(module_name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"--environment {module_name}: found no module {error.name}; expected one that can be imported: give "
            "the command in the folder that the module is in, and install what it needs"
        ) from error
    except (Exception, SystemExit) as error:
        raise UserError(
            f"--environment {module_name}: found a module that cannot be imported: {describe_error(error)}"
        ) from error
    opener = getattr(module, "open_environment", None)
    if not callable(opener):
        raise UserError(
            f"--environment {module_name}: found no function open_environment there; expected one that returns an "
            "Environment (docs/live.md)"
        )
    found: Callable[[float], Environment] = opener
    return found


def hash_environment(module_name: str) -> str | None:
    """Hash the source of an imported environment, every file of it where it is a package: tasks judged by other rules
    are of another run. None where it has no file.
    """
    source = getattr(import_module(module_name), "__file__", None)
    if source is None:
        return None
    path = Path(source)
    if path.name != "__init__.py":
        return hash_file(path)
    return hash_files(sorted(f for f in path.parent.rglob("*") if f.is_file() and f.parent.name != "__pycache__"))


def run_live_tasks(
    folder: Path,
    info: RunInfo,
    tasks: Sequence[Trajectory],
    agent: AgentConfig,
    build_policy: "Callable[[], Policy]",
    open_environment: Callable[[float], Environment],
    step_limit_s: float,
) -> tuple[list[Episode], RunInfo]:
    """Carry out every task that has no result yet; policy and program are only started where one is left.

    A task that ended in an error before the agent's first step is tried again; any other result stands.

    Returns:
        All episodes in the order of the data, and what the finished run's `run.json` holds.

    Raises:
        UserError: the folder holds another run, the program does not start, or `MAX_ERRORS` tasks in a row do not
            begin.
    """
    info = open_run(folder, info)
    path = folder / "episodes.jsonl"
    cut_last_line(path)
    episodes = {episode.task_id: episode for episode in (load_episodes(path) if path.is_file() else [])}
    done = {episode.task_id for episode in episodes.values() if not episode.never_began}
    if len(done) < len(tasks):
        info = replace(info, finished=None)
        detector = ElementDetector() if info.detector is not None else None
        n_errors = 0
        with _open(open_environment, step_limit_s) as environment, path.open("ab", buffering=0) as file:
            operator = Operator(environment, build_policy(), agent, ScreenStore(folder, detector), step_limit_s)
            for task in tqdm(tasks, desc="Carrying out", unit="task"):
                if task.task_id in done:
                    n_errors = 0  # in a row of the data: tasks that always fail may lie scattered between good ones
                    continue
                episode = operator.carry_out(task)
                append_episode(file, episode)
                n_errors = n_errors + 1 if episode.never_began else 0
                if n_errors == MAX_ERRORS:
                    raise UserError(
                        f"{folder}: found {n_errors} tasks in a row that did not begin; the last, {task.task_id}: "
                        f"{as_printable(episode.reason)}; expected a program that comes back: fix the cause and give "
                        "the same command again, which tries these tasks again"
                    )
        episodes = {episode.task_id: episode for episode in load_episodes(path)}
    place = {task.task_id: i for i, task in enumerate(tasks)}
    return sorted(episodes.values(), key=lambda episode: place[episode.task_id]), close_run(folder, info)


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Say what to do where there is no room for what a run writes.

    Raises:
        UserError: the disk is full, or the user's share of it.
    """
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise UserError(
            f"{folder}: found a full disk ({error.strerror}); make room and give the same command again: it continues "
            "with the task that was under way"
        ) from error


@contextmanager
def _open(open_environment: Callable[[float], Environment], step_limit_s: float) -> Iterator[Environment]:
    """Start the program, and stop it however the run ends: SIGTERM would leave it running."""
    try:
        environment = open_environment(step_limit_s)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if is_full_disk(error):
            raise
        raise UserError(f"the program could not be started: {describe_error(error)}") from error
    previous = signal.signal(signal.SIGTERM, _end)
    try:
        if missing := [name for name in METHODS if not callable(getattr(environment, name, None))]:
            raise UserError(
                f"open_environment: found {environment!r:.100} without {', '.join(missing)}; expected an Environment, "
                f"which has the methods {', '.join(METHODS)} (docs/live.md)"
            )
        yield environment
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # asked again, it is still being stopped
        try:
            if callable(getattr(environment, "close", None)):
                with limit_time(PATIENCE_AT_RESET * step_limit_s, "close"):
                    environment.close()
        except (Exception, SystemExit) as error:  # what was carried out counts, however the program ends
            log.warning("the program could not be stopped: %s", as_printable(describe_error(error)))
        finally:
            signal.signal(signal.SIGTERM, previous)


def _end(number: int, frame: FrameType | None) -> None:
    raise AskedToEnd(128 + number)
