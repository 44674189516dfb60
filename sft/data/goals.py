"""Goal texts: when two of them name the same task. Knows nothing of files or steps."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sft.actions import as_plain_text
from sft.data.steps import Trajectory


def normalise_goal(text: str) -> str:
    """Return a goal as prompts show it, without the differences that make no other goal of it.

    These are letter case, white space of any kind, and characters that nobody sees: zero-width and formatting ones.
    """
    shown = "".join(c for c in as_plain_text(text) if not _is_unseen(c))
    return " ".join(unicodedata.normalize("NFC", shown.casefold()).split())


def hash_goal(text: str) -> str:
    """Return a short hash of a goal; two goals with one hash are the same task in other spelling."""
    return _hash(normalise_goal(text))


def list_goal_hashes(text: str) -> set[str]:
    """Return every hash under which a goal may stand in a file: today's, and those that earlier versions wrote.

    They hashed the text as its table had it, in whatever Unicode form, with control tokens whole.
    """
    forms = {unicodedata.normalize(form, text) for form in ("NFC", "NFD")}
    forms |= {form.replace("< |", "<|") for form in forms}
    return {hash_goal(text), *(_hash(" ".join(form.casefold().split())) for form in forms)}


def find_duplicate_goals(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Return goals that several tasks share, by `normalise_goal`."""
    tasks_of: dict[str, list[str]] = defaultdict(list)
    for t in trajectories:
        tasks_of[normalise_goal(t.instruction)].append(t.task_id)
    return [{"goal": goal[:200], "tasks": ids} for goal, ids in tasks_of.items() if len(ids) > 1]


def _is_unseen(character: str) -> bool:
    is_format = unicodedata.category(character) in ("Cf", "Cc") and not character.isspace()
    return is_format or "\ufe00" <= character <= "\ufe0f"  # variation selectors


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
