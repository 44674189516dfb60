"""Put one-line faults into a copy of the product, one at a time, and say which the tests notice.

python tests/tools/put_faults.py [NAME ...]   # names of tests/tools/faults.toml; all without any
python tests/tools/put_faults.py --fast [NAME ...]   # without the tests that are marked slow

Each fault names the file, the line as it is, the faulty one, what a user would get, and the tests to run: files, or
`file.py::test` of a long one. The fast ones run first, and the first that fails ends a fault's run. At the end those
that noticed run once more on the code as it is, where they must pass. The working tree is never touched. Exits with 1
where a fault is not noticed, or no longer fits its file.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAULTS = Path(__file__).with_name("faults.toml")
LINKED = ("demo/data/images", "demo/base")  # large, and no fault is put there
LONGEST_S = 900  # for the tests of one fault, all fast or all slow ones
HANGING = f"tests that do not end in {LONGEST_S} s"
FAILED = ".pytest_cache/v/cache/lastfailed"  # where pytest notes the tests that failed
NO_TESTS = 5  # pytest's exit status where none is left by its marks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="faults to put in [all]")
    parser.add_argument("--fast", action="store_true", help="leave out the tests that are marked slow")
    options = parser.parse_args()
    faults = tomllib.loads(FAULTS.read_text(encoding="utf-8"))
    if unknown := sorted(set(options.names) - set(faults)):
        sys.exit(f"found no fault {', '.join(unknown)} in {FAULTS.name}")
    chosen = options.names or list(faults)
    marks = ["not slow"] if options.fast else ["not slow", "slow"]
    noticed_by: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_tree(Path(folder) / "copy")
        for name in chosen:
            is_noticed, verdict = try_fault(copy, marks, **faults[name])
            if is_noticed:
                noticed_by[name] = verdict
            print(f"{name}: {'caught by ' if is_noticed else ''}{verdict}", flush=True)
        tests = sorted({test for test in noticed_by.values() if test != HANGING})
        done = run_tests(copy, tests) if tests else None
    if done and done.returncode != 0:
        print(done.stdout)
        sys.exit("without any fault these tests must pass: what they noticed is no fault of the list")
    n_missed = len(chosen) - len(noticed_by)
    print(f"{len(chosen)} faults, {n_missed} not noticed")
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


def try_fault(
    copy: Path, marks: list[str], file: str, line: str, fault: str, gets: str, tests: list[str]
) -> tuple[bool, str]:
    """Say whether the tests notice one fault, and by which, or what a user gets; the copy is as it was afterwards."""
    path = copy / file
    text = path.read_text(encoding="utf-8")
    if text.count(line) != 1:
        return False, f"does not fit: {file} holds the line {text.count(line)} times"
    path.write_text(text.replace(line, fault), encoding="utf-8")
    try:
        for mark in marks:
            done = run_tests(copy, [f"tests/{test}" for test in tests], "-x", "-m", mark)
            if done is None:
                return True, HANGING
            if done.returncode == 1:
                return True, next(iter(json.loads((copy / FAILED).read_text(encoding="utf-8"))))
            if done.returncode not in (0, NO_TESTS):
                return False, f"tests did not run (pytest ended with {done.returncode})\n{done.stdout[-2000:]}"
    finally:
        path.write_text(text, encoding="utf-8")
    return False, f"NOT noticed: {gets}"


def run_tests(copy: Path, tests: list[str], *options: str) -> subprocess.CompletedProcess[str] | None:
    """Run tests of the copy; None where they take too long, with all that they started ended."""
    command = [sys.executable, "-m", "pytest", "-q", "--cache-clear", *options, *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    with subprocess.Popen(
        command,
        cwd=copy,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None
    return subprocess.CompletedProcess(command, process.returncode, output)


if __name__ == "__main__":
    main()
