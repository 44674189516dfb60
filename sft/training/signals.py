"""What does a training do when it is told to end (SIGTERM, SIGUSR1)? It notes it; `watch` then saves and stops."""

import ctypes
import os
import signal
import threading
from types import FrameType

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not a failure, start the same command again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2), Linux
_received: list[int] = []


def watch_for_preemption() -> None:
    """From now on SIGTERM and SIGUSR1 are noted instead of ending the process.

    A process that `accelerate launch` or `torchrun` started gets SIGTERM when its launcher dies: left alone it would
    train on unseen, and write to the folder of the run that is started in its place.
    """
    for number in SIGNALS:
        signal.signal(number, _note)
    if "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def leave_signals_to_parent(worker: int) -> None:
    """Have a process that loads data ignore the signals unless its parent sends them; for a DataLoader's workers.

    A scheduler sends them to every process of a job, and a loader that one of them ends takes the step with it. A
    parent that is done sends SIGTERM to what still loads, and waits for it: ignored, that would be for ever.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # what is blocked waits for the thread, although it is ignored
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


def is_preempted() -> bool:
    """Return whether one of the signals has arrived in this process."""
    return bool(_received)


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(number)
