"""`NAME.elements.json`: what made the column Detected_Elements. Written by `sft.elements`; trainings record it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.data.overlap import load_training_data
from sft.data.split_file import find_split
from sft.files import hash_file, write_whole
from sft.json_text import parse_json

SUFFIX = ".elements.json"


def write_elements_file(csv_path: Path, csv_bytes: bytes, content: Mapping[str, Any]) -> Path:
    """Say beside a CSV, of which `csv_bytes` are the content, what made its elements; return the file."""
    path = name_elements_file(csv_path)
    whole = {"csv": csv_path.name, "sha256": hashlib.sha256(csv_bytes).hexdigest(), **content}
    write_whole(path, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    return path


def name_elements_file(csv_path: Path) -> Path:
    """Return where the file of a CSV is: `train.elements.json` for `train.csv`."""
    return csv_path.with_name(f"{csv_path.stem}{SUFFIX}")


def find_maker(csv_path: str | Path) -> dict[str, Any] | None:
    """Return what made the elements of a CSV, None where nothing says so of it as it is now.

    It is said of the file itself, or of the file in the same folder that `sft.split` made it of.
    """
    path = Path(csv_path)
    if not path.is_file():
        return None
    split = find_split(path)
    known = {hash_file(path)} | ({split["source_sha256"]} if split and split["is_unchanged"] else set())
    for file in sorted(path.parent.glob(f"*{SUFFIX}")):
        try:
            content = parse_json(file.read_text(encoding="utf-8"))
            if content["sha256"] in known:
                return dict(content["made_by"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another program's
    return None


def read_trained_maker(model_path: str | None) -> dict[str, Any]:
    """Return as `trained_on` what made the elements of a training; nothing where there was no training here.

    Raises:
        UserError: the file that says it cannot be read.
    """
    parts = load_training_data(model_path)
    return {"trained_on": parts["train"].get("elements")} if parts else {}
