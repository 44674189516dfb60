"""JSON folders that an agent pipeline wrote (`{Software}_endtoend_{NNN}.json`) to converted tasks.

The right action of a step is the annotators' label in `Grounding.ground_truth`. `Predicted` is what a model did, and
after two failures the pipeline writes the label there ("Using ground truth action"): such a prediction is never taken
for gold. The recorded memories were written with the label in view ("Expected action: CLICK") and are not copied.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sft.actions import DEFAULT_ACTIONS, Action, ActionType
from sft.convert.converted import ConvertedStep, ConvertedTask, Coordinates, DroppedTask, pick_action, pick_box
from sft.convert.pictures import decode_picture, is_inline
from sft.data.image_paths import find_screenshot, suggest_names
from sft.data.literals import read_literal
from sft.data.load import natural_key
from sft.data.memory_audit import MemoryAudit, MemoryCell, audit_memory
from sft.errors import UserError

FILE_PATTERN = re.compile(r"(?P<software>.+)_endtoend_?(?P<number>\d+)\.json", re.I)
_FALLBACK = re.compile(r"ground[ _]truth (?:action|fallback)|used ground truth|predictions? failed", re.I)
_PLACEHOLDER_TARGET = "ground_truth_target"  # what the pipeline writes where the label names no target


def read_pipeline(
    folder: Path,
    images_dir: Path | None = None,
    actions: Sequence[ActionType] = DEFAULT_ACTIONS,
    coordinates: Coordinates = "pixels",
) -> Iterator[ConvertedTask | DroppedTask]:
    """Yield every task file of a folder as a task, or as dropped with the reason.

    Raises:
        UserError: no such folder, or no task file in it.
    """
    for path in find_files(folder):
        try:
            yield _read_file(path, folder, images_dir, actions, coordinates)
        except ValueError as error:
            yield DroppedTask(path.stem, path.name, _count_steps(path), str(error))


def find_files(folder: Path) -> list[Path]:
    """Return the task files of a folder in natural order."""
    if not folder.is_dir():
        raise UserError(f"{folder}: found no such folder; expected one with {{Software}}_endtoend_{{NNN}}.json files")
    files = [path for path in folder.iterdir() if FILE_PATTERN.fullmatch(path.name)]
    if not files:
        raise UserError(f"{folder}: found no file named {{Software}}_endtoend_{{NNN}}.json; expected one per task")
    return sorted(files, key=lambda path: natural_key(path.name))


def audit_records(folder: Path, actions: Sequence[ActionType]) -> list[MemoryAudit]:
    """Audit the memories that the pipeline recorded, for the report: the evidence for not copying them."""
    cells: dict[str, list[MemoryCell]] = {"Short Term": [], "Long Term": []}
    for path in find_files(folder):
        try:
            goal, records, _ = _load(path, actions)
            golds = [_read_gold(n, record, actions)[0] for n, record in records]
        except ValueError:
            continue
        for i, (number, record) in enumerate(records):
            for column, found in cells.items():
                text = json.dumps(record.get(column) or {}, ensure_ascii=False)
                found.append(MemoryCell(number, text, golds[i], tuple(golds[:i]), goal))
    return [audit_memory(column, found) for column, found in cells.items()]


def _read_file(
    path: Path, folder: Path, images_dir: Path | None, actions: Sequence[ActionType], coordinates: Coordinates
) -> ConvertedTask:
    goal, records, remarks = _load(path, actions)
    match = FILE_PATTERN.fullmatch(path.name)
    steps, n_predicted, n_fallback = [], 0, 0
    for number, record in records:
        action, origin = _read_gold(number, record, actions)
        n_predicted += origin == "prediction"
        n_fallback += origin == "label after failures"
        image, name = _find_image(number, record, folder, images_dir)
        original = _read_original(record)
        note, bbox = original.get("note"), pick_box(original.get("bbox"), number, remarks)
        note = note if isinstance(note, str) else ""
        steps.append(ConvertedStep(number, action, image, note, bbox, coordinates=coordinates, image_name=name))
    if n_predicted:
        remarks.append(f"{n_predicted} steps have no label; their gold is a prediction that a critic accepted")
    if n_fallback:
        remarks.append(f"{n_fallback} predictions were the label, pasted after failures; the label itself was used")
    application = match["software"] if match else ""
    return ConvertedTask(path.stem, path.name, goal, application, tuple(steps), remarks=tuple(remarks))


def _load(path: Path, actions: Sequence[ActionType]) -> tuple[str, list[tuple[int, Mapping[str, Any]]], list[str]]:
    """Return the goal, the records with their step numbers in order, and remarks.

    Raises:
        ValueError: what was found and what was expected.
    """
    try:
        content = read_literal(path.read_text(encoding="utf-8-sig"))
        metadata, entries = content["metadata"], content["steps"]
        goal = metadata["user_goal"]
    except ValueError as error:
        raise ValueError(f"{error}; restore the file") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"found no {error}; expected metadata.user_goal and steps") from error
    if not isinstance(goal, str) or not isinstance(entries, list):
        raise ValueError("found no text in metadata.user_goal, or no list in steps")
    records: dict[int, Mapping[str, Any]] = {}
    remarks = []
    for entry in entries:
        number, record = _read_entry(entry)
        if number not in records:
            records[number] = record
        elif _read_gold(number, records[number], actions)[0] == _read_gold(number, record, actions)[0]:
            remarks.append(f"step {number} was recorded twice with one label; the first record was kept")
        else:
            raise ValueError(f"found two records of step {number} with different actions; expected one")
    if not records:
        raise ValueError("found no steps; expected at least one")
    total = metadata.get("total_steps")
    last = max([*records, total if isinstance(total, int) and total < 10_000 else 0])
    if missing := sorted(set(range(1, last + 1)) - set(records)):
        remarks.append(f"never recorded: step {', '.join(map(str, missing))}")
    if metadata.get("finished") is False:
        remarks.append("the pipeline did not finish this task")
    return goal, sorted(records.items()), remarks


def _read_entry(entry: Any) -> tuple[int, Mapping[str, Any]]:
    if isinstance(entry, Mapping) and len(entry) == 1:
        key, record = next(iter(entry.items()))
        match = re.fullmatch(r"step\s*(\d{1,4})", str(key).strip(), re.I)
        if match and isinstance(record, Mapping) and int(match[1]) >= 1:
            return int(match[1]), record
    raise ValueError(f'found an entry {str(entry)[:60]!r}; expected {{"Step k": {{...}}}}')


def _read_gold(number: int, record: Mapping[str, Any], actions: Sequence[ActionType]) -> tuple[Action, str]:
    """Return the right action and where it is from; a pasted label without its annotation is not trusted.

    Raises:
        ValueError: the step has no action that can be trusted.
    """
    grounding, predicted = record.get("Grounding"), record.get("Predicted")
    label = grounding.get("ground_truth") if isinstance(grounding, Mapping) else None
    guess = predicted.get("predicted_action") if isinstance(predicted, Mapping) else None
    is_pasted = _is_fallback(record, guess)
    try:
        if isinstance(label, Mapping) and label.get("action"):
            original = label.get("original_step_data")
            fields = {**(original if isinstance(original, Mapping) else {}), **label}
            return pick_action(fields, actions), "label after failures" if is_pasted else "label"
        if is_pasted:
            raise ValueError("found no label, only a prediction that was pasted in after failures; it is not trusted")
        if isinstance(guess, Mapping):
            return pick_action(guess, actions), "prediction"
    except ValueError as error:
        raise ValueError(f"step {number}: {error}") from error
    raise ValueError(f"step {number}: found neither Grounding.ground_truth nor Predicted.predicted_action")


def _is_fallback(record: Mapping[str, Any], guess: Any) -> bool:
    texts = [record.get("Reason"), record.get("decision_branch")]
    is_said = any(isinstance(text, str) and _FALLBACK.search(text) for text in texts)
    return is_said or (isinstance(guess, Mapping) and guess.get("target") == _PLACEHOLDER_TARGET)


def _find_image(
    number: int, record: Mapping[str, Any], folder: Path, images_dir: Path | None
) -> tuple[bytes | Path, str]:
    """Find a step's screenshot, and its recorded name: embedded, or by its bare name. Recorded folders are stale."""
    info = record.get("image_info")
    info = info if isinstance(info, Mapping) else {}
    uri = info.get("image_data_uri")
    if isinstance(uri, str) and is_inline(uri):
        try:
            return decode_picture(uri), ""
        except ValueError as error:
            raise ValueError(f"step {number}: image_data_uri: {error}") from error
    names = [info.get(key) for key in ("image_path", "image_path_absolute")]
    bare = {PurePosixPath(name.replace("\\", "/")).name: name for name in names if isinstance(name, str) and name}
    places = [images_dir] if images_dir else [folder, folder / "images", folder.parent / "images", folder.parent]
    for name, recorded in bare.items():
        if found := find_screenshot(name, places):
            return found, recorded
    wanted = next(iter(bare), "")
    hint = next((hint for place in places if (hint := suggest_names(wanted, place))), "")
    raise ValueError(f"step {number}: found no screenshot {wanted!r}; give its folder with --images_dir{hint}")


def _read_original(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the annotators' own step. `Reason` is never read as a note: the pipeline makes it from the label."""
    grounding = record.get("Grounding")
    label = grounding.get("ground_truth") if isinstance(grounding, Mapping) else None
    original = label.get("original_step_data") if isinstance(label, Mapping) else None
    return original if isinstance(original, Mapping) else {}


def _count_steps(path: Path) -> int:
    try:
        return len(read_literal(path.read_text(encoding="utf-8-sig"))["steps"])
    except (ValueError, KeyError, TypeError):
        return 0
