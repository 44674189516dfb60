"""Small trajectory files made on the spot for the tests: real CSV text, real PNG files."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sft.agent import AgentConfig

COLUMNS = ("Task_id", "Slide_number", "Image_id", "Instruction", "Output", "Grounding", "Application", "Group")
# Small screens and budgets: a prompt is some 300 tokens, 60 of them the screenshot.
TINY_AGENT = AgentConfig(
    min_pixels=16_384, max_pixels=65_536, memory_budget_chars=400, max_prompt_tokens=2048, max_answer_tokens=160
)

Row = dict[str, str]


def build_output(action: str, target: str, done: Sequence[str] = (), **arguments: Any) -> str:
    """Return a compact `Output` cell with the memory after the action."""
    memory = {
        "short_term": {"last_action": action, "last_target": target},
        "long_term": {"completed_subtasks": list(done)},
    }
    return json.dumps({"action": action, "target": target, **arguments, **memory})


def build_task(task_id: str, goal: str, n_steps: int = 3, n_images: int = 2, offset: int = 0) -> list[Row]:
    """Return the rows of one task: different actions on `n_images` screenshots, COMPLETE at the end."""
    cycle = [
        ("CLICK", "Search", {}),
        ("TEXT", "Patient Name", {"text": goal[-6:]}),
        ("SCROLL", "Study list", {"direction": "down"}),
        ("ZOOM", "Image", {"direction": "in"}),
        ("SEGMENT", "Length", {}),
    ]
    rows, done = [], []
    for i in range(n_steps):
        action, target, arguments = ("COMPLETE", "", {}) if i == n_steps - 1 else cycle[(offset + i) % len(cycle)]
        done = [*done, f"{action} {target}".strip()]
        grounding = {"bbox": [10, 20, 90, 40], "screen": [320, 192], "application": "Viewer"}
        rows.append(
            {
                "Task_id": task_id,
                "Slide_number": str(i + 1),
                "Image_id": f"screens/{(offset + i) % n_images}.png",
                "Instruction": goal,
                "Output": build_output(action, target, done, **arguments),
                "Grounding": json.dumps(grounding),
                "Application": "Viewer" if offset % 2 == 0 else "Archive",
                "Group": "known" if offset % 3 else "new",
            }
        )
    return rows


def write_screenshots(folder: Path, n_images: int = 2, width: int = 320, height: int = 192) -> None:
    """Write `screens/0.png`, `1.png`, ...: each of blocks of colour, no two alike."""
    (folder / "screens").mkdir(parents=True, exist_ok=True)
    for i in range(n_images):
        blocks = np.random.default_rng(i).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1)).save(folder / "screens" / f"{i}.png")


def format_csv(rows: Sequence[Mapping[str, str]], columns: Sequence[str] = COLUMNS, **dialect: Any) -> str:
    """Return rows as CSV text."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, extrasaction="ignore", **{"lineterminator": "\n", **dialect})
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write_trajectories(folder: Path, rows: Sequence[Mapping[str, str]], name: str = "tasks.csv") -> Path:
    """Write rows and the screenshots they name; return the CSV's path."""
    write_screenshots(folder)
    path = folder / name
    path.write_text(format_csv(rows), encoding="utf-8", newline="")
    return path


def build_tasks(n_tasks: int, n_steps: int = 3, first: int = 1) -> list[Row]:
    """Return the rows of several tasks `t1`, `t2`, ..., each with its own goal."""
    numbers = range(first, first + n_tasks)
    return [row for i in numbers for row in build_task(f"t{i}", f"Open the study of DOE{i:03d}", n_steps, 2, i)]
