"""Put one-line faults into a copy of the product, one at a time, and say which the tests notice.

python tests/tools/put_faults.py [NAME ...]   # names of tests/tools/faults.toml; all without any

Each fault names the file, the line as it is, the faulty one, what a user would get, and the test files to run. The
working tree is never touched. Exits with 1 where a fault is not noticed, or no longer fits its file.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAULTS = Path(__file__).with_name("faults.toml")
LINKED = ("demo/data/images", "demo/base")  # large, and no fault is put there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="faults to put in [all]")
    names = parser.parse_args().names
    faults = tomllib.loads(FAULTS.read_text(encoding="utf-8"))
    if unknown := sorted(set(names) - set(faults)):
        sys.exit(f"found no fault {', '.join(unknown)} in {FAULTS.name}")
    n_missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_tree(Path(folder) / "copy")
        for name in names or faults:
            verdict = try_fault(copy, **faults[name])
            n_missed += not verdict.startswith("caught")
            print(f"{name}: {verdict}", flush=True)
    print(f"{len(names or faults)} faults, {n_missed} not noticed")
    sys.exit(min(n_missed, 1))


def copy_tree(copy: Path) -> Path:
    """Copy what git knows of, and what is new; large folders are linked."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in listed:
        if not name.startswith(tuple(f"{folder}/" for folder in LINKED)) and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    for name in LINKED:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).symlink_to(ROOT / name)
    return copy


def try_fault(copy: Path, file: str, line: str, fault: str, gets: str, tests: list[str]) -> str:
    """Return the verdict on one fault; the copy is as it was afterwards."""
    path = copy / file
    text = path.read_text(encoding="utf-8")
    if text.count(line) != 1:
        return f"does not fit: {file} holds the line {text.count(line)} times"
    path.write_text(text.replace(line, fault), encoding="utf-8")
    try:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            *(f"tests/{t}" for t in tests),
        ]
        done = subprocess.run(
            command, cwd=copy, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(copy)}
        )
    finally:
        path.write_text(text, encoding="utf-8")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return f"caught by {failed[1]}"
    return (
        "NOT noticed: " + gets if done.returncode == 0 else f"tests did not run (pytest ended with {done.returncode})"
    )


if __name__ == "__main__":
    main()
