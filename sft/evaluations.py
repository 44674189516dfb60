"""`evaluations.jsonl` of a model folder: the scores of its rollouts, one line each, of its present weights only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.data.data_notes import is_unseen, list_data_notes
from sft.errors import UserError
from sft.files import hash_files
from sft.json_text import parse_json
from sft.rates import Rate

EVALUATIONS_NAME = "evaluations.jsonl"


def add_evaluation(
    folder: Path, run_info: Mapping[str, Any], metrics: Mapping[str, Any], gap: Mapping[str, Any] | None = None
) -> None:
    """Append the scores of a finished rollout; `run_info` holds what it ran on.

    `gap` is what mode teacher has above it, paired, by matcher.
    """
    line = {
        "weights_sha256": hash_weights(folder),
        "csv": Path(run_info["test_csv"]).name,
        "csv_sha256": run_info["test_csv_sha256"],
        "mode": metrics["mode"],
        "engine": run_info["engine"],
        "decoding": run_info["decoding"],
        "n_tasks": metrics["n_tasks"],
        "n_steps": metrics["n_steps"],
        "matchers": _pick_rates(metrics["matchers"]),
        "per_familiarity": {
            label: {"n_tasks": part["n_tasks"], "matchers": _pick_rates(part["matchers"])}
            for label, part in metrics["per_familiarity"].items()
        },
        "majority_baseline": metrics["majority_baseline"],
        "notes": list_data_notes(run_info["data"], names_tasks=False),
        "is_unseen": is_unseen(run_info["data"]),
        "exposure_gap": gap and {name: measures["swa"]["difference"] for name, measures in gap.items()},
    }
    path = folder / EVALUATIONS_NAME
    if path.is_symlink():
        raise UserError(f"{path}: found a link, which would be written through; expected a file: remove it")
    with path.open("a", encoding="utf-8", errors="replace") as file:  # half characters, which UTF-8 cannot hold
        file.write(json.dumps(line, ensure_ascii=False, default=Rate.as_json) + "\n")


def _pick_rates(matchers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {measure: rates[measure] for measure in ("swa", "ta")} for name, rates in matchers.items()}


def load_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the newest scores on each test file, mode, decoding and number of tasks, of the weights as they are.

    Raises:
        UserError: a line that cannot be read.
    """
    path = folder / EVALUATIONS_NAME
    if not path.is_file():
        return []
    weights, found = hash_weights(folder), {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        try:
            if line and (evaluation := parse_json(line))["weights_sha256"] == weights:
                key = tuple(evaluation[k] for k in ("csv_sha256", "mode", "engine", "decoding", "n_tasks"))
                found[key] = evaluation
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: line {number}: found something unreadable ({error}); remove the line") from error
    return list(found.values())


def hash_weights(folder: Path) -> str:
    """Return the SHA-256 of a folder's weights, which tells these scores from those of other weights."""
    return hash_files(sorted(folder.glob("*.safetensors")))
