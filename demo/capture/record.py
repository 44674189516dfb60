"""Record demonstration tasks from running software; run again, it goes on where it stopped.

    python -m demo.capture.record --application orthanc --out raw/orthanc
    python -m demo.capture.record --application ohif --out raw/ohif

Needs what demo/clinic/start.sh installs. A task that fails is tried once more, then reported and left out.
"""

import argparse
import json
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Error, sync_playwright

from demo.capture import workflows_ohif, workflows_orthanc
from demo.capture.recorder import Recorder, SuspectStep, Task
from demo.clinic import ohif_page, orthanc_page
from demo.clinic.browser import Browser
from demo.clinic.stack import Stack

PORT_BASE = {"orthanc": 8100, "ohif": 8200}
PROGRAMS = {"orthanc": (workflows_orthanc, orthanc_page), "ohif": (workflows_ohif, ohif_page)}


def main() -> None:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the stack is taken down too
    workflows, _ = PROGRAMS[args.application]
    tasks = [task for task in take_in_turns(workflows.build_tasks()) if args.only in (None, task.workflow)]
    tasks = tasks[: args.limit]
    todo = [task for task in tasks if not (args.out / f"{task.task_id}.json").exists()]
    print(f"{workflows.APPLICATION}: {len(tasks)} tasks, {len(tasks) - len(todo)} recorded already", flush=True)
    failed = record_tasks(todo, args)
    print(f"{len(todo) - len(failed)} recorded, {len(failed)} left out: {', '.join(failed) or 'none'}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--application", choices=["orthanc", "ohif"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of raw recordings, one per application")
    parser.add_argument("--only", metavar="WORKFLOW", help="record the tasks of one workflow")
    parser.add_argument("--limit", type=int, metavar="N", help="record the first N tasks (workflows take turns)")
    parser.add_argument(
        "--ohif_dist", type=Path, help="folder of OHIF's built application, where it is not in outputs/clinic"
    )
    return parser.parse_args()


def take_in_turns(tasks: list[Task]) -> list[Task]:
    """Order tasks so that workflows take turns: a part of the recordings then holds something of each."""
    seen: dict[str, int] = {}
    ranks = []
    for task in tasks:
        ranks.append(seen.setdefault(task.workflow, 0))
        seen[task.workflow] += 1
    return [task for _, task in sorted(zip(ranks, tasks, strict=True), key=lambda pair: pair[0])]


def record_tasks(tasks: list[Task], args: argparse.Namespace) -> list[str]:
    """Record every task from the known store; return the ids of those that failed twice."""
    failed = []
    stack = Stack(args.out / "stack", args.ohif_dist, PORT_BASE[args.application])
    with TemporaryDirectory(prefix="capture_profile_") as profile, sync_playwright() as playwright:
        try:
            stack.start()
            browser = Browser(playwright, Path(profile), [])
            write_versions(args.out, stack, browser)
            for number, task in enumerate(tasks, 1):
                began = time.monotonic()
                problem = record_with_retry(task, stack, browser, args)
                if problem:
                    failed.append(task.task_id)
                result = problem or "recorded"
                print(f"{number}/{len(tasks)} {task.task_id} {time.monotonic() - began:.0f} s {result}", flush=True)
            browser.close()
        finally:
            stack.stop()
    return failed


def record_with_retry(task: Task, stack: Stack, browser: Browser, args: argparse.Namespace) -> str | None:
    """Record one task, twice if need be; return what was wrong the second time, or None."""
    problem = None
    for _ in range(2):
        try:
            record_task(task, stack, browser, args)
            problem = None
        except (Error, SuspectStep, ValueError) as error:
            problem = f"FAILED: {' '.join(str(error).split())[:300]}"
        if task.changes_store or problem:
            stack.reset()
        if problem is None:
            break
    return problem


def record_task(task: Task, stack: Stack, browser: Browser, args: argparse.Namespace) -> None:
    """Play one task in a fresh page."""
    workflows, program = PROGRAMS[args.application]
    page = browser.open_page([stack.orthanc_url, stack.ohif_url])
    program.open_start(page, stack)
    recorder = Recorder(page, args.out, workflows.APPLICATION, program)
    recorder.start(task.task_id, task.workflow, task.goal, task.subtasks, task.new_workflow)
    task.play(recorder)
    recorder.finish()


def write_versions(out: Path, stack: Stack, browser: Browser) -> None:
    """Write what software was recorded, for build.py's manifest."""
    versions = {
        "Chromium": browser.context.browser.version,
        "OHIF": json.loads((stack.ohif_dist.parent / "package.json").read_text())["version"],
        "Orthanc": stack.get("/system")["Version"],
        "playwright": version("playwright"),
        "pydicom": version("pydicom"),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "versions.json").write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
