"""The worklist of docs/live.md, its text taken from there, and recordings of it made by driving it."""

import csv
import json
import re
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conftest import ROOT
from trajectory_samples import COLUMNS, build_output

from sft.actions import Action

EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/live.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
WORKLIST, DRIVE = EXAMPLES


def load_worklist(name: str = "worklist", more: str = "") -> types.ModuleType:
    """Run the text of docs/live.md as a module that `--environment` can name; `more` is appended to it."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(WORKLIST + more, module.__dict__)
    return module


def label(study: str, text: str) -> list[Action]:
    """Return the actions that label a study."""
    return [
        Action("CLICK", study),
        Action("TEXT", "Label", {"text": text}),
        Action("CLICK", "Save"),
        Action("CLICK", "Close"),
        Action("COMPLETE", ""),
    ]


TASKS: dict[str, tuple[str, list[Action]]] = {
    "head": ("Label CT head as urgent", label("CT head", "urgent")),
    "knee": ("Label MR knee as seen", label("MR knee", "seen")),
    "head2": ("Label CT head as seen", label("CT head", "seen")),
}


def record(folder: Path, tasks: Mapping[str, tuple[str, Sequence[Action]]] = TASKS, name: str = "tasks.csv") -> Path:
    """Carry tasks out in the worklist and write what was seen before each action; return the CSV's path."""
    worklist = load_worklist("recorded_worklist").Worklist(folder)
    (folder / "recorded").mkdir(parents=True, exist_ok=True)
    rows = []
    for task_id, (goal, actions) in tasks.items():
        observation = worklist.reset(types.SimpleNamespace(instruction=goal))
        for i, action in enumerate(actions):
            image_id = f"recorded/{task_id}_{i}.png"
            (folder / image_id).write_bytes(observation.screenshot)
            done = [f"{a.kind} {a.target}".strip() for a in actions[: i + 1]]
            row: dict[str, Any] = {
                "Task_id": task_id,
                "Slide_number": str(i + 1),
                "Image_id": image_id,
                "Instruction": goal,
                "Output": build_output(action.kind, action.target, done, **action.arguments),
                "Grounding": json.dumps({}),
                "Application": "Worklist" if "head" in task_id else "Archive",
                "Group": "known" if task_id != "head2" else "new",
            }
            rows.append(row)
            if action.kind != "COMPLETE":
                observation = worklist.step(action).observation
    path = folder / name
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    worklist.close()
    return path
