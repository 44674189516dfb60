"""Which tasks validate: goals decide, ids do not, and nothing is in both parts unnoticed."""

import logging

import pytest
from trajectory_samples import build_task, build_tasks, write_trajectories

from sft.agent import AgentConfig
from sft.data.load import load_trajectories
from sft.data.overlap import hash_goal
from sft.data.train_val import load_task_split, split_by_task
from sft.errors import UserError
from sft.recipe.settings import DataSettings


def _load(folder, train_rows, val_rows, **settings):
    train, val = (
        str(write_trajectories(folder, rows, f"{name}.csv"))
        for name, rows in (("train", train_rows), ("val", val_rows))
    )
    return load_task_split(DataSettings(train, val, **settings), AgentConfig(), seed=0, show_progress=False)


def test_train_and_val_files_may_number_their_tasks_alike(tmp_path, caplog):
    caplog.set_level(logging.INFO, "sft")
    val_rows = [row for i in (1, 2, 3) for row in build_task(f"t{i}", f"Close the study of DOE{i:03d}")]
    split = _load(tmp_path, build_tasks(3), val_rows)
    assert [t.task_id for t in split.train] == [t.task_id for t in split.val] == ["t1", "t2", "t3"]
    assert "val: 2 of 2 screenshots are in train_csv too" in caplog.text


def test_val_goal_that_is_trained_on_is_refused_in_one_line_whatever_its_id(tmp_path):
    val_rows = [*build_task("x", "OPEN the  study of DOE001"), *build_task("y", "Close it"), *build_tasks(1, first=3)]
    with pytest.raises(UserError) as error:
        _load(tmp_path, build_tasks(4), val_rows)
    message = str(error.value)
    assert "val.csv: found 2 tasks whose goal is in train_csv too (t3, x); expected unseen tasks" in message
    assert "allow_overlap: true" in message
    assert "\n" not in message


def test_many_shared_goals_are_counted_and_the_first_are_named(tmp_path):
    with pytest.raises(UserError, match=r"found 30 tasks whose goal .*\(t1, t2, .*, t20, \.\.\.\)"):
        _load(tmp_path, build_tasks(30), build_tasks(30))


def test_overlap_that_is_wanted_is_logged(tmp_path, caplog):
    split = _load(tmp_path, build_tasks(3), build_tasks(2), allow_overlap=True)
    assert (len(split.train), len(split.val)) == (3, 2)
    assert "found 2 tasks whose goal is in train_csv too (t1, t2)" in caplog.text


def test_tasks_with_one_goal_are_held_out_together(tmp_path):
    rows = [row for i in range(20) for row in build_task(f"t{i}", f"Open DOE{i // 2}" + " " * (i % 2), 2, 2, 0)]
    tasks = load_trajectories(write_trajectories(tmp_path, rows), show_progress=False)
    for seed in range(5):
        train, val = split_by_task(tasks, 0.3, seed)
        goals = [{hash_goal(t.instruction) for t in part} for part in (train, val)]
        assert (len(val), goals[0] & goals[1]) == (6, set())


def test_each_application_gives_a_task_to_validation_but_never_its_only_one(tmp_path):
    viewer = [row for i in range(8) for row in build_task(f"v{i}", f"Open DOE{i}", 2, 2, 0)]
    tasks = load_trajectories(
        write_trajectories(tmp_path, [*viewer, *build_task("archived", "Close it", 2, 2, 1)]), show_progress=False
    )
    for share, n_held_out in ((0.01, 1), (0.5, 4), (0.99, 7)):
        train, val = split_by_task(tasks, share, seed=0)
        assert "archived" in {t.task_id for t in train} and {t.application for t in val} == {"Viewer"}
        assert (len(train), len(val)) == (9 - n_held_out, n_held_out)
    assert split_by_task(tasks, 0.0, seed=0) == (tasks, [])
