"""A process killed while it compiles an operation does not keep later ones waiting."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from torch.utils import cpp_extension

from sft.training.processes import BuildLock, use_build_lock

HOLD = """\
import sys, time
from sft.training.processes import BuildLock
print(BuildLock(sys.argv[1]).try_acquire(), flush=True)
time.sleep(600)
"""


def hold_elsewhere(path):
    """Start a process that takes the lock and keeps it."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def test_lock_is_held_by_one_process_and_given_up_when_it_is_killed(tmp_path):
    holder = hold_elsewhere(tmp_path / "lock")
    waiting = BuildLock(str(tmp_path / "lock"))
    assert not waiting.try_acquire()
    holder.send_signal(signal.SIGKILL)
    waiting.wait()
    holder.wait()
    lock = BuildLock(str(tmp_path / "lock"))
    assert lock.try_acquire() and not BuildLock(str(tmp_path / "lock")).try_acquire()
    lock.release()
    assert BuildLock(str(tmp_path / "lock")).try_acquire()


def test_build_goes_on_where_a_killed_one_left_torchs_own_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)  # put back after the test
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # ninja
    use_build_lock()
    (tmp_path / "lock").touch()
    (tmp_path / "answer.cpp").write_text('extern "C" int answer() { return 42; }\n')
    source = str(tmp_path / "answer.cpp")
    cpp_extension.load("answer", [source], build_directory=str(tmp_path), is_python_module=False)
    assert (tmp_path / "answer.so").is_file()
