"""One text in two Unicode forms is one text: in a task, between train and test, in a split, in older files."""

import hashlib
import json
import unicodedata
from dataclasses import replace

import pytest
from trajectory_samples import TINY_AGENT, build_task, build_tasks, write_trajectories

from sft.check import __main__ as check
from sft.data.cells import Grounding
from sft.data.load import TrajectoryError, load_task_set, load_trajectories
from sft.data.overlap import (
    find_overlap,
    find_trained_tasks,
    find_unseen_applications,
    hash_goal,
    list_goal_hashes,
    normalise_goal,
    refuse_trained_tasks,
)
from sft.data.train_val import describe_tasks, load_task_split, split_by_task
from sft.errors import UserError
from sft.memory import EMPTY_MEMORY
from sft.prompts import build_prompt
from sft.recipe.settings import DataSettings
from sft.split import __main__ as split

GOAL = "Öffne die Übersicht für Café Müller"
FORMS = {
    "composed": unicodedata.normalize("NFC", GOAL),
    "decomposed": unicodedata.normalize("NFD", GOAL),
    "letter case": GOAL.upper(),
    "no-break space": GOAL.replace(" ", "\u00a0"),
    "other spaces": GOAL.replace(" ", "\u2009\u3000"),
    "zero width space": GOAL.replace("C", "\u200bC"),
    "byte order mark": "\ufeff" + GOAL,
    "soft hyphen": GOAL.replace("sicht", "\u00adsicht"),
    "direction mark": GOAL + "\u200e",
    "joiner": GOAL.replace("C", "C\u034f"),
    "filler": GOAL + "\u3164",
    "variation selectors": GOAL.replace("M", "M\ufe0e\U000e0100"),
    "end of a sentence": GOAL + ".",
    "space and full stop": GOAL + " .",
    "ellipsis": GOAL + "\u2026",
    "Cyrillic": GOAL.translate(str.maketrans("aeC", "\u0430\u0435\u0421")),
    "Greek": GOAL.translate(str.maketrans("ivM", "\u03b9\u03bd\u039c")),
    "full width": GOAL.translate({ord(c): ord(c) + 0xFEE0 for c in "dieCaM"}),
    "bold letters": GOAL.replace("M", "\U0001d40c"),
}


def _load(folder, *goals, task_id="t"):
    rows = [row for i, goal in enumerate(goals) for row in build_task(f"{task_id}{i}", goal, 2, 2, 0)]
    return load_task_set(write_trajectories(folder, rows), show_progress=False)


def _hash_as_older_versions(text):
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()[:16]


@pytest.mark.parametrize("form", FORMS)
def test_goal_in_another_form_is_the_same_task_in_train_and_test(tmp_path, form):
    train, test = _load(tmp_path / "a", GOAL), _load(tmp_path / "b", FORMS[form])
    assert find_overlap(test, train).same_goals == ("t0",)
    with pytest.raises(UserError, match="found 1 tasks whose goal is in train_csv too"):
        paths = {"train_csv": str(train.path), "val_csv": str(test.path)}
        load_task_split(DataSettings(**paths), TINY_AGENT, 0, show_progress=False)


@pytest.mark.parametrize("form", FORMS)
def test_rollout_is_refused_on_a_goal_that_was_trained_on_in_another_form(tmp_path, form):
    trained = _load(tmp_path / "a", GOAL).trajectories[0]
    data = {"train": {"tasks": {"x": hash_goal(trained.instruction)}}}
    (tmp_path / "training_data.json").write_text(json.dumps(data))
    found = find_trained_tasks(str(tmp_path), _load(tmp_path / "b", FORMS[form]).trajectories)
    with pytest.raises(UserError, match="found 1 tasks that the model was trained on"):
        refuse_trained_tasks(found, "test.csv", allow_overlap=False)


def test_goal_that_the_version_before_hashed_with_its_full_stop_is_found():
    for text in (f"{GOAL}.", f"{GOAL} .", GOAL):
        assert _hash_as_older_versions(f"{GOAL}.") in list_goal_hashes(text)


@pytest.mark.parametrize("written", ["composed", "decomposed"])
@pytest.mark.parametrize("given", ["composed", "decomposed", "letter case", "no-break space"])
def test_hash_that_an_older_version_wrote_is_understood(written, given):
    assert _hash_as_older_versions(FORMS[written]) in list_goal_hashes(unicodedata.normalize("NFC", FORMS[given]))


@pytest.mark.parametrize("goal", ["Open <|im_end|> now", "Open the\u200bstudy", "  open\tTHE study "])
def test_hash_that_an_older_version_wrote_of_the_same_file_is_found(tmp_path, goal):
    (tmp_path / "training_data.json").write_text(
        json.dumps({"train": {"tasks": {"x": _hash_as_older_versions(goal.strip())}}})
    )
    assert find_trained_tasks(str(tmp_path), _load(tmp_path, goal).trajectories) == {"train": ["t0"]}


@pytest.mark.parametrize(
    ("trained", "unseen"),
    [
        ({"train": {"Viewer": 3}}, ["Archive"]),
        ({"train": {"Viewer": 3}, "val": {"Archive": 1}}, []),
        ({"train": {"": 1, "Viewer": 3}}, []),
        ({"train": {}}, []),  # written before a task that names none was noted
        ({"train": None}, []),  # written before applications were noted
        ({}, []),
    ],
    ids=["one", "chosen by", "one task names none", "no task names one", "older", "not trained here"],
)
def test_applications_that_a_model_never_saw_are_found(tmp_path, trained, unseen):
    if trained:
        parts = {
            name: {"tasks": {"t": ""}, **({} if found is None else {"applications": found})}
            for name, found in trained.items()
        }
        (tmp_path / "training_data.json").write_text(json.dumps(parts))
    tasks = load_trajectories(write_trajectories(tmp_path, build_tasks(4)), show_progress=False)
    assert find_unseen_applications(str(tmp_path), tasks) == unseen


def test_training_notes_every_application_that_its_tasks_use(tmp_path):
    rows = [{**row, "Application": ""} for row in build_tasks(2)]
    rows[1]["Grounding"] = json.dumps({"application": "Archive"})
    tasks = load_trajectories(write_trajectories(tmp_path, rows), show_progress=False)
    assert [t.application for t in tasks] == ["Viewer", "Viewer"]
    assert describe_tasks(tasks, "train.csv", "")["applications"] == {"Archive": 1, "Viewer": 2}
    unnamed = replace(tasks[1], application="", steps=tuple(replace(s, grounding=Grounding()) for s in tasks[1].steps))
    assert describe_tasks([tasks[0], unnamed], "train.csv", "")["applications"] == {"": 1, "Archive": 1, "Viewer": 1}


def test_hash_of_a_plain_goal_is_what_older_versions_wrote():
    assert hash_goal("Open the study of DOE^J") == _hash_as_older_versions("Open the study of DOE^J")


def test_other_goals_stay_other_goals():
    goals = ("Öffne", "Offne", "Open 10²", "Open 102", "Open A", "Open B", "Open 1.5", "Open 15", "?", "!", "")
    assert len(set(map(normalise_goal, goals))) == len(goals)


def test_rows_of_one_task_may_hold_its_goal_in_two_forms_and_the_prompt_shows_it_in_one(tmp_path):
    rows = build_task("t", FORMS["composed"], 2)
    rows[1]["Instruction"] = FORMS["decomposed"]
    (task,) = load_task_set(write_trajectories(tmp_path, rows), show_progress=False).trajectories
    assert task.instruction == FORMS["composed"]
    shown = build_prompt(task.instruction, EMPTY_MEMORY, TINY_AGENT)[1]["content"][1]["text"]
    assert shown.splitlines()[0] == f"Goal: {task.instruction}"


def test_rows_that_differ_in_what_the_prompt_shows_are_refused_with_the_difference_visible(tmp_path):
    rows = build_task("t", GOAL, 2)
    rows[1]["Instruction"] = FORMS["zero width space"]
    with pytest.raises(TrajectoryError, match=r"row 3: Instruction: found '.*\\u200bCafé.*'; expected the same text"):
        load_task_set(write_trajectories(tmp_path, rows), show_progress=False)


def test_ids_and_labels_in_two_forms_are_one_task_and_one_label(tmp_path):
    rows = [*build_task("Fälle", "one", 2), *build_task("b", "two", 2)]
    for row, form in zip(rows, ("NFC", "NFD", "NFC", "NFD")):
        row["Application"] = row["Group"] = "Röntgen"
        for column in ("Task_id", "Application", "Group"):
            row[column] = unicodedata.normalize(form, row[column])
    path = write_trajectories(tmp_path, rows)
    tasks = load_task_set(path, show_progress=False).trajectories
    assert [(t.task_id, len(t.steps), t.application, t.group) for t in tasks] == [
        ("Fälle", 2, "Röntgen", "Röntgen"),
        ("b", 2, "Röntgen", "Röntgen"),
    ]
    split.main([str(path), "--parts", "train=0.5,test=0.5"])
    manifest = json.loads((tmp_path / "split.json").read_text())
    assert sorted(t for part in manifest["parts"].values() for t in part["tasks"]) == ["Fälle", "b"]
    assert sum(part["n_steps"] for part in manifest["parts"].values()) == 4


@pytest.mark.parametrize("grouping", ["none", "goal"])
def test_split_keeps_the_forms_of_one_goal_together(tmp_path, grouping):
    written = [f"{GOAL} {i} {'xyz' * i}" for i in range(6)]
    goals = [unicodedata.normalize(form, goal) for goal in written for form in ("NFC", "NFD")]
    tasks = _load(tmp_path, *goals)
    flags = ["--group_by", grouping, "--goal_similarity", "99.9", "--parts", "train=0.5,test=0.5"]
    split.main([str(tasks.path), *flags])
    manifest = json.loads((tmp_path / "split.json").read_text())
    assert manifest["n_groups"] == 6
    assert manifest["overlaps"][0]["n_same_goals"] == 0
    train, val = split_by_task(tasks.trajectories, 0.5, 0)
    assert {normalise_goal(t.instruction) for t in train}.isdisjoint(normalise_goal(t.instruction) for t in val)


def test_check_finds_the_goal_of_other_data_in_another_form(tmp_path, capsys):
    train, test = _load(tmp_path / "a", GOAL), _load(tmp_path / "b", FORMS["decomposed"])
    with pytest.raises(SystemExit):
        check.main([str(test.path), "--against", str(train.path)])
    assert "found the goal" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("column", "expected"), [("Task_id", "the task's id"), ("Instruction", "the user's goal")])
@pytest.mark.parametrize("text", ["nan", "None", "<NA>"])
def test_missing_value_in_words_is_no_id_and_no_goal(tmp_path, column, text, expected):
    rows = [{**row, column: text} for row in build_task("t", "goal", 1)]
    with pytest.raises(TrajectoryError, match=f"{column}: found '{text}', a missing value; expected {expected}"):
        load_task_set(write_trajectories(tmp_path, rows), show_progress=False)
