"""What only an author can tell the compute report: a small YAML beside it, and what is missing in it."""

from pathlib import Path
from typing import Any

import yaml

from sft.compute.fields import Field
from sft.errors import UserError
from sft.recipe.recipe_yaml import load_yaml

AUTHOR_NAME = "compute_author.yaml"
# Section and field of each key, and what the template says of it.
KEYS = {
    "infrastructure_type": (
        "infrastructure",
        "type",
        "own workstation, university cluster, cloud, ...",
    ),
    "provider": ("infrastructure", "provider", "who runs it; 'own' where that is you"),
    "task": ("task", "task", "e.g. GUI action prediction on recorded clinical software"),
    "modality": ("task", "input and output", "e.g. screenshot and goal to one action as JSON"),
    "baseline_name": ("performance", "baseline", "what the paper compares with"),
    "baseline_swa_percent": ("performance", "SWA of the baseline (%)", "its step-wise accuracy on the same test data"),
    "dataset_name": ("dataset", "name", "name and version as the paper cites it"),
    "dataset_licence": ("dataset", "licence", "or 'not public'"),
    "gpu_hours_elsewhere": ("compute totals", "GPU hours outside these ledgers", "0 if there were none"),
    "cost": ("compute totals", "cost", "e.g. 120 EUR, or 'none billed'"),
    "notes": ("notes", "of the authors", "anything a reader should know; 'none' if there is nothing"),
}


def load_author_fields(folder: Path) -> list[Field]:
    """Read the author's YAML, which is written as a form to fill in where there is none yet.

    Raises:
        UserError: the file cannot be read or holds keys that nobody asked for.
    """
    path = folder / AUTHOR_NAME
    if not path.is_file():
        path.write_text(_format_form(), encoding="utf-8")
    values: dict[str, Any] = load_yaml(path) or {}
    if unknown := sorted(set(values) - set(KEYS)):
        raise UserError(f"{path}: found {', '.join(unknown)}; expected only {', '.join(KEYS)}")
    fields = []
    for key, (section, name, _) in KEYS.items():
        value = values.get(key)
        shown = f"missing: fill in {key} in {AUTHOR_NAME}" if value is None else value
        fields.append(Field(section, name, shown, "author"))
    return fields


def _format_form() -> str:
    lines = ["# What the compute report cannot know. Fill in, then run `python -m sft.compute` again."]
    for key, (_, _, hint) in KEYS.items():
        lines.append(f"{key}:  # {hint}")
    text = "\n".join(lines) + "\n"
    assert set(yaml.safe_load(text)) == set(KEYS)
    return text
