"""Files appear whole and with the mode that the user gives to new ones."""

import multiprocessing
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from sft.errors import UserError
from sft.files import claim_folder, refuse_foreign, write_whole

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


def test_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path, monkeypatch):
    write_whole(tmp_path / "kept.txt", "before")
    monkeypatch.setattr("os.fsync", _find_disk_full)
    with pytest.raises(OSError, match="no room"):
        write_whole(tmp_path / "kept.txt", "after")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("kept.txt", "before")]


def _find_disk_full(descriptor):
    raise OSError("no room")


HOLD = """
import sys
from pathlib import Path
from sft.files import claim_folder
with claim_folder(Path(sys.argv[1]), "trains here"):
    print("held", flush=True)
    sys.stdin.read()
"""
NAMES, PROOF = ("README.md", "unfinished", "*.safetensors"), "training_data.json"


@pytest.mark.parametrize("name", ["README.md", "unfinished/", "theirs.safetensors"])
def test_folder_with_files_of_somebody_else_is_refused_and_left_alone(tmp_path, name):
    refuse_foreign(tmp_path / "new", NAMES, PROOF)
    refuse_foreign(tmp_path, NAMES, PROOF)
    (tmp_path / "notes.txt").write_text("not in the way")
    refuse_foreign(tmp_path, NAMES, PROOF)
    theirs = tmp_path / name
    theirs.mkdir() if name.endswith("/") else theirs.write_text("theirs")
    with pytest.raises(UserError, match=rf"found {name.rstrip('/')}, which would be replaced, and no {PROOF}"):
        refuse_foreign(tmp_path, NAMES, PROOF)
    (tmp_path / PROOF).write_text("{}")
    refuse_foreign(tmp_path, NAMES, PROOF)


@pytest.mark.parametrize("name", ["README.md", PROOF])
def test_link_in_the_place_of_a_file_is_refused(tmp_path, name):
    folder, private = tmp_path / "folder", tmp_path / "private"
    folder.mkdir()
    private.write_text("private")
    (folder / PROOF).write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(private)
    with pytest.raises(UserError, match=rf"found links in the place of {name}"):
        refuse_foreign(folder, NAMES, PROOF)


def test_second_process_is_refused_until_the_first_ends(tmp_path):
    """Ended by any means: the kernel gives the lock up."""
    hold = (
        "from sft.files import claim_folder; import sys, pathlib\nwith claim_folder(pathlib.Path(sys.argv[1]), 'x'):"
    )
    command = [sys.executable, "-c", f"{hold}\n print('held', flush=True)\n sys.stdin.read()", tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process that trains here"), claim_folder(tmp_path, "trains here"):
            pass
        first.kill()
        first.wait()
        with claim_folder(tmp_path, "trains here"):
            pass


def test_folder_is_free_again_though_a_worker_forked_off_meanwhile_lives(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with claim_folder(tmp_path, "trains here"):
        worker.start()
    try:
        with claim_folder(tmp_path, "trains here"):
            pass
    finally:
        worker.kill()
        worker.join()
