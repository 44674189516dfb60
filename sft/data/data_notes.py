"""What a reader of a score must know about its data: tasks set aside, tasks trained on. Knows nothing of results."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sft.data.problems import describe_quarantine
from sft.data.split_file import find_split

if TYPE_CHECKING:
    from sft.data.load import TaskSet

_MAX_LISTED = 5
_DOUBTS = {"missing": "is not in its folder", "changed": "was changed after the training"}


def describe_test_data(
    tasks: "TaskSet",
    test_csv: str,
    trained: Mapping[str, Sequence[str]],
    unseen_applications: Sequence[str] = (),
    doubt: str = "",
) -> dict[str, Any]:
    """Return the key `data` of run.json: the split the file is a part of, what was set aside, what was trained on.

    `unseen_applications` are those of the tasks that the model never saw, `doubt` says why `trained` may not be all
    (both of `sft.data.overlap`).
    """
    return {
        "split": find_split(test_csv),
        "quarantined": describe_quarantine(tasks.quarantined),
        "trained_on": {part: list(ids) for part, ids in trained.items()},
        "unseen_applications": list(unseen_applications),
        "training_data": doubt,
    }


def list_data_notes(data: Mapping[str, Any], names_tasks: bool = True) -> list[str]:
    """Return the sentences that stand beside the scores wherever they are shown; usually none.

    `data` is what `describe_test_data` gave; empty, of an older rollout. `names_tasks` False leaves task ids out, for
    what is published.
    """
    notes = []
    if quarantined := data.get("quarantined", {}).get("summary"):
        notes.append(f"Not in these numbers: {quarantined if names_tasks else quarantined.partition(':')[0]}.")
    for part, meaning in (("train", "trained on"), ("val", "chosen by")):
        if ids := data.get("trained_on", {}).get(part):
            listed = ", ".join(ids[:_MAX_LISTED]) + (", ..." if len(ids) > _MAX_LISTED else "")
            named = f" ({listed})" if names_tasks else ""
            notes.append(f"Not unseen: the model was {meaning} {len(ids)} of these tasks{named}.")
    if doubt := data.get("training_data"):
        notes.append(f"Perhaps not unseen: the model's training_data.json, which says what it saw, {_DOUBTS[doubt]}.")
    if unseen := data.get("unseen_applications"):
        notes.append(f"Applications that the model was never trained on: {', '.join(unseen)}.")
    if (split := data.get("split")) and not split["is_unchanged"]:
        notes.append("The test file is no longer the one that split.json describes.")
    elements = data.get("elements") or {}
    if "trained_on" in elements and elements["made_by"] != elements["trained_on"]:
        made, trained = (_name_maker(elements[key]) for key in ("made_by", "trained_on"))
        notes.append(f"The model was trained on detected elements of {trained}; here they are of {made}.")
    return notes


def _name_maker(maker: Mapping[str, Any] | None) -> str:
    if maker is None:
        return "unknown origin"
    digest = hashlib.sha256(json.dumps(maker, sort_keys=True).encode()).hexdigest()[:8]
    return f"{maker.get('tool')} {maker.get('version')} (all of it: {digest})"


def is_unseen(data: Mapping[str, Any]) -> bool:
    """Say whether no task of a run was used to train or to choose the model."""
    return not any(data.get("trained_on", {}).values())
