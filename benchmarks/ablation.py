"""Collect what benchmarks/ablation.sh has measured: what each part is worth, and programs that were held out.

python benchmarks/ablation.py outputs/ablation [--json FILE]

Rates are in percent; brackets hold 95 % intervals over tasks.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, publish
from sft.rates import read_rate

HELD_OUT = "without *"  # the folders of programs that were held out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what benchmarks/ablation.sh writes into")
    parser.add_argument("--json", type=Path, help="file to write both tables to")
    arguments = parser.parse_args()
    machine = describe_machine() | {"threads": 1}
    ablations = json.loads((arguments.folder / "parts/ablations.json").read_text(encoding="utf-8"))
    tables = {
        "What a part is worth": [tell_variant(row) for row in ablations["rows"]],
        "Programs that were held out": list(tell_held_out(arguments.folder)),
    }
    for title, rows in tables.items():
        publish(title, rows, machine, None)
    if arguments.json:
        content = {"title": "benchmarks/ablation.sh", "machine": machine, "tables": tables, "ablations": ablations}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def tell_variant(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a variant's scores, and what it has above the model with all parts."""
    told: dict[str, Any] = {"variant": row["variant"]}
    for name, matcher, measure in (("SWA", "action", "swa"), ("with_target", "action_target", "swa")):
        scores = row[matcher][measure]
        told[name] = read_rate(scores["a"]).format()
        told[f"{name}_above_full"] = read_rate(scores["difference"]).format(signed=True)
        told[f"{name}_by_seed"] = ", ".join(f"{100 * value:.1f}" for value in scores["repeats"])
    return told | {"TA": read_rate(row["action"]["ta"]["a"]).format()}


def tell_held_out(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the scores on seen and unseen programs of each model that was trained without one."""
    for path in sorted(folder.glob(f"{HELD_OUT}/elements */rollout/metrics.json")):
        elements, split = path.parents[1].name, path.parents[2].name
        for label, part in json.loads(path.read_text(encoding="utf-8"))["per_familiarity"].items():
            yield {
                "trained": split,
                "elements": {"elements true": "yes", "elements false": "no"}[elements],
                "test": label,
                "tasks": part["n_tasks"],
                "steps": part["n_steps"],
                "SWA": read_rate(part["matchers"]["action"]["swa"]).format(),
                "above_always_CLICK": read_rate(part["over_majority"]).format(signed=True),
                "with_target": read_rate(part["matchers"]["action_target"]["swa"]).format(),
                "TA": read_rate(part["matchers"]["action"]["ta"]).format(),
            }


if __name__ == "__main__":
    main()
