"""Foreign data made on the spot for the tests: CareFlow task tables, pipeline folders, JSONL records."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STEPS = (
    ("CLICK", "Load Data"),
    ("TEXT", "File name"),
    ("ZOOM", "Slice view"),
    ("SEGMENT", "Threshold"),
    ("COMPLETE", "Task"),
)


def draw_screen(seed: int, width: int = 320, height: int = 192) -> Image.Image:
    """Return a screen of coloured blocks, no two seeds alike."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1))


def encode_screen(seed: int, image_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    draw_screen(seed).save(file, image_format)
    return file.getvalue()


def build_trajectory(n_steps: int = 5) -> list[dict[str, Any]]:
    """Return the last `n_steps` of `STEPS` as CareFlow writes them."""
    return [
        {
            "step": i,
            "action": action,
            "target": target,
            "screenshot": f"shot{i}.png",
            "note": f"{target} is ready" if i % 2 else f"Step {i}",
            "bbox": [10, 20, 90, 40] if i == 1 else [],
        }
        for i, (action, target) in enumerate(STEPS[-n_steps:], start=1)
    ]


def build_careflow_row(number: int, n_steps: int = 5, **changes: Any) -> dict[str, Any]:
    """Return one task of a CareFlow table: the published columns, images as bytes."""
    goal = f"Load scan {number} and segment the tumour in it"
    data = {
        "id": number,
        "initial_state": "open",
        "instruction": goal,
        "trajectory": build_trajectory(n_steps),
        "outputs": {},
    }
    row = {
        "serial_number": number,
        "task_id": f"slicer-{number}",
        "instruction": goal,
        "image_sequence": json.dumps([f"shot{i}.png" for i in range(1, n_steps + 1)]),
        "json_data": json.dumps(data),
        "num_steps": n_steps,
        "num_images": n_steps,
        "images": [encode_screen(10 * number + i) for i in range(n_steps)],
    }
    return {**row, **changes}


def build_record(
    number: int, action: str, target: str, image_path: str = "", *, label: bool = True, pasted: bool = False
) -> dict[str, Any]:
    """Return one `Step k` of the pipeline; `pasted` is what it writes after two failures."""
    truth = {
        "action": action,
        "target": target,
        "original_step_data": {"step": number, "action": action, "target": target, "note": f"Step {number}"},
    }
    reason = "Previous step completed. Now proceeding."
    short_term = {} if number == 1 else {"last_action": f"{action} on {target}", "last_lesson": "none"}
    if pasted:
        reason = (
            f"Model predictions failed after multiple attempts. Using ground truth action {action} to continue task "
            "progress."
        )
        short_term = {"last_action": "wrong guess", "last_lesson": f"Expected action: {action}"}
    predicted = {"action": action, "target": target, "coords": [100, 100] if pasted else [12, 30]}
    return {
        f"Step {number}": {
            "Grounding": {"ground_truth": truth if label else None},
            "Short Term": short_term,
            "Long Term": {},
            "Reason": reason,
            "Predicted": {"predicted_action": predicted},
            "image_info": {
                "step_num": number,
                "image_data_uri": f"[Saved to disk - {image_path}]",
                "image_path": f"OOD/images/{image_path}",
                "image_path_absolute": f"/home/somebody/OOD/images/{image_path}",
            },
        }
    }


def write_pipeline_task(folder: Path, number: int, records: list[dict[str, Any]], **metadata: Any) -> Path:
    """Write a task file and, in `images`, a screenshot for every record."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for record in records:
        k = next(iter(record)).split()[1]
        name = f"3DSlicer_endtoend{number:03d}_step{k}.png"
        (folder / "images" / name).write_bytes(encode_screen(100 * number + int(k)))
    content = {
        "metadata": {"user_goal": f"Segment scan {number}", "finished": True, "total_steps": len(records), **metadata},
        "steps": records,
    }
    path = folder / f"3DSlicer_endtoend_{number:03d}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def build_pipeline_records(number: int, n_steps: int = 5) -> list[dict[str, Any]]:
    return [
        build_record(i, action, target, f"3DSlicer_endtoend{number:03d}_step{i}.png")
        for i, (action, target) in enumerate(STEPS[-n_steps:], start=1)
    ]


def as_data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
