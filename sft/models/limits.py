"""How long, and in how much memory, may a program work that a model folder brings: a template, a pattern?"""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_S = 10.0
_MOST_BYTES = 1 << 30
_STATUS = Path("/proc/self/statm")


class TooMuchWorkError(Exception):
    """What was limited took too long."""


@contextmanager
def limit_work() -> Iterator[None]:
    """Interrupt what does not return in `LONGEST_S`, and deny it memory beyond a GB more than there is in use.

    By a signal, which only a process's main thread gets: elsewhere only memory is limited.

    Raises:
        TooMuchWorkError, MemoryError: it was interrupted, or denied.
    """

    def interrupt(*_: object) -> None:
        raise TooMuchWorkError(f"it takes longer than {LONGEST_S:g} s")

    is_timed = threading.current_thread() is threading.main_thread()
    before = resource.getrlimit(resource.RLIMIT_AS)
    if _STATUS.is_file():
        most = int(_STATUS.read_text().split()[0]) * resource.getpagesize() + _MOST_BYTES
        if before[0] == resource.RLIM_INFINITY or before[0] > most:
            resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    previous = signal.signal(signal.SIGALRM, interrupt) if is_timed else None
    try:
        if is_timed:
            signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
        yield
    finally:
        if is_timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, before)
