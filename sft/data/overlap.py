"""When are two tasks the same, and which tasks, goals and screenshots do two data sets share? Knows no models."""

import hashlib
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sft.actions import as_plain_text
from sft.data.hints import BLANKS
from sft.data.load import TaskSet
from sft.data.steps import Trajectory
from sft.errors import UserError
from sft.files import hash_file
from sft.json_text import parse_json

log = logging.getLogger("sft")

TrainingDoubt = Literal["", "missing", "changed"]
TRAINING_DATA = "training_data.json"
_MAX_LISTED = 20
_BLANK = re.compile(f"[{BLANKS}\\ufe00-\\ufe0f]")  # an emoji's variation selectors too, which nobody need be told of
# Small letters of other scripts, and marks, and what they look like on a keyboard: themselves, or their capitals.
_LOOKALIKES = str.maketrans(
    "авезікмнорстухѕјԁһԛԝүѵӏ" + "αβεζηικμνορτυχϲϳ" + "ıȷɑɡɩ" + "‘’‛′`´“”„‟″" + "‐‑‒–—―−",
    "abe3ikmhopctyxsjdhqwyvl" + "abezhikmvoptyxcj" + "ijagi" + "'" * 6 + '"' * 5 + "-" * 7,
)
_DRAWN_AS = ("<font>", "<wide>", "<narrow>", "<compat>")  # other drawings of a character; 10² is not 102
_ENDS = " .,;:!?\u3002\uff61"


@dataclass(frozen=True)
class Overlap:
    """Tasks of one set whose id, whose goal, or (counted in steps) whose screenshots are in the other too.

    Only a goal makes a task the same: published train and test files both number their tasks from 1, and every task of
    a program may begin on the same screen.
    """

    same_ids: tuple[str, ...]
    same_goals: tuple[str, ...]
    n_screenshots: int = 0
    n_same_screenshots: int = 0


def normalise_goal(text: str) -> str:
    """Return a goal without the differences that make no other goal of it, for comparisons and not to be shown.

    These are letter case, white space of any kind, characters that nobody sees (zero-width and formatting ones), other
    drawings of a character (full width, bold), letters of another script that look the same, and what ends a sentence.
    """
    plain = _drop_unseen(text)
    drawn = "".join(
        unicodedata.normalize("NFKC", c) if unicodedata.decomposition(c).startswith(_DRAWN_AS) else c for c in plain
    )
    folded = unicodedata.normalize("NFC", drawn.casefold()).translate(_LOOKALIKES)
    whole = " ".join(folded.split())
    return whole.rstrip(_ENDS) or whole


def hash_goal(text: str) -> str:
    """Return a short hash of a goal; two goals with one hash are the same task in other spelling."""
    return _hash(normalise_goal(text))


def list_goal_hashes(text: str) -> set[str]:
    """Return every hash under which a goal may stand in a file: today's, and those that earlier versions wrote.

    They did not fold what looks alike; the first ones hashed the text as its table had it, in whatever Unicode form,
    with control tokens whole.
    """
    seen = _fold_case(text)
    bare = seen.rstrip(_ENDS)
    forms = {unicodedata.normalize(form, text) for form in ("NFC", "NFD")}
    forms |= {form.replace("< |", "<|") for form in forms}
    earlier = {seen, bare, f"{bare}.", *(" ".join(form.casefold().split()) for form in forms)}
    return {hash_goal(text), *map(_hash, earlier)}


def find_duplicate_goals(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Return goals that several tasks share, by `normalise_goal`, as the first one writes it.

    `differ` says that some only look the same: another script's letters, or the end of a sentence.
    """
    tasks_of: dict[str, list[Trajectory]] = defaultdict(list)
    for t in trajectories:
        tasks_of[normalise_goal(t.instruction)].append(t)
    return [
        {
            "goal": tasks[0].instruction[:200],
            "tasks": [t.task_id for t in tasks],
            "differ": len({_fold_case(t.instruction) for t in tasks}) > 1,
        }
        for tasks in tasks_of.values()
        if len(tasks) > 1
    ]


def find_overlap(tasks: TaskSet, others: TaskSet) -> Overlap:
    """Compare two data sets task by task and screenshot by screenshot."""
    known_ids = {t.task_id for t in others.trajectories}
    known_goals = {hash_goal(t.instruction) for t in others.trajectories}
    shots, other_shots = (
        {s.screenshots[step.image_path].sha256 for t in s.trajectories for step in t.steps} for s in (tasks, others)
    )
    return Overlap(
        same_ids=tuple(t.task_id for t in tasks.trajectories if t.task_id in known_ids),
        same_goals=tuple(t.task_id for t in tasks.trajectories if hash_goal(t.instruction) in known_goals),
        n_screenshots=len(shots),
        n_same_screenshots=len(shots & other_shots),
    )


def describe_overlap(overlap: Overlap, other: str) -> dict[str, Any]:
    """Return an overlap as the content of a report."""
    return {
        "other": other,
        "n_same_goals": len(overlap.same_goals),
        "same_goals": list(overlap.same_goals[:_MAX_LISTED]),
        "n_same_ids": len(overlap.same_ids),
        "n_screenshots": overlap.n_screenshots,
        "n_same_screenshots": overlap.n_same_screenshots,
    }


def find_trained_tasks(model_path: str | None, trajectories: Sequence[Trajectory]) -> dict[str, list[str]]:
    """Return the tasks a model was trained on ("train") or chosen by ("val"); parts without one are left out.

    A model folder says what it was trained on in `training_data.json`; one without it was not trained here.

    Raises:
        UserError: that file cannot be read.
    """
    seen = {name: set(part["tasks"].values()) for name, part in load_training_data(model_path).items()}
    found = {
        name: [t.task_id for t in trajectories if not goals.isdisjoint(list_goal_hashes(t.instruction))]
        for name, goals in seen.items()
    }
    return {name: ids for name, ids in found.items() if ids}


def find_unseen_applications(model_path: str | None, trajectories: Sequence[Trajectory]) -> list[str]:
    """Return the applications of these tasks that no task uses which the model was trained on or chosen by.

    Empty too where that is not known: the model was not trained here, or by a version that did not note applications,
    or on a task that names none.

    Raises:
        UserError: the file that says it cannot be read.
    """
    parts = load_training_data(model_path).values()
    if not parts or not all("applications" in part for part in parts):
        return []
    seen = {name for part in parts for name in part["applications"]}
    if "" in seen or any(part["tasks"] and not part["applications"] for part in parts):
        return []
    return sorted({t.application for t in trajectories if t.application} - seen)


def load_training_data(model_path: str | None) -> dict[str, dict[str, Any]]:
    """Return what a model folder's `training_data.json` says by part; empty where there is no such file.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(model_path or ".") / TRAINING_DATA
    if model_path is None or not path.is_file():
        return {}
    try:
        parts: dict[str, dict[str, Any]] = parse_json(path.read_text(encoding="utf-8"))
        for part in (parts["train"], *parts.values()):
            part["tasks"].values()
            dict(part.get("applications", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: found something unreadable ({error}); restore the file or train again") from error
    return parts


def find_training_doubt(model_path: str | None) -> TrainingDoubt:
    """Say why a model folder's word on what it was trained on cannot be taken, "" where it can.

    `training_data.json` is "missing" where the folder's recipe says that it was trained here: of an uploaded model, or
    because somebody removed it. It is "changed" where it is not what `versions.json` has the hash of.

    Raises:
        UserError: `versions.json` cannot be read.
    """
    folder = Path(model_path or ".")
    if model_path is None or not (folder / "recipe.yaml").is_file():
        return ""
    if not (folder / TRAINING_DATA).is_file():
        return "missing"
    path = folder / "versions.json"
    try:
        written = parse_json(path.read_text(encoding="utf-8")).get(TRAINING_DATA) if path.is_file() else None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: found something unreadable ({error}); restore the file") from error
    return "changed" if written not in (None, hash_file(folder / TRAINING_DATA)) else ""


def refuse_trained_tasks(
    found: Mapping[str, Sequence[str]], test_csv: str, allow_overlap: bool, doubt: TrainingDoubt = ""
) -> None:
    """Make sure that no task is scored that the model was, or may have been, trained on, unless that is wanted.

    Raises:
        UserError: naming the tasks, or what was changed, and the flag to continue.
    """
    if doubt == "changed" and not allow_overlap:
        raise UserError(
            f"{test_csv}: found a model whose training_data.json was changed after its training; expected it as it "
            "was written: it says which tasks are unseen. Restore it, or continue with --allow_overlap: the report "
            "then says so"
        )
    trained = found.get("train", ())
    if trained and not allow_overlap:
        raise UserError(
            f"{test_csv}: found {len(trained)} tasks that the model was trained on ({_list_tasks(trained)}); expected "
            "unseen tasks: a score on them says nothing. Choose other tasks, or continue with --allow_overlap: the "
            "report then says so"
        )


def refuse_shared_goals(overlap: Overlap, val_csv: str, allow_overlap: bool) -> None:
    """Make sure that no validation task is trained on, unless that is wanted; log how many screenshots are.

    Raises:
        UserError: naming the tasks and the key to continue.
    """
    if overlap.n_same_screenshots:
        shared = (overlap.n_same_screenshots, overlap.n_screenshots)
        log.info("val: %d of %d screenshots are in train_csv too; many tasks begin on one screen", *shared)
    if not overlap.same_goals:
        return
    found = f"{val_csv}: found {len(overlap.same_goals)} tasks whose goal is in train_csv too"
    if allow_overlap:
        log.warning("%s (%s): their scores say nothing of unseen tasks", found, _list_tasks(overlap.same_goals))
        return
    raise UserError(
        f"{found} ({_list_tasks(overlap.same_goals)}); expected unseen tasks: a score on them says nothing. Choose "
        "other tasks, hold some of train_csv out with val_split, or continue with allow_overlap: true"
    )


def _fold_case(text: str) -> str:
    """Return a goal as versions before compared it: what looks alike and is not the same stays apart."""
    return " ".join(unicodedata.normalize("NFC", _drop_unseen(text).casefold()).split())


def _drop_unseen(text: str) -> str:
    """Return a text as prompts show it, without the characters that nobody sees."""
    return "".join(c for c in as_plain_text(text) if not _is_unseen(c))


def _is_unseen(character: str) -> bool:
    is_format = unicodedata.category(character) in ("Cf", "Cc") and not character.isspace()
    return is_format or _BLANK.match(character) is not None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _list_tasks(task_ids: Sequence[str]) -> str:
    """Name tasks for a message, the first ones where they are many."""
    return ", ".join(task_ids[:_MAX_LISTED]) + (", ..." if len(task_ids) > _MAX_LISTED else "")
