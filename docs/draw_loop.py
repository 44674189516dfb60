"""Draw docs/loop.svg, one step of a recorded task as the agent sees it: python docs/draw_loop.py

Goal, screenshot, memory and answer are those of step 7 of `ohif_delete_region_02` in demo/data/test.csv. The picture
holds its screenshot and has a light and a dark form; the reader's system chooses one.
"""

import base64
import csv
import io
import json
import textwrap
from html import escape
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TASK, STEP = "ohif_delete_region_02", 7

WIDTH, HEIGHT = 800, 562
LEFT, RIGHT, TOP = 20, 508, 72  # the two columns, and where their cards begin
LEFT_WIDTH, RIGHT_WIDTH = 332, 272
MODEL_X, MODEL_Y, MODEL_WIDTH, MODEL_HEIGHT = 394, 222, 76, 116

STYLE = """
  svg { --panel: #f6f8fa; --card: #ffffff; --line: #d1d9e0; --text: #1f2328; --muted: #59636e;
        --screen: #0969da; --model: #8250df; --memory: #bc4c00; }
  @media (prefers-color-scheme: dark) {
    svg { --panel: #161b22; --card: #0d1117; --line: #3d444d; --text: #f0f6fc; --muted: #9da7b3;
          --screen: #58a6ff; --model: #bc8cff; --memory: #f0883e; }
  }
  text { font-family: "Segoe UI", Helvetica, Arial, sans-serif; font-size: 13px; fill: var(--text); }
  .muted { fill: var(--muted); }
  .name { font-weight: 600; }
  .heading { font-size: 15px; font-weight: 600; }
  .action { font-size: 20px; font-weight: 700; }
  .card { fill: var(--card); stroke: var(--line); }
  .arrow { fill: none; stroke-width: 2; }
"""


def main() -> None:
    with (ROOT / "demo/data/test.csv").open(encoding="utf-8", newline="") as file:
        steps = [row for row in csv.DictReader(file) if row["Task_id"] == TASK]
    before, answer = (json.loads(steps[i]["Output"]) for i in (STEP - 2, STEP - 1))
    goal = textwrap.wrap(steps[0]["Instruction"], 54)
    screenshot = _encode_image(ROOT / "demo/data" / steps[STEP - 1]["Image_id"])
    image_height = LEFT_WIDTH * 800 // 1280
    goal_y = TOP + image_height + 10
    memory_y = goal_y + 112
    memory_bottom = memory_y + 102
    new_memory_y = memory_bottom - 128
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="var(--panel)"/>',
        _text(LEFT, TOP - 12, f"The model is shown, at step {STEP}", "heading"),
        _text(RIGHT, TOP - 12, "It answers", "heading"),
        f'<image x="{LEFT}" y="{TOP}" width="{LEFT_WIDTH}" height="{image_height}" href="{screenshot}"/>',
        f'<rect x="{LEFT}" y="{TOP}" width="{LEFT_WIDTH}" height="{image_height}" rx="3" fill="none" '
        'stroke="var(--screen)" stroke-width="2"/>',
        _card(LEFT, goal_y, LEFT_WIDTH, 102, "Goal", "text", [("", line) for line in goal]),
        _card(LEFT, memory_y, LEFT_WIDTH, 102, "Memory", "memory", _describe_memory(before, 41)),
        _card(RIGHT, TOP, RIGHT_WIDTH, 116, "Action", "screen", []),
        _text(RIGHT + 14, TOP + 62, f"{answer['action']}  “{answer['target']}”", "action"),
        _text(RIGHT + 14, TOP + 96, "scored against the recorded action", "muted"),
        _card(RIGHT, new_memory_y, RIGHT_WIDTH, 128, "New memory", "memory", _describe_memory(answer, 29)),
        f'<rect x="{MODEL_X}" y="{MODEL_Y}" width="{MODEL_WIDTH}" height="{MODEL_HEIGHT}" rx="12" '
        'fill="var(--model)"/>',
    ]
    middle = MODEL_Y + MODEL_HEIGHT / 2
    for i, word in enumerate(("vision-", "language", "model")):
        parts.append(
            f'<text x="{MODEL_X + MODEL_WIDTH / 2}" y="{middle - 12 + 17 * i}" text-anchor="middle" class="name" '
            f'style="fill: var(--panel)">{word}</text>'
        )
    edge = LEFT + LEFT_WIDTH
    for y in (TOP + image_height / 2, goal_y + 51, memory_y + 51):
        parts.append(_curve(edge + 4, y, MODEL_X - 4, middle, "model"))
    for y in (TOP + 58, new_memory_y + 64):
        parts.append(_curve(MODEL_X + MODEL_WIDTH + 4, middle, RIGHT - 4, y, "model"))
    centre = LEFT + LEFT_WIDTH / 2
    far = RIGHT + RIGHT_WIDTH - 60
    parts += [
        _return(far, TOP - 4, 22, centre + 90, TOP - 4, "screen"),
        _label(22, f"step {STEP + 1} shows the next recorded screenshot", "screen"),
        _return(far, memory_bottom + 4, memory_bottom + 32, centre, memory_bottom + 4, "memory"),
        _label(memory_bottom + 32, f"step {STEP + 1} shows the memory that the model wrote, right or wrong", "memory"),
    ]
    (ROOT / "docs/loop.svg").write_text(_wrap(parts), encoding="utf-8")


def _encode_image(path: Path) -> str:
    """Return the screenshot as a data URI, at twice the size it is drawn at."""
    buffer = io.BytesIO()
    size = (2 * LEFT_WIDTH, 2 * LEFT_WIDTH * 800 // 1280)
    Image.open(path).convert("RGB").resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _describe_memory(answer: dict, width: int) -> list[tuple[str, str]]:
    """Return a memory as lines: (name or "", text)."""
    short, long = answer["short_term"], answer["long_term"]
    fields = {
        "last": f"{short['last_action']} {short['last_target']} – {short['last_observation']}",
        "done": ", ".join(long["completed_subtasks"]),
        "to do": ", ".join(long["remaining_subtasks"]),
    }
    lines = []
    for name, text in fields.items():
        first, *rest = textwrap.wrap(text, width) or ["–"]
        lines += [(name, first), *(("", line) for line in rest)]
    return lines


def _card(x: int, y: int, width: int, height: int, title: str, colour: str, lines: list[tuple[str, str]]) -> str:
    """Draw a card with its title; lines that have a name stand in two columns."""
    indent = 44 if any(name for name, _ in lines) else 0
    parts = [
        f'<rect class="card" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>',
        f'<text x="{x + 14}" y="{y + 21}" class="name" style="fill: var(--{colour})">{title}</text>',
    ]
    for i, (name, text) in enumerate(lines):
        line_y = y + 42 + 16 * i
        if name:
            parts.append(_text(x + 14, line_y, name, "muted"))
        parts.append(_text(x + 14 + indent, line_y, text))
    return "\n".join(parts)


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{style}">{escape(text)}</text>'


def _curve(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    middle = (x1 + x2) / 2
    path = f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}"
    return f'<path class="arrow" d="{path}" stroke="var(--{colour})" marker-end="url(#to-{colour})"/>'


def _return(x1: float, y1: float, y_far: float, x2: float, y2: float, colour: str) -> str:
    """Draw the way back: from a card out to `y_far`, across, and in to the card of the next step."""
    bend = 12 if y_far > y1 else -12
    out = f"M{x1} {y1} V{y_far - bend} Q{x1} {y_far} {x1 - 12} {y_far}"
    path = f"{out} H{x2 + 12} Q{x2} {y_far} {x2} {y_far - bend} V{y2}"
    return (
        f'<path class="arrow" d="{path}" stroke="var(--{colour})" stroke-dasharray="5 4" '
        f'marker-end="url(#to-{colour})"/>'
    )


def _label(y: float, text: str, colour: str) -> str:
    """Write on the way back, over a patch that hides the line."""
    width = 6.4 * len(text) + 12
    x = (MODEL_X + MODEL_WIDTH / 2) - width / 2
    return (
        f'<rect x="{x}" y="{y - 10}" width="{width}" height="20" fill="var(--panel)"/>'
        f'<text x="{x + width / 2}" y="{y + 4.5}" text-anchor="middle" style="fill: var(--{colour})">{text}</text>'
    )


def _wrap(parts: list[str]) -> str:
    heads = "".join(
        f'<marker id="to-{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="10" markerHeight="10" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 8 4 0 8z" fill="var(--{name})"/></marker>'
        for name in ("screen", "model", "memory")
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">\n'
        f"<style>{STYLE}</style>\n<defs>{heads}</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    main()
