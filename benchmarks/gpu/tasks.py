"""Tasks on made-up screenshots of any size, as the CSV a user would bring. Used by the GPU benchmarks."""

import csv
import json
from pathlib import Path
from typing import Any

COLUMNS = ("Task_id", "Slide_number", "Image_id", "Instruction", "Output", "Grounding")
BLOCK = 40  # pixels; screens are mostly plain
SUBTASKS = ("open study", "zoom in", "scroll to the slice", "measure the lesion", "track the measurement", "zoom out")


def write_tasks(
    folder: Path, screen_wh: tuple[int, int], n_tasks: int, n_steps: int, steps_a_screenshot: int = 1
) -> Path:
    """Write `n_tasks` tasks of `n_steps` and their screenshots; return the CSV.

    The same step of `steps_a_screenshot` tasks shows one screenshot. Goals and memories differ in length, so that
    hardly two batches have one shape, as with recorded tasks.
    """
    rows = []
    for task in range(n_tasks):
        for step in range(n_steps):
            image = f"screen_{task // steps_a_screenshot}_{step}.png"
            if task % steps_a_screenshot == 0:
                _draw(folder / image, screen_wh, seed=len(rows))
            output, grounding = _answer(task, step, n_steps), {"bbox": [8, 8, 90, 40], "screen": list(screen_wh)}
            rows.append((f"t{task}", step + 1, image, _goal(task), json.dumps(output), json.dumps(grounding)))
    path = folder / "tasks.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def _draw(path: Path, screen_wh: tuple[int, int], seed: int) -> None:
    import numpy as np
    from PIL import Image

    width, height = screen_wh
    colours = np.random.default_rng(seed).integers(
        0, 256, (-(-height // BLOCK), -(-width // BLOCK), 3), dtype=np.uint8
    )
    pixels = np.kron(colours, np.ones((BLOCK, BLOCK, 1), dtype=np.uint8))[:height, :width]
    Image.fromarray(pixels).save(path, compress_level=1)


def _goal(task: int) -> str:
    parts = [f"open study {task} of patient DOE^J{task}", "zoom in twice", "measure the lesion with the Length tool"]
    parts += [f"annotate slice {3 * i} as finding {i}" for i in range(task % 5)]
    return ", then ".join(parts)


def _answer(task: int, step: int, n_steps: int) -> dict[str, Any]:
    is_last, n_done = step + 1 == n_steps, (step + 1) * len(SUBTASKS) // n_steps
    action, target = ("COMPLETE", "task") if is_last else ("CLICK", f"Length {task}.{step}")
    return {
        "action": action,
        "target": target,
        "short_term": {"last_action": action, "last_target": target, "last_observation": f"{target} active"},
        "long_term": {"completed_subtasks": SUBTASKS[:n_done], "remaining_subtasks": SUBTASKS[n_done:]},
    }
