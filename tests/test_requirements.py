"""What `pip install -c constraints.txt -e .` asks for can be had beside any build of torch."""

import re
import tomllib

from conftest import ROOT


def _constrained():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {line.partition("==")[0].lower().replace("_", "-") for line in lines if not line.startswith("#")}


def test_constraints_leave_to_torch_what_its_cuda_build_pins():
    """PyPI's torch 2.13.0 wants triton==3.7.1 and CUDA libraries to the digit: a second pin cannot be met."""
    pinned = {n for n in _constrained() if n.startswith(("triton", "nvidia-", "cuda-"))} - {"nvidia-ml-py"}
    assert pinned == set()


def test_no_extra_asks_for_a_package_that_is_refused_or_only_built_from_source():
    text = (ROOT / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert not re.search(r"flash.attn|torchvision", text)
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for names in re.findall(r"pip install[^`\n]*\.\[([\w,-]+)\]", page.read_text()):
            assert set(names.split(",")) <= set(extras), f"{page.name} installs the extra {names}"
