"""Record demonstration tasks from running software; run again, it goes on where it stopped.

    python -m demo.capture.record --application orthanc --out raw/orthanc
    python -m demo.capture.record --application ohif --out raw/ohif --ohif_dist package/dist

Needs what stack.py needs, and Chromium. A task that fails is tried once more, then reported and left out.
"""

import argparse
import importlib
import json
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import requests
from playwright.sync_api import BrowserContext, Error, Playwright, sync_playwright

from demo.capture.recorder import SCREEN, Recorder, SuspectStep, Task
from demo.clinic.stack import Stack

CHROMIUM = "/usr/bin/chromium"
# WebGL without a GPU (swiftshader), and nothing that calls out or updates.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--font-render-hinting=none",
]
FORGOTTEN = "cookies,local_storage,indexeddb,cache_storage,service_workers"
PORT_BASE = {"orthanc": 8100, "ohif": 8200}


def main() -> None:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the stack is taken down too
    workflows = importlib.import_module(f"demo.capture.workflows_{args.application}")
    tasks = [task for task in take_in_turns(workflows.build_tasks()) if args.only in (None, task.workflow)]
    tasks = tasks[: args.limit]
    todo = [task for task in tasks if not (args.out / f"{task.task_id}.json").exists()]
    print(f"{workflows.APPLICATION}: {len(tasks)} tasks, {len(tasks) - len(todo)} recorded already", flush=True)
    failed = record_tasks(todo, workflows, args)
    print(f"{len(todo) - len(failed)} recorded, {len(failed)} left out: {', '.join(failed) or 'none'}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--application", choices=["orthanc", "ohif"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of raw recordings, one per application")
    parser.add_argument("--only", metavar="WORKFLOW", help="record the tasks of one workflow")
    parser.add_argument("--limit", type=int, metavar="N", help="record the first N tasks (workflows take turns)")
    parser.add_argument("--ohif_dist", type=Path, help="folder of OHIF's built application")
    args = parser.parse_args()
    if args.application == "ohif" and args.ohif_dist is None:
        parser.error("--application ohif needs --ohif_dist")
    return args


def take_in_turns(tasks: list[Task]) -> list[Task]:
    """Order tasks so that workflows take turns: a part of the recordings then holds something of each."""
    seen: dict[str, int] = {}
    ranks = []
    for task in tasks:
        ranks.append(seen.setdefault(task.workflow, 0))
        seen[task.workflow] += 1
    return [task for _, task in sorted(zip(ranks, tasks, strict=True), key=lambda pair: pair[0])]


def record_tasks(tasks: list[Task], workflows: ModuleType, args: argparse.Namespace) -> list[str]:
    """Record every task from the known store; return the ids of those that failed twice."""
    failed = []
    ohif_dist = args.ohif_dist if args.application == "ohif" else None
    with (
        Stack(ohif_dist, PORT_BASE[args.application]) as stack,
        TemporaryDirectory(prefix="capture_profile_") as profile,
        sync_playwright() as playwright,
    ):
        context = open_browser(playwright, profile)
        write_versions(args.out, stack, context, ohif_dist)
        for number, task in enumerate(tasks, 1):
            began = time.monotonic()
            problem = record_with_retry(task, workflows, stack, context, args.out)
            if problem:
                failed.append(task.task_id)
            result = problem or "recorded"
            print(f"{number}/{len(tasks)} {task.task_id} {time.monotonic() - began:.0f} s {result}", flush=True)
        context.close()
    return failed


def open_browser(playwright: Playwright, profile: str) -> BrowserContext:
    """Start Chromium on a profile on disk: with its code cache OHIF starts in a third of the time."""
    width, height = SCREEN
    return playwright.chromium.launch_persistent_context(
        profile,
        executable_path=CHROMIUM,
        args=CHROMIUM_FLAGS,
        viewport={"width": width, "height": height},
        locale="en-US",
        timezone_id="UTC",
        reduced_motion="reduce",
    )


def record_with_retry(
    task: Task, workflows: ModuleType, stack: Stack, context: BrowserContext, out: Path
) -> str | None:
    """Record one task, twice if need be; return what was wrong the second time, or None."""
    problem = None
    for _ in range(2):
        try:
            record_task(task, workflows, stack, context, out)
            problem = None
        except (Error, SuspectStep, ValueError) as error:
            problem = f"FAILED: {' '.join(str(error).split())[:300]}"
        if task.changes_store or problem:
            stack.reset()
        if problem is None:
            break
    return problem


def record_task(task: Task, workflows: ModuleType, stack: Stack, context: BrowserContext, out: Path) -> None:
    """Play one task in a fresh page that remembers nothing of the tasks before it."""
    page = context.new_page()
    try:
        session = context.new_cdp_session(page)
        for origin in (stack.orthanc_url, stack.ohif_url):
            session.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": FORGOTTEN})
        page.set_default_timeout(15_000)
        workflows.open_start(page, stack)
        recorder = Recorder(page, out, workflows.APPLICATION, workflows.is_busy)
        recorder.start(task.task_id, task.workflow, task.goal, task.subtasks, task.new_workflow)
        task.play(recorder)
        recorder.finish()
    finally:
        for opened in context.pages[1:]:  # the first is the empty page that keeps the browser open
            opened.close()


def write_versions(out: Path, stack: Stack, context: BrowserContext, ohif_dist: Path | None) -> None:
    """Write what software was recorded, for build.py's manifest."""
    versions = {
        "Chromium": context.browser.version,
        "Orthanc": requests.get(f"{stack.orthanc_url}/system", timeout=10).json()["Version"],
        "playwright": version("playwright"),
        "pydicom": version("pydicom"),
    }
    if ohif_dist:
        versions["OHIF"] = json.loads((ohif_dist.parent / "package.json").read_text())["version"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "versions.json").write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
