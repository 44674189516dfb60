"""Lock around the operations that DeepSpeed compiles at first use; it ends with the process that holds it."""

import fcntl
import os

from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton


class BuildLock(FileBaton):
    """Torch's lock around a build, held by `flock` in place of by a file's existence.

    Torch takes a file named `lock` to mean that somebody is compiling. A process killed while it compiles leaves that
    file behind, and every later run that needs the operation waits for it without end. The kernel gives an `flock` up
    with the process, on network file systems too.
    """

    def __init__(self, lock_file_path: str):
        super().__init__(lock_file_path)
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
    cpp_extension.FileBaton = BuildLock  # type: ignore[misc, assignment]
