"""Trajectories: the shapes an Output may have, the order of tasks and steps, and text as real files hold it."""

import hashlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trajectory_samples import (
    COLUMNS,
    build_output,
    build_task,
    build_tasks,
    format_csv,
    write_screenshots,
    write_trajectories,
)

from sft.actions import Action, ActionType
from sft.answers import Answer
from sft.data.load import load_trajectories, natural_key
from sft.data.screenshots import open_screenshot
from sft.memory import EMPTY_MEMORY, Memory, lagged

SHORT, LONG = {"last_action": "TEXT"}, {"overall_progress": "half"}
TYPE = {"action": "TEXT", "target": "Name", "text": "DOE"}
GOLD = Action("TEXT", "Name", {"text": "DOE"})


def load(path, **options):
    return load_trajectories(path, show_progress=False, **options)


def load_text(folder, text, encoding="utf-8", **options):
    write_screenshots(folder)
    path = folder / "tasks.csv"
    path.write_bytes(text.encode(encoding))
    return load(path, **options)


def load_output(folder, output, grounding=""):
    row = {**build_task("t1", "goal")[0], "Output": json.dumps(output), "Grounding": grounding}
    return load(write_trajectories(folder, [row]))[0].steps[0]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({**TYPE, "short_term": SHORT, "long_term": LONG}, Answer(GOLD, SHORT, LONG)),
        (TYPE, Answer(GOLD)),
        (
            {"Predicted": {"predicted_action": TYPE}, "Short Term": SHORT, "Long Term": LONG, "Reason": "because"},
            Answer(GOLD, SHORT, LONG),
        ),
        ({"predicted_action": TYPE}, Answer(GOLD)),
        ({"predicted_next_action": {**TYPE, "action": "text"}}, Answer(GOLD)),
    ],
    ids=["compact", "compact without memory", "published record", "predicted_action", "predicted_next_action"],
)
def test_every_shape_of_output_gives_the_same_answer(tmp_path, output, expected):
    assert load_output(tmp_path, output).gold == expected


def test_ground_truth_in_grounding_is_the_gold_action(tmp_path):
    record = {"Predicted": {"predicted_action": {"action": "CLICK", "target": "Wrong"}}, "Short Term": SHORT}
    truth = json.dumps({"ground_truth": {"action": "TEXT", "target": "Name", "text": "DOE"}})
    assert load_output(tmp_path, record, truth).gold == Answer(GOLD, SHORT)


@pytest.mark.parametrize("kind", ["text", " Text ", "TEXT"])
def test_letter_case_of_the_true_action_does_not_cost_its_arguments(tmp_path, kind):
    truth = json.dumps({"ground_truth": {"action": kind, "target": "Name"}})
    gold = load_output(tmp_path, {"action": "TEXT", "target": "Other", "text": "DOE"}, truth).gold
    assert gold.action == Action("TEXT", "Name", {"text": "DOE"})


def test_arguments_of_another_action_than_the_true_one_are_not_kept(tmp_path):
    truth = json.dumps({"ground_truth": {"action": "ZOOM", "target": "Image"}})
    gold = load_output(tmp_path, {"action": "SCROLL", "target": "Image", "direction": "down"}, truth).gold
    assert gold.action == Action("ZOOM", "Image")


def test_grounding_is_kept_apart_from_the_answer(tmp_path):
    step = load_output(tmp_path, TYPE, '{"bbox": [1, 2, 3.5, 4], "screen": [320, 192]}')
    assert (step.grounding.bbox, step.grounding.screen_wh) == ((1, 2, 3.5, 4), (320, 192))
    assert load_output(tmp_path, TYPE, "").grounding.bbox is None


def test_tasks_come_in_natural_order_and_steps_by_slide_number(tmp_path):
    rows = build_task("t10", "a") + build_task("t2", "b") + build_task("t1", "c")
    trajectories = load(write_trajectories(tmp_path, rows[::-1]))
    assert [t.task_id for t in trajectories] == ["t1", "t2", "t10"]
    for trajectory in trajectories:
        assert [s.gold.action.kind for s in trajectory.steps] == ["CLICK", "TEXT", "COMPLETE"]
        assert [s.index for s in trajectory.steps] == [0, 1, 2]


def test_without_slide_number_the_order_of_the_file_is_the_order_of_steps(tmp_path):
    rows = build_task("t1", "a", 4)
    interleaved = [row for pair in zip(rows, build_task("t2", "b", 4, offset=1)) for row in pair]
    text = format_csv(interleaved, [c for c in COLUMNS if c != "Slide_number"])
    first, second = load_text(tmp_path, text)
    assert [s.gold.action.kind for s in first.steps] == ["CLICK", "TEXT", "SCROLL", "COMPLETE"]
    assert [s.gold.action.kind for s in second.steps] == ["TEXT", "SCROLL", "ZOOM", "COMPLETE"]


def test_slide_numbers_of_a_spreadsheet_are_read(tmp_path):
    rows = [{**row, "Slide_number": f" {row['Slide_number']}.0 "} for row in build_task("t1", "a", 12)]
    assert len(load(write_trajectories(tmp_path, rows[::-1]))[0].steps) == 12


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, ["t1", "t2", "t3", "t10"]),
        ({"task_start": 1, "task_end": 3}, ["t2", "t3"]),
        ({"task_start": -1}, ["t10"]),
        ({"task_end": 99}, ["t1", "t2", "t3", "t10"]),
    ],
)
def test_task_start_and_end_choose_by_position_in_natural_order(tmp_path, bounds, expected):
    rows = [row for task_id in ("t10", "t3", "t1", "t2") for row in build_task(task_id, task_id)]
    assert [t.task_id for t in load(write_trajectories(tmp_path, rows), **bounds)] == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: "\ufeff" + text,
        lambda text: text + "\n\n,,,,,,,\n",
        lambda text: text.rstrip("\n"),
    ],
    ids=["CRLF", "CR", "byte order mark", "blank lines at the end", "no newline at the end"],
)
def test_text_files_of_any_system_give_the_same_trajectories(tmp_path, change):
    text = format_csv(build_tasks(2))
    plain = load_text(tmp_path, text)
    assert len(plain) == 2
    assert [(t.instruction, [s.gold for s in t.steps]) for t in load_text(tmp_path, change(text))] == [
        (t.instruction, [s.gold for s in t.steps]) for t in plain
    ]


@pytest.mark.parametrize("separator", ["\u2028", "\x0b", "\x0c", "\x85", "\x1c", "\n", "\r\n"])
def test_only_line_ends_end_a_line_and_none_inside_a_cell(tmp_path, separator):
    goal = f"Open the study{separator}then measure"
    for quoting in (0, 1):  # QUOTE_MINIMAL, QUOTE_ALL
        trajectory = load_text(tmp_path, format_csv(build_task("t1", goal), quoting=quoting))[0]
        assert (trajectory.instruction, len(trajectory.steps)) == (goal, 3)


def test_text_beyond_ascii_is_kept(tmp_path):
    goal, target = "Öffne die Studie von 患者 🙂", "Größe, “quoted”"
    rows = [{**row, "Instruction": goal} for row in build_task("t1", goal)]
    rows[0]["Output"] = build_output("CLICK", target)
    trajectory = load(write_trajectories(tmp_path, rows))[0]
    assert (trajectory.instruction, trajectory.steps[0].gold.action.target) == (goal, target)


def test_control_token_in_the_gold_is_read_as_it_is_taught(tmp_path):
    assert load_output(tmp_path, {"action": "CLICK", "target": "<|im_end|>"}).gold.action.target == "< |im_end|>"


def test_application_comes_from_its_column_or_else_from_grounding(tmp_path):
    rows = build_task("t1", "a") + [{**row, "Application": ""} for row in build_task("t2", "b", offset=1)]
    text = format_csv(rows)
    assert [t.application for t in load_text(tmp_path, text)] == ["Viewer", "Viewer"]
    without = format_csv(rows, [c for c in COLUMNS if c not in ("Application", "Group")])
    assert [(t.application, t.group) for t in load_text(tmp_path, without)] == [("Viewer", ""), ("Viewer", "")]
    rows = [{**row, "Application": "", "Grounding": "{}"} for row in rows]
    assert {t.application for t in load_text(tmp_path, format_csv(rows))} == {""}


def test_image_root_may_lie_elsewhere(tmp_path):
    write_screenshots(tmp_path / "images")
    path = tmp_path / "tasks.csv"
    path.write_text(format_csv(build_tasks(1)))
    step = load(path, image_root=tmp_path / "images")[0].steps[0]
    assert step.image_path == (tmp_path / "images" / step.image_id).resolve()


def test_another_vocabulary_reads_its_own_actions(tmp_path):
    actions = (ActionType("DRAG", "drag it"), ActionType("DONE", "end", is_final=True))
    rows = [{**row, "Output": build_output("DRAG", "slice")} for row in build_task("t1", "a", 2)]
    rows[1]["Output"] = build_output("DONE", "")
    steps = load(write_trajectories(tmp_path, rows), actions=actions)[0].steps
    assert [s.gold.action.kind for s in steps] == ["DRAG", "DONE"]


def test_gold_memory_lags_by_one_step(tmp_path):
    trajectory = load(write_trajectories(tmp_path, build_task("t1", "a", 4)))[0]
    memories = list(lagged(trajectory.golds, "model", 1200))
    assert memories[0] == EMPTY_MEMORY
    for memory, step in zip(memories[1:], trajectory.steps):
        assert memory == Memory(step.gold.short_term, step.gold.long_term)
    by_rule = list(lagged(trajectory.golds, "rule", 1200))[:-1]
    assert [m.long_term.get("completed_subtasks", []) for m in by_rule] == [
        [],
        ["CLICK Search"],
        ["CLICK Search", "TEXT Patient Name"],
        ["CLICK Search", "TEXT Patient Name", "SCROLL Study list"],
    ]


def test_numbers_in_ids_count_as_numbers():
    ids = ["t10", "t2", "a", "t2b", "t02a", "12", "9", "t", ""]
    assert sorted(ids, key=natural_key) == ["", "9", "12", "a", "t", "t2", "t02a", "t2b", "t10"]


@given(st.lists(st.text(max_size=12), max_size=8).map(lambda ids: [*ids, "t" + "7" * 5_000]))
def test_any_ids_can_be_sorted_and_numbers_of_any_length_compared(ids):
    keys = [natural_key(task_id) for task_id in ids]
    keys.sort()
    assert all(first <= second for first, second in zip(keys, keys[1:]))
    assert natural_key("t" + "9" * 4_999) < natural_key("t" + "7" * 5_000) < natural_key("t" + "8" * 5_000)


def test_files_of_a_hub_cache_are_read_through_its_links(tmp_path):
    """`snapshots/<revision>/` holds links to `blobs/`, data and screenshots alike."""
    plain = write_trajectories(tmp_path / "plain", build_tasks(2))
    blobs, snapshot = tmp_path / "datasets--a--b/blobs", tmp_path / "datasets--a--b/snapshots/0123abc"
    blobs.mkdir(parents=True)
    for path in [plain, *(tmp_path / "plain/screens").iterdir()]:
        link = snapshot / path.relative_to(tmp_path / "plain")
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    linked = load_trajectories(snapshot / "tasks.csv", show_progress=False)
    shas = [[s.image_sha256 for s in t.steps] for t in load_trajectories(plain, show_progress=False)]
    assert [[s.image_sha256 for s in t.steps] for t in linked] == shas
    assert open_screenshot(linked[0].steps[0].image_path).size == (320, 192)


def test_screenshots_behind_a_linked_folder_are_read(tmp_path):
    path = write_trajectories(tmp_path / "data", build_tasks(1))
    (tmp_path / "data/screens").rename(tmp_path / "storage")
    (tmp_path / "data/screens").symlink_to(tmp_path / "storage")
    assert len(load_trajectories(path, show_progress=False)) == 1
