"""What a reader of a score must know about its data: tasks set aside, tasks trained on. Knows nothing of results."""

from collections.abc import Mapping, Sequence
from typing import Any

from sft.problems import describe_quarantine
from sft.split_manifest import find_split
from sft.trajectory import TaskSet

_MAX_LISTED = 5


def describe_test_data(tasks: TaskSet, test_csv: str, trained: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the key `data` of run.json: the split the file is a part of, what was set aside, what was trained on."""
    return {
        "split": find_split(test_csv),
        "quarantined": describe_quarantine(tasks.quarantined),
        "trained_on": {part: list(ids) for part, ids in trained.items()},
    }


def list_data_notes(run_info: Mapping[str, Any]) -> list[str]:
    """Return the sentences that stand beside the scores in terminal and report; usually none."""
    data = run_info.get("data") or {}
    notes = []
    if quarantined := data.get("quarantined", {}).get("summary"):
        notes.append(f"Not in these numbers: {quarantined}.")
    for part, meaning in (("train", "trained on"), ("val", "chosen by")):
        if ids := data.get("trained_on", {}).get(part):
            listed = ", ".join(ids[:_MAX_LISTED]) + (", ..." if len(ids) > _MAX_LISTED else "")
            notes.append(f"Not unseen: the model was {meaning} {len(ids)} of these tasks ({listed}).")
    if (split := data.get("split")) and not split["is_unchanged"]:
        notes.append("The test file is no longer the one that split.json describes.")
    return notes
