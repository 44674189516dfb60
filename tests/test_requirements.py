"""What `pip install -c constraints.txt -e .` asks for can be had beside any build of torch."""

import re
import subprocess
import sys
import tomllib

from conftest import ROOT


def _constrained():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {line.partition("==")[0].lower().replace("_", "-") for line in lines if not line.startswith("#")}


def test_constraints_leave_to_torch_what_its_cuda_build_pins():
    """PyPI's torch 2.13.0 wants triton==3.7.1 and CUDA libraries to the digit: a second pin cannot be met."""
    pinned = {n for n in _constrained() if n.startswith(("triton", "nvidia-", "cuda-"))} - {"nvidia-ml-py"}
    assert pinned == set()


def test_hashes_are_those_of_the_pinned_versions():
    """All but torch's, whose wheel differs by build."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    hashed = (ROOT / "constraints-hashes.txt").read_text()
    assert re.findall(r"^(\S+) --hash=sha256:[0-9a-f]{64}$", hashed, re.MULTILINE) == [
        pin for pin in pins if not pin.startswith(("#", "torch=="))
    ]
    assert "://" not in hashed
    (torch,) = (pin for pin in pins if pin.startswith("torch=="))
    assert f"pip install {torch}\n" in hashed


def test_file_that_is_not_the_hashed_one_is_not_installed(tmp_path):
    """A source package of a pinned name and version, found where the user has pip look."""
    name, version = "six", re.search(r"^six==(.+?) ", (ROOT / "constraints-hashes.txt").read_text(), re.MULTILINE)[1]
    (tmp_path / f"{name}-{version}.tar.gz").write_bytes(b"another file")
    options = ["--require-hashes", "--no-deps", "--no-index", "--find-links", tmp_path, "--target", tmp_path / "to"]
    (tmp_path / "wanted.txt").write_text(
        next(line for line in (ROOT / "constraints-hashes.txt").open() if line.startswith("six=="))
    )
    command = [sys.executable, "-m", "pip", "install", *options, "-r", tmp_path / "wanted.txt"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode and "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "to").exists()


def test_no_extra_asks_for_a_package_that_is_refused_or_only_built_from_source():
    text = (ROOT / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert not re.search(r"flash.attn|torchvision", text)
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for names in re.findall(r"pip install[^`\n]*\.\[([\w,-]+)\]", page.read_text()):
            assert set(names.split(",")) <= set(extras), f"{page.name} installs the extra {names}"
