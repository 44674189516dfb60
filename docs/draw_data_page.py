"""Draw docs/data_page.png: the page of the demo's data, with one label made wrong. Needs Chromium and playwright.

python docs/draw_data_page.py
"""

import csv
import io
import json
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from sft.check import __main__ as check

ROOT = Path(__file__).resolve().parent.parent
WRONG_ROW = 37  # five other rows label the same box on the same screenshot


def main() -> None:
    rows = list(csv.DictReader((ROOT / "demo/data/train.csv").open(encoding="utf-8", newline="")))
    wrong = rows[WRONG_ROW - 2]
    wrong["Output"] = json.dumps({**json.loads(wrong["Output"]), "target": "Segmentation"})
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        data, page_path = Path(folder, "train.csv"), Path(folder, "page.html")
        with data.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        flags = ["--recipe", ROOT / "recipes/demo.yaml", "--tokenizer", ROOT / "demo/base"]
        check.main([str(f) for f in (data, "--image_root", ROOT / "demo/data", "--html", page_path, *flags)])
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        parts = []
        page = browser.new_page(viewport={"width": 1240, "height": 420})
        page.goto(page_path.as_uri())
        page.evaluate("document.querySelector('#said').scrollIntoView()")
        parts.append(page.screenshot())
        page.set_viewport_size({"width": 1240, "height": 400})
        page.locator(".choose").first.click()
        page.locator(".card .gold-box").first.wait_for()
        page.wait_for_timeout(500)
        parts.append(page.screenshot())
        page.set_viewport_size({"width": 1240, "height": 900})
        page.locator(".card", has_text="CLICK Segmentation").click()
        page.wait_for_timeout(500)
        parts.append(page.screenshot())
        browser.close()
    images = [Image.open(io.BytesIO(part)).convert("RGB") for part in parts]
    whole = Image.new("RGB", (images[0].width, sum(image.height for image in images)))
    for i, image in enumerate(images):
        whole.paste(image, (0, sum(above.height for above in images[:i])))
    whole.quantize(256).save(ROOT / "docs/data_page.png", optimize=True)


if __name__ == "__main__":
    main()
