"""Quarantine: a task with a bad row is set aside whole, with its reason, and every count says so."""

import json

import pytest
from trajectory_samples import build_output, build_tasks, format_csv, write_trajectories

from eval import rollout
from sft.batches.examples import load_task_split
from sft.data.load import TrajectoryError, load_task_set, load_trajectories
from sft.errors import UserError
from sft.prompts import AgentConfig
from sft.recipe.recipe import parse_recipe


def _write_with_bad_rows(folder, n_tasks=5):
    """Write tasks t1..t5: t2 has a broken Output, t4 lacks a screenshot and has a wrong Slide_number."""
    rows = build_tasks(n_tasks)
    rows[4]["Output"] = "{"
    rows[9]["Image_id"] = "screens/gone.png"
    rows[11]["Slide_number"] = "three"
    return write_trajectories(folder, rows)


def test_task_with_a_bad_row_is_set_aside_whole_with_every_reason(tmp_path):
    tasks = load_task_set(_write_with_bad_rows(tmp_path), on_bad_rows="quarantine", show_progress=False)
    assert [t.task_id for t in tasks.trajectories] == ["t1", "t3", "t5"]
    assert [(q.task_id, q.rows) for q in tasks.quarantined] == [("t2", (5, 6, 7)), ("t4", (11, 12, 13))]
    assert [(p.row, p.column) for p in tasks.quarantined[1].problems] == [(11, "Image_id"), (13, "Slide_number")]
    assert "found broken JSON" in tasks.quarantined[0].problems[0].message


def test_refusing_is_the_default_and_lists_the_same_problems(tmp_path):
    path = _write_with_bad_rows(tmp_path)
    with pytest.raises(TrajectoryError) as error:
        load_trajectories(path, show_progress=False)
    assert [(p.row, p.task_id) for p in error.value.problems] == [(6, "t2"), (11, "t4"), (13, "t4")]


def test_row_with_too_few_cells_takes_its_task_with_it(tmp_path):
    path = write_trajectories(tmp_path, build_tasks(3))
    lines = path.read_text().splitlines(keepends=True)
    lines[4] = "t2,1,screens/0.png\n"
    path.write_text("".join(lines))
    tasks = load_task_set(path, on_bad_rows="quarantine", show_progress=False)
    assert [t.task_id for t in tasks.trajectories] == ["t1", "t3"]
    assert tasks.quarantined[0].rows == (5, 6, 7)


def test_row_that_names_no_task_is_refused_even_then(tmp_path):
    rows = build_tasks(3)
    rows[3]["Task_id"] = " "
    with pytest.raises(TrajectoryError, match="row 5: Task_id: found an empty cell"):
        load_task_set(write_trajectories(tmp_path, rows), on_bad_rows="quarantine", show_progress=False)


def test_file_without_one_usable_task_is_refused_even_then(tmp_path):
    rows = [{**row, "Output": "{"} for row in build_tasks(2)]
    with pytest.raises(TrajectoryError, match="6 problems; nothing was loaded"):
        load_task_set(write_trajectories(tmp_path, rows), on_bad_rows="quarantine", show_progress=False)


def test_missing_column_is_refused_even_then(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text(format_csv(build_tasks(1), ["Task_id", "Image_id", "Instruction", "Output"]))
    with pytest.raises(TrajectoryError, match="expected Grounding too"):
        load_task_set(path, on_bad_rows="quarantine", show_progress=False)


def _parse(tmp_path, csv_path, *flags):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"train_csv: {csv_path}\nmodel_name_or_path: base\n")
    return parse_recipe([str(recipe), *flags])


def test_recipe_key_decides_and_the_split_names_what_was_set_aside(tmp_path):
    recipe = _parse(tmp_path, _write_with_bad_rows(tmp_path), "--on_bad_rows", "quarantine", "--val_split", "0.4")
    split = load_task_split(recipe.data, recipe.agent, seed=0, show_progress=False)
    assert len(split.train) + len(split.val) == 3
    assert [q.task_id for q in split.quarantined] == ["t2", "t4"]
    refusing = _parse(tmp_path, recipe.data.train_csv)
    with pytest.raises(UserError, match="3 problems; nothing was loaded"):
        load_task_split(refusing.data, AgentConfig(), seed=0, show_progress=False)


def test_recipe_refuses_another_word(tmp_path):
    with pytest.raises(UserError, match="on_bad_rows: found 'skip'; expected"):
        _parse(tmp_path, "x.csv", "--on_bad_rows", "skip")


def _roll_out(csv_path, out, *flags):
    rollout.main(["--policy", "replay", "--test_csv", str(csv_path), "--output_dir", str(out), *flags])
    return json.loads((out / "metrics.json").read_text())


def test_rollout_counts_what_was_set_aside_in_summary_run_and_report(tmp_path, capsys):
    path = _write_with_bad_rows(tmp_path)
    metrics = _roll_out(path, tmp_path / "out", "--on_bad_rows", "quarantine")
    sentence = "Not in these numbers: 2 tasks (6 rows) set aside for bad rows: t2, t4."
    assert sentence in capsys.readouterr().out
    assert sentence in (tmp_path / "out/report.html").read_text()
    assert metrics["n_tasks"] == 3
    assert metrics["run"]["data"]["quarantined"]["n_tasks"] == 2
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [(line["task_id"], line["rows"]) for line in lines] == [("t2", [5, 6, 7]), ("t4", [11, 12, 13])]
    assert lines[1]["problems"][1]["message"] == "found 'three'; expected a whole number from 1 on"


def test_rollout_of_clean_data_says_nothing_of_quarantine(tmp_path, capsys):
    _roll_out(write_trajectories(tmp_path, build_tasks(2)), tmp_path / "out", "--on_bad_rows", "quarantine")
    assert "set aside" not in capsys.readouterr().out
    assert not (tmp_path / "out/quarantine.jsonl").exists()


def test_quarantine_does_not_move_the_positions_of_other_tasks(tmp_path):
    path = _write_with_bad_rows(tmp_path)
    chosen = {"on_bad_rows": "quarantine", "show_progress": False}
    assert [t.task_id for t in load_trajectories(path, task_start=2, task_end=5, **chosen)] == ["t3", "t5"]
    rows = build_tasks(5)
    rows[4]["Output"] = build_output("CLICK", "Search")
    repaired = write_trajectories(tmp_path, rows)
    assert [t.task_id for t in load_trajectories(repaired, task_start=2, task_end=5, **chosen)] == ["t3", "t4", "t5"]
