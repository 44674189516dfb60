"""What OCR finds of the demonstration's screens: names read, texts that are wrong, CPU seconds per screenshot.

python benchmarks/elements.py [--json FILE] [--screenshots 30] [--seed 1]

The screens are a seeded sample of all of them, and each is read on one thread. What is on them is known from the page
itself (demo/data/elements.jsonl), which lists accessible names, written out or not. A name counts as written where

- the element is a button, link, heading, label, menu item, tab or text: not a field, a picture or a list of choices;
- its box is larger than an icon (40 x 44 pixels), and it is not the logo that OHIF's page calls "Study List";
- the page's list holds it whole (names are cut at 60 characters there).

Names and texts are compared by letters and digits alone, without case. A name is *read* where each of its words is in
the texts whose middle lies in its box, and *read as one* where a single text there equals it. A text is *right* where
it is part of such a name around it, and *wrong* where it is of none of the listed elements around it: an icon taken
for a letter, a letter misread, but also a value beside a label, so the share is a lower bound. Texts inside no listed
element (values, annotations in an image) are not judged.
"""

import argparse
import json
import random
import time
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import describe_machine, publish
from sft.data.screenshots import open_screenshot
from sft.elements.detector import ElementDetector, describe_detector

DATA = Path(__file__).parent.parent / "demo/data"
WRITTEN_ROLES = {"button", "link", "heading", "label", "menuitem", "tab", "text"}
LOGO = ("OHIF Viewer", "Study List")
ICON_WIDTH, ICON_HEIGHT, MAX_NAME = 40, 44, 60

Kind = Literal["written", "icon", "other"]
Box = Sequence[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--screenshots", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in (DATA / "elements.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = random.Random(arguments.seed).sample(lines, min(arguments.screenshots, len(lines)))
    counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    detector = ElementDetector()
    detector.detect(open_screenshot(DATA / chosen[0]["image"]))  # loads the models
    for screen in chosen:
        image = open_screenshot(DATA / screen["image"])
        started = time.process_time()
        found = detector.detect(image).elements
        seconds = time.process_time() - started
        measured = {**compare(screen["elements"], found, screen["application"]), "cpu_s": seconds, "n_screenshots": 1}
        for name in (screen["application"], "all"):
            for key, number in measured.items():
                counts[name][key] += number
    rows = [summarise(name, counts[name]) for name in sorted(counts, key=lambda name: (name == "all", name))]
    machine = describe_machine() | {"threads": 1, "detector": describe_detector(), "seed": arguments.seed}
    publish("Elements found by OCR", rows, machine, arguments.json)


def compare(
    listed: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], application: str
) -> dict[str, int]:
    """Count names and texts of one screen as the head of this file says."""
    kinds = [classify(element, application) for element in listed]
    counts = {"n_names": 0, "n_read": 0, "n_read_as_one": 0, "n_judged": 0, "n_right": 0, "n_texts": len(found)}
    for element, kind in zip(listed, kinds):
        if kind == "written":
            inside = [normalise(text["name"]) for text in found if is_inside(text["bbox"], element["bbox"])]
            words = [normalise(word) for word in element["name"].split()]
            counts["n_names"] += 1
            counts["n_read"] += all(word in "".join(inside) for word in words)
            counts["n_read_as_one"] += "".join(words) in inside
    for text in found:
        around = [(e, k) for e, k in zip(listed, kinds) if k != "other" and is_inside(text["bbox"], e["bbox"])]
        counts["n_judged"] += bool(around)
        counts["n_right"] += any(
            kind == "written" and normalise(text["name"]) in normalise(element["name"]) for element, kind in around
        )
    return counts


def classify(element: Mapping[str, Any], application: str) -> Kind:
    """Say whether an element's name is written on the screen, is an icon's, or cannot be judged."""
    x1, y1, x2, y2 = element["bbox"]
    name = element["name"]
    if element["role"] not in WRITTEN_ROLES or len(name) >= MAX_NAME or (application, name) == LOGO:
        return "other"
    if x2 - x1 <= ICON_WIDTH and y2 - y1 <= ICON_HEIGHT:
        return "icon"
    return "written" if normalise(name) else "other"


def normalise(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def is_inside(box: Box, around: Box) -> bool:
    """Say whether the middle of a box lies in another."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return around[0] <= x <= around[2] and around[1] <= y <= around[3]


def summarise(name: str, counts: Mapping[str, float]) -> dict[str, Any]:
    n = counts["n_screenshots"]
    return {
        "application": name,
        "n_screenshots": int(n),
        "n_names": int(counts["n_names"]),
        "names_read": counts["n_read"] / counts["n_names"],
        "read_as_one": counts["n_read_as_one"] / counts["n_names"],
        "n_texts": int(counts["n_texts"]),
        "n_texts_judged": int(counts["n_judged"]),
        "texts_right": counts["n_right"] / counts["n_judged"],
        "texts_a_screenshot": counts["n_texts"] / n,
        "cpu_s_a_screenshot": counts["cpu_s"] / n,
    }


if __name__ == "__main__":
    main()
