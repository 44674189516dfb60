"""Memory in `Output` that tells the next step's answer: what counts, and who refuses it."""

import json

import pytest
from trajectory_samples import build_output, build_task, build_tasks, write_trajectories

from eval import rollout
from sft.actions import Action
from sft.agent import AgentConfig
from sft.answers import Answer
from sft.data.load import TrajectoryError
from sft.data.memory_audit import has_leak, list_shown_parts
from sft.data.train_val import load_task_split
from sft.recipe.settings import DataSettings

ACTIONS = (
    Action("CLICK", "Load Data"),
    Action("TEXT", "File name"),
    Action("ZOOM", "Slice view"),
    Action("COMPLETE", ""),
)
GOAL = "Segment the scan"


def _build_answers(memory_of_second, actions=ACTIONS, memory_of_first=None):
    """Return a task's right answers; the memory of the second is shown at the third, whose action it may not tell."""
    first = {"short_term": {}, "long_term": {}} if memory_of_first is None else memory_of_first
    memories = [first, memory_of_second, {}, {}]
    return [Answer(a, m.get("short_term", {}), m.get("long_term", {})) for a, m in zip(actions, memories)]


LEAKS = {
    "the next action as the last one": {"short_term": {"last_action": "ZOOM", "last_target": "Slice view"}},
    "in a sentence": {"short_term": {"last_action": "Zoomed into the slice view"}},
    "as what comes next": {"short_term": {"next_action": "ZOOM", "next_target": "Slice view"}},
    "inside another object": {"long_term": {"state": [{"action": "ZOOM", "target": "Slice view"}]}},
    "as already completed": {"long_term": {"completed_subtasks": ["TEXT File name", "ZOOM Slice view"]}},
    "by a hint": {"short_term": {"last_lesson": "Expected action: ZOOM"}},
    "spelled out in a text": {"short_term": {"last_observation": "file is open; ZOOM Slice view."}},
    "hidden behind the same key": {
        "short_term": {"last_action": "ZOOM", "last_target": "Slice view"},
        "long_term": {"last_action": "TEXT", "last_target": "File name"},
    },
}


@pytest.mark.parametrize("memory", LEAKS.values(), ids=LEAKS)
def test_memory_that_tells_the_next_action_is_found(memory):
    assert has_leak(_build_answers(memory), GOAL)


SOUND = {
    "nothing": {},
    "this step's own action": {"short_term": {"last_action": "TEXT", "last_target": "File name"}},
    "a plan": {"long_term": {"remaining_subtasks": ["ZOOM Slice view", "COMPLETE"]}},
    "the screen": {"short_term": {"last_observation": "the slice view is there; a hint says: click to zoom"}},
    "a hint on this step": {"short_term": {"last_lesson": "Expected action: TEXT"}},
    "a goal that says it": {"short_term": {"last_observation": "still to do: ZOOM Slice view"}},
}


@pytest.mark.parametrize("memory", SOUND.values(), ids=SOUND)
def test_memory_that_tells_of_earlier_steps_a_plan_or_the_screen_is_sound(memory):
    goal = "First TEXT File name, then ZOOM Slice view"
    assert not has_leak(_build_answers(memory), goal)


def test_memory_that_already_said_so_a_step_before_tells_nothing():
    """An action that is done again: the memory still names it from the first time."""
    again = (Action("CLICK", "Layout"), Action("TEXT", "File name"), Action("CLICK", "Layout"), Action("COMPLETE", ""))
    kept = {
        "short_term": {"last_lesson": "should use CLICK"},
        "long_term": {"completed_subtasks": ["CLICK Layout"], "history": [{"action": "CLICK", "target": "Layout"}]},
    }
    assert not has_leak(_build_answers(kept, again, memory_of_first=kept), GOAL)
    assert has_leak(_build_answers(kept, again), GOAL)


def test_target_whose_name_begins_with_the_next_one_is_not_the_next_one():
    similar = (Action("CLICK", "File"), Action("CLICK", "Save as"), Action("CLICK", "Save"), Action("COMPLETE", ""))
    for told in ("CLICK Save as", "Clicked on Save as in the menu"):
        memory = {"short_term": {"last_action": told}, "long_term": {"completed_subtasks": ["CLICK File", told]}}
        assert not has_leak(_build_answers(memory, similar), GOAL)


def test_completed_subtask_in_words_is_not_the_final_action():
    last = (Action("CLICK", "File"), Action("CLICK", "Save"), Action("COMPLETE", ""))
    assert not has_leak(_build_answers({"long_term": {"completed_subtasks": ["Completed the upload"]}}, last), GOAL)
    assert has_leak(_build_answers({"short_term": {"last_action": "COMPLETE", "last_target": ""}}, last), GOAL)


def test_parts_that_count_are_those_that_prompts_show():
    assert list_shown_parts(AgentConfig()) == ("short_term", "long_term")
    assert list_shown_parts(AgentConfig(use_short_term=False)) == ("long_term",)
    assert list_shown_parts(AgentConfig(memory_writer="rule")) == ()


@pytest.fixture
def leaking_csv(tmp_path):
    """Tasks t1 to t4; in t2 the memory of the first step tells the action of the second, SCROLL Study list."""
    rows = build_tasks(4, n_steps=4)
    told = json.loads(build_output("SCROLL", "Image"))
    told["short_term"] = {"last_action": json.loads(rows[5]["Output"])["action"], "last_target": "Image"}
    assert json.loads(rows[5]["Output"])["target"] == "Image"
    rows[4]["Output"] = json.dumps({**json.loads(rows[4]["Output"]), "short_term": told["short_term"]})
    return write_trajectories(tmp_path, rows)


def _load(csv_path, agent=None, **settings):
    data = DataSettings(str(csv_path), **settings)
    return load_task_split(data, agent or AgentConfig(), seed=0, show_progress=False)


def test_training_refuses_it_and_names_the_way_out(leaking_csv):
    with pytest.raises(TrajectoryError, match="row 6: Output: found memory that tells the answer") as error:
        _load(leaking_csv)
    assert len(error.value.problems) == 1
    assert "set memory_writer: rule" in str(error.value)


def test_validation_data_is_held_to_the_same(leaking_csv, tmp_path):
    (tmp_path / "train").mkdir()
    train_csv = write_trajectories(tmp_path / "train", build_task("a", "Close the study"))
    with pytest.raises(TrajectoryError, match="tells the answer of the next step"):
        _load(train_csv, val_csv=str(leaking_csv), image_root=str(tmp_path))


def test_task_with_it_can_be_set_aside_or_trained_on_with_memory_by_rule(leaking_csv):
    split = _load(leaking_csv, on_bad_rows="quarantine")
    assert ([t.task_id for t in split.train], [q.task_id for q in split.quarantined]) == (["t1", "t3", "t4"], ["t2"])
    for agent in (AgentConfig(memory_writer="rule"), AgentConfig(use_short_term=False)):
        assert len(_load(leaking_csv, agent).train) == 4


@pytest.mark.parametrize("flags", [["--mode", "teacher"], ["--mode", "all"], ["--self_check"]])
def test_rollout_that_shows_recorded_memory_refuses_it(leaking_csv, tmp_path, flags):
    where = [] if "--self_check" in flags else ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(TrajectoryError, match="tells the answer of the next step"):
        rollout.main(["--policy", "replay", "--test_csv", str(leaking_csv), *where, *flags])


def test_rollout_on_its_own_memory_takes_it(leaking_csv, tmp_path):
    rollout.main(["--policy", "replay", "--test_csv", str(leaking_csv), "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out/metrics.json").is_file()
