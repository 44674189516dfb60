"""Write constraints-hashes.txt: the pins of constraints.txt with the SHA-256 of the file that pip installs for each.

python scripts/hash_constraints.py

For the platform it is run on, which has to be that of the tests: Python 3.11, Linux, x86-64. torch is left out: its
wheel differs by build (CPU, CUDA), and the CUDA build pins further packages. Nothing is installed; pip asks the index
that it is set up with, so run it where that is the public one.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLATFORM = ("3.11", "Linux", "x86_64")
LEFT_OUT = "torch"
HEAD = """\
# The pins of constraints.txt with the SHA-256 of each file, for Python 3.11 on Linux (x86-64). Without torch, whose
# wheel differs by build (CPU, CUDA): install it first. Written by scripts/hash_constraints.py.
#     pip install torch==2.13.0
#     pip install --no-deps --require-hashes -r constraints-hashes.txt
#     pip install --no-deps -e .
"""


def main() -> None:
    found = (".".join(platform.python_version_tuple()[:2]), platform.system(), platform.machine())
    if found != PLATFORM:
        sys.exit(f"found {' '.join(found)}; expected {' '.join(PLATFORM)}, where the tests run")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#") and line.partition("==")[0] != LEFT_OUT]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--ignore-installed", "--no-deps", "--no-build-isolation", "--quiet"]
        pip = [sys.executable, "-m", "pip", "install", *options, "--report", str(report), *pins]
        subprocess.run(pip, check=True)
        chosen = json.loads(report.read_text(encoding="utf-8"))["install"]
    hashes = {
        (normalise(one["metadata"]["name"]), one["metadata"]["version"]): one["download_info"]["archive_info"]
        for one in chosen
    }
    text = HEAD
    for pin in pins:
        name, _, version = pin.partition("==")
        text += f"{pin} --hash=sha256:{hashes[normalise(name), version]['hashes']['sha256']}\n"
    (ROOT / "constraints-hashes.txt").write_text(text, encoding="utf-8")


def normalise(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main()
