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


def encode_screen(seed: int, image_format: str = "PNG", size: tuple[int, int] = (320, 192)) -> bytes:
    file = io.BytesIO()
    draw_screen(seed, *size).save(file, image_format)
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


AGENTNET_CODE = (
    ("Click on the GIMP icon in the dock", "pyautogui.click(x=0.25, y=0.5)"),
    ("Open the file by a double click", "pyautogui.doubleClick(x=0.1, y=0.2)"),
    ("Copy the selection", "pyautogui.hotkey(['ctrl', 'c'])"),
    ("Type the name into the search field", "pyautogui.write(message='liver')"),
    ("Scroll down the list", "pyautogui.scroll(-5)"),
    ("Move onto the handle", "pyautogui.moveTo(x=0.3, y=0.3)"),
    ("Drag the handle to the right", "pyautogui.dragTo(x=0.6, y=0.3, button='left')"),
    ("The goal is reached", "computer.terminate(status='success')"),
)


def build_agentnet_task(number: int, **changes: Any) -> dict[str, Any]:
    """Return one line of AgentNet, with the fields of its card."""
    steps = [
        {
            "index": i,
            "image": f"{number}-{i}.png",
            "value": {
                "observation": "A desktop.",
                "thought": "I should go on.",
                "action": said,
                "code": code,
                "last_step_correct": True,
                "last_step_redundant": False,
                "reflection": "It worked.",
            },
        }
        for i, (said, code) in enumerate(AGENTNET_CODE)
    ]
    row = {
        "task_id": f"agentnet-{number}",
        "instruction": f"Edit picture {number}",
        "task_completed": True,
        "alignment_score": 9,
        "efficiency_score": 8,
        "task_difficulty": 3,
        "natural_language_task": f"Could you edit picture {number}?",
        "actual_task": "Edit a picture in GIMP",
        "traj": steps,
    }
    return {**row, **changes}


def write_agentnet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write lines of AgentNet and, in `images`, every screenshot that they name."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(sorted({step["image"] for row in rows for step in row["traj"]})):
        (folder / "images" / name).write_bytes(encode_screen(500 + n))
    path = folder / "agentnet.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _mouse(kind: str, x: int, y: int, **more: Any) -> dict[str, Any]:
    position = {"width": x, "height": y}
    return {"action_type": "MouseAction", "mouse_action_type": kind, "mouse_position": position, **more}


def _keyboard(kind: str, **more: Any) -> dict[str, Any]:
    return {"action_type": "KeyboardAction", "keyboard_action_type": kind, **more}


SCREENAGENT_AREA = {"upper_left_position": {"width": 530, "height": 121},
                    "lower_right_position": {"width": 976, "height": 145}}  # fmt: skip
SCREENAGENT_RECORDS: tuple[tuple[str, list[dict[str, Any]]], ...] = (
    ("planning", [{"action_type": "PlanAction", "element": "Open the study"},
                  {"action_type": "PlanAction", "element": "Search for it"}]),
    ("acting", [_mouse("click", 543, 133, mouse_button="left", clickable_area=SCREENAGENT_AREA)]),
    ("evaluating", [{"action_type": "EvaluateSubTaskAction", "situation": "sub_task_success"}]),
    ("acting", [_mouse("double_click", 100, 200, mouse_button="left"),
                _keyboard("text", keyboard_text="liver"),
                _keyboard("press", keyboard_key="Return"),
                {"action_type": "MouseAction", "mouse_action_type": "scroll_down", "scroll_repeat": 3}]),
    ("evaluating", [{"action_type": "EvaluateSubTaskAction", "situation": "sub_task_success"}]),
)  # fmt: skip


def write_screenagent_session(folder: Path, name: str, **changes: Any) -> Path:
    """Write a session of ScreenAgent, with the fields of its files: one a screenshot, and a wrong answer."""
    session = folder / name
    (session / "images").mkdir(parents=True)
    for i, (status, actions) in enumerate(SCREENAGENT_RECORDS):
        stamp = f"2024-01-13_21-3{i}-31-146954"
        record = {
            "task_prompt": f"Find {name}",
            "send_prompt": "You can see a computer screen ...",
            "status": status,
            "LLM_response": "```json\n[]\n```",
            "LLM_response_editer": f"```json\n{json.dumps(actions)}\n```",
            "video_height": 768,
            "video_width": 1024,
            "saved_image_name": f"{stamp}.jpg",
            "actions": actions,
            **changes,
        }
        (session / f"{stamp}.json").write_text(json.dumps(record), encoding="utf-8")
        (session / "images" / f"{stamp}.jpg").write_bytes(encode_screen(600 + i, "JPEG", (320, 240)))
    wrong = {**record, "actions": [{"action_type": "EvaluateSubTaskAction", "situation": "need_retry"}]}
    (session / f"{stamp}_neg_eval.json").write_text(json.dumps(wrong), encoding="utf-8")
    return session


def build_call(**arguments: Any) -> str:
    """Return a tool call as Qwen's agents write it."""
    call = {"name": "computer_use", "arguments": arguments}
    return f"Action: Press what is named {arguments['action']}.\n<tool_call>\n{json.dumps(call)}\n</tool_call>"


CHAT_ANSWERS = (
    build_call(action="left_click", coordinate=[250, 500]),
    build_call(action="type", text="liver"),
    build_call(action="key", keys=["ctrl", "s"]),
    build_call(action="terminate", status="success"),
)


def build_chat_row(number: int, answers: tuple[str, ...] = CHAT_ANSWERS, **changes: Any) -> dict[str, Any]:
    """Return one conversation of role/content messages: a picture and an answer in turn."""
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    for i, answer in enumerate(answers):
        said = f"<image>Open study {number}" if i == 0 else "<image>"
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
    images = [f"shots/{number}-{i}.png" for i in range(len(answers))]
    return {"id": f"chat-{number}", "messages": messages, "images": images, **changes}


def write_chat(folder: Path, rows: list[dict[str, Any]], name: str = "chat.jsonl") -> Path:
    """Write rows as JSON Lines, and every file that their `images` name."""
    (folder / "shots").mkdir(parents=True, exist_ok=True)
    for n, image in enumerate(dict.fromkeys(image for row in rows for image in row["images"])):
        (folder / image).write_bytes(encode_screen(700 + n))
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
