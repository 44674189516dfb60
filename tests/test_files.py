"""Files appear whole and with the mode that the user gives to new ones."""

import subprocess
import sys

import pytest
from conftest import ROOT

WRITE = """
import sys, tempfile
from pathlib import Path
from sft.files import write_new, write_whole
folder = Path(sys.argv[1])
write_whole(folder / "whole.txt", "content")
with write_new(folder / "new") as new:
    (new / "within").mkdir()
    (new / "link").symlink_to(folder / "private")
    for path in (new, new / "within"):
        handle, name = tempfile.mkstemp(dir=path)  # 0600, as safetensors leaves its files
        Path(name).rename(path / "weights")
"""


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_files_and_folders_have_the_mode_that_the_umask_gives(tmp_path, umask, file_mode, folder_mode):
    private = tmp_path / "private"
    private.touch(0o600)
    subprocess.run([sys.executable, "-c", WRITE, tmp_path], cwd=ROOT, check=True, umask=umask)
    names = ("whole.txt", "new/weights", "new/within/weights")
    assert {oct((tmp_path / name).stat().st_mode & 0o777) for name in names} == {oct(file_mode)}
    assert {oct((tmp_path / name).stat().st_mode & 0o777) for name in ("new", "new/within")} == {oct(folder_mode)}
    assert private.stat().st_mode & 0o777 == 0o600, "what a link points to is not ours"
