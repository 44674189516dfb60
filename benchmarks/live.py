"""Collect what benchmarks/live.sh has measured: a model, the recordings and an empty policy in the running programs.

python -m benchmarks.live outputs/live [--json FILE]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, publish
from sft.rates import read_rate

OF_A_RUN = ("policy", "model_sha256", "environment", "test_csv_sha256", "started", "finished", "versions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what benchmarks/live.sh writes into")
    parser.add_argument("--json", type=Path, help="file to write all of it to")
    arguments = parser.parse_args()
    machine = describe_machine()
    runs = {name: read_run(arguments.folder / name) for name in ("model", "replay", "empty")}
    proved = {part: read_proofs(arguments.folder / f"proved_{part}.txt") for part in ("test", "val")}
    rows = [
        {
            "policy": name,
            "tasks": run["metrics"]["n_tasks"],
            "rate": read_rate(run["metrics"]["success"]).format(),
            **run["metrics"]["results"],
        }
        for name, run in runs.items()
    ]
    publish("In the running programs", rows, machine, None)
    for part, proofs in proved.items():
        print(f"{part}: {proofs['summary']}")
    if arguments.json:
        content = {"title": "benchmarks/live.sh", "machine": machine, **runs["model"]}
        content |= {name: run for name, run in runs.items() if name != "model"} | {"proved": proved}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_run(folder: Path) -> dict[str, Any]:
    """Return what a live run was of, and its metrics."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {"run": {name: run[name] for name in OF_A_RUN if name in run}, "metrics": metrics}


def read_proofs(path: Path) -> dict[str, Any]:
    """Return the last line of demo.clinic.prove, and the lines of tasks that are not proved."""
    *lines, summary = path.read_text(encoding="utf-8").splitlines()
    return {"summary": summary, "not_proved": [line for line in lines if " proved; " not in line]}


if __name__ == "__main__":
    main()
