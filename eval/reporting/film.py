"""One animated WebP a task: each screen with the point at which the action was done, and a strip that says what."""

import io
import re
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from eval.environments.episode import Episode, LiveStep
from sft.data.screenshots import open_screenshot
from sft.files import write_whole

FILMS = "films"
WIDTH_PX, STRIP_PX = 960, 64
HIGHEST_PX = 4000  # of a screen; WebP holds 16,383 pixels
STEP_MS, LAST_MS = 1500, 3000
_INK, _PAPER, _MUTED, _POINT, _GOOD, _BAD = "#1d2329", "#ffffff", "#626c76", "#e8590c", "#1c7446", "#b02c25"


def write_film(folder: Path, number: int, episode: Episode) -> Path:
    """Write `films/NUMBER_TASK.webp` and return its path: each step stands for 1.5 s, the last screen for 3 s.

    `number` is the task's place in the data, so that one that is tried again replaces its film.
    """
    (folder / FILMS).mkdir(exist_ok=True)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", episode.task_id).strip("._") or "task"
    path = folder / FILMS / f"{number:03d}_{readable[:60]}.webp"
    frames = [_draw_step(folder, episode, step) for step in episode.steps]
    frames.append(_draw_end(folder, episode))
    first = frames[0].size
    frames = [frame if frame.size == first else frame.resize(first) for frame in frames]
    file = io.BytesIO()
    times = [STEP_MS] * (len(frames) - 1) + [LAST_MS]
    # allow_mixed keeps what did not change between two screens sharp and small
    frames[0].save(
        file, "WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=70, allow_mixed=True
    )
    write_whole(path, file.getvalue(), is_forced=False)
    return path


def _draw_step(folder: Path, episode: Episode, step: LiveStep) -> Image.Image:
    frame, scale = _open_frame(folder / step.image_id)
    draw = ImageDraw.Draw(frame)
    if step.point is not None:
        x, y = step.point[0] * scale, step.point[1] * scale
        draw.ellipse([x - 13, y - 13, x + 13, y + 13], outline=_PAPER, width=7)
        draw.ellipse([x - 12, y - 12, x + 12, y + 12], outline=_POINT, width=5)
    action = step.predicted
    said = "no readable answer"
    if action:
        said = f"{action.kind} {action.target}".strip()
        said += "".join(f" · {name}: {value}" for name, value in action.arguments.items() if name != "point")
    if step.outcome in ("done", "complete"):
        note, colour = ("goal reached", _GOOD) if step.is_reached else ("", _MUTED)
        note = "goal not reached" if step.outcome == "complete" and not step.is_reached else note
    else:
        note, colour = step.outcome.replace("_", " "), _BAD
    told = f"Step {step.index + 1} of {len(episode.steps)}" + (f": {note}" if note else "")
    _write_strip(frame, said, told, _BAD if note == "goal not reached" else colour)
    return frame


def _draw_end(folder: Path, episode: Episode) -> Image.Image:
    frame, _ = _open_frame(folder / (episode.last_image_id or episode.steps[-1].image_id))
    result = str(episode.result).replace("_", " ")
    _write_strip(frame, episode.instruction, f"End: {result}", _GOOD if episode.result == "success" else _BAD)
    return frame


def _open_frame(path: Path) -> tuple[Image.Image, float]:
    """Return the screen at the width of the film or `HIGHEST_PX`, room for a strip below it, and its scale."""
    screen = open_screenshot(path)
    scale = min(WIDTH_PX / screen.width, HIGHEST_PX / screen.height)
    height = max(1, round(screen.height * scale))
    height += height % 2
    frame = Image.new("RGB", (WIDTH_PX, height + STRIP_PX), _PAPER)
    frame.paste(screen.resize((max(1, round(screen.width * scale)), height), Image.Resampling.LANCZOS))
    return frame, scale


def _write_strip(frame: Image.Image, said: str, told: str, colour: str) -> None:
    draw = ImageDraw.Draw(frame)
    top = frame.height - STRIP_PX
    draw.line([0, top, frame.width, top], fill=_MUTED)
    for text, size, y, ink in ((said, 20, top + 8, _INK), (told, 15, top + 38, colour)):
        draw.text((14, y), _fit(" ".join(text.split()), size, frame.width - 28), ink, _load_font(size))


def _fit(text: str, size: int, width: int) -> str:
    """Cut a text that is too long for the strip."""
    text, font = text[:400], _load_font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@cache
def _load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib brings along, so that a film is the same on every machine."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
