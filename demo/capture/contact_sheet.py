"""Draw what each step did on its screenshot and tile the steps of a task, for a person to look at.

python -m demo.capture.contact_sheet RAW_FOLDER OUT_FOLDER [--only NAME_PART] [--columns 3] [--width 640]
"""

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "CLICK": "red",
    "TEXT": "magenta",
    "SCROLL": "orange",
    "ZOOM": "cyan",
    "SEGMENT": "lime",
    "COMPLETE": "white",
}
CAPTION_PX = 44
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"


def draw_step(screenshot: Image.Image, step: dict, width: int) -> Image.Image:
    """Return the screenshot, `width` px wide, with the step's bbox and drawn points, above a caption."""
    image = screenshot.convert("RGB")
    pen, colour = ImageDraw.Draw(image), COLOURS[step["action"]]
    if step["bbox"]:
        pen.rectangle(step["bbox"], outline=colour, width=4)
    points = [tuple(point) for point in step.get("points", [])]
    if len(points) > 1:
        pen.line(points, fill=colour, width=2)
    for x, y in points:
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    image = image.resize((width, width * image.height // image.width), Image.LANCZOS)
    tile = Image.new("RGB", (width, image.height + CAPTION_PX), "#222222")
    tile.paste(image, (0, CAPTION_PX))
    caption = " ".join(str(step[key]) for key in ("step", "action", "target", "text", "direction") if key in step)
    caption += f"\n[{step['subtask']}] -> {step['observation']}"
    ImageDraw.Draw(tile).text((6, 3), caption, fill=colour, font=ImageFont.truetype(FONT, 15))
    return tile


def build_sheet(path: Path, columns: int, width: int) -> Image.Image:
    """Tile all steps of one raw recording under its goal."""
    task = json.loads(path.read_text())
    tiles = [draw_step(Image.open(path.parent / step["png"]), step, width) for step in task["steps"]]
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width, CAPTION_PX + rows * tiles[0].height), "#222222")
    header = f"{task['task_id']} ({task['group']})\n{task['goal']}"
    ImageDraw.Draw(sheet).text((6, 3), header, fill="white", font=ImageFont.truetype(FONT, 15))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * width, CAPTION_PX + number // columns * tile.height))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder of raw recordings")
    parser.add_argument("out", type=Path, help="folder for one PNG a task")
    parser.add_argument("--only", default="", help="part of the task ids to draw")
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--width", type=int, default=640, help="px of one screenshot")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(args.raw.glob("*.json")):
        if args.only in path.stem and path.name != "versions.json":
            build_sheet(path, args.columns, args.width).save(args.out / f"{path.stem}.png")


if __name__ == "__main__":
    main()
