"""The processes of a training: how they meet, what the first does for all, their logs, and a lost one."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tqdm import tqdm

from sft.errors import UserError
from sft.files import claim_folder, refuse_foreign
from sft.recipe.launch import Launch, build_training_arguments
from sft.recipe.recipe import Recipe
from sft.recipe.training_keys import find_value
from sft.training.outputs import WRITTEN, WRITTEN_FIRST

if TYPE_CHECKING:
    from trl import SFTConfig

Result = TypeVar("Result")
log = logging.getLogger("sft")


@contextlib.contextmanager
def training_processes(recipe: Recipe, launch: Launch) -> Iterator["SFTConfig"]:
    """Have this process meet the others, claim their folder, log what it does, and say so where one of them is lost.

    Yields TRL's configuration, which knows this process's number and theirs.
    """
    if launch.engine.startswith("zero"):
        use_build_lock()
    limit_waiting(find_value(recipe.training, "ddp_timeout"))  # before the processes meet, in the next line
    training = build_training_arguments(recipe)
    folder = Path(cast(str, training.output_dir))
    logs = folder / "logs"
    with claim_output(folder), log_process(logs, training.process_index), explain_lost_process(training, logs):
        yield training


@contextlib.contextmanager
def claim_output(folder: Path) -> Iterator[None]:
    """Keep the folder that is trained into for the processes of this training.

    Raises:
        UserError: another training writes there, or what would be replaced there is somebody else's.
    """
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            refuse_foreign(folder, WRITTEN, WRITTEN_FIRST)
            stack.enter_context(claim_folder(folder, "trains into this folder"))

        do_in_first_process(claim)
        yield


def do_in_first_process(act: Callable[[], Result]) -> Result:
    """Call `act` in the first process alone, have the others wait for it, and return its result in every process.

    A `UserError` or `OSError` of `act` (a full disk) is raised in every process. Raised by the first alone, it would
    leave the others waiting for a process that has ended, and telling of that in place of the reason.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    outcome: list[Any] = [None]
    if state.is_main_process:
        try:
            outcome = [act()]
        except (UserError, OSError) as refusal:
            outcome = [refusal]
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def limit_waiting(ddp_timeout_s: int) -> None:
    """Have every group of processes that is built from now on wait for its slowest so long, and then fail.

    `ddp_timeout` alone reaches one group on GPUs: transformers (5.23) passes it on where `use_cpu` is false, and
    DeepSpeed builds groups of its own with torch's default, which is half an hour with gloo and 10 minutes with NCCL.
    """
    from torch.distributed import distributed_c10d

    timeout = timedelta(seconds=ddp_timeout_s)
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = timeout


@contextlib.contextmanager
def explain_lost_process(training: "SFTConfig", logs: Path) -> Iterator[None]:
    """End with one clear line instead of a library's where another process died or no longer answers."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if training.world_size == 1 or not any(word in text for word in ("gloo", "NCCL", "Connection", "Timed out")):
            raise
        log.debug("lost another process", exc_info=True)
        raise SystemExit(
            f"rank {training.process_index}: another process has died, or did not answer for ddp_timeout="
            f"{training.ddp_timeout} s ({text.splitlines()[0][:200]}). What each process did last is in "
            f"{logs}; resume with --resume auto"
        ) from error


@contextlib.contextmanager
def unwrap_worker_errors() -> Iterator[None]:
    """Pass on what a data worker says is wrong with the data without the traceback that torch puts around it."""
    try:
        yield
    except UserError as error:
        _, marker, text = str(error).rpartition(f"\n{UserError.__module__}.{UserError.__qualname__}: ")
        if not marker:
            raise
        raise UserError(text.strip()) from None


@contextlib.contextmanager
def log_process(folder: Path, rank: int) -> Iterator[None]:
    """Show what the first process logs, and of the others what is wrong; append all of it to `rank-N.log` in `folder`.

    The error that ends the process is in the file too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    console = _Console()
    file = logging.FileHandler(folder / f"rank-{rank}.log", encoding="utf-8", errors="replace")
    console.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    console.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.DEBUG)
    log.addHandler(console)
    log.addHandler(file)
    try:
        yield
    except BaseException as error:
        file.handle(log.makeRecord("sft", logging.ERROR, "", 0, "ended by %r", (error,), None))
        raise
    finally:
        log.removeHandler(console)
        log.removeHandler(file)
        file.close()


class _Console(logging.StreamHandler[Any]):
    """Prints above the progress bars, not onto the line of one."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class BuildLock:
    """Torch's lock around a build, held by `flock` in place of by a file's existence.

    Torch takes a file named `lock` to mean that somebody is compiling. A process killed while it compiles leaves that
    file behind, and every later run that needs the operation waits for it without end. The kernel gives an `flock` up
    with the process, on network file systems too.
    """

    def __init__(self, lock_file_path: str):
        self.descriptor = os.open(f"{lock_file_path}.flock", os.O_CREAT | os.O_RDWR)

    def try_acquire(self) -> bool:
        """Return whether the lock was free and is now held."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self) -> None:
        """Return when whoever holds the lock has released it or is dead."""
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)
        os.close(self.descriptor)

    def release(self) -> None:
        os.close(self.descriptor)


def use_build_lock() -> None:
    """Have torch take this lock around every build of this process from now on."""
    from torch.utils import cpp_extension

    cpp_extension.FileBaton = BuildLock  # type: ignore[misc, assignment]
