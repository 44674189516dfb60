"""Splitting by task: seeded, stratified, rewordings together, hashes that hold."""

import csv
import hashlib
import json

import pytest
from trajectory_samples import build_task, build_tasks, format_csv, write_screenshots, write_trajectories

from sft.data.load import load_trajectories
from sft.data.split_file import find_split
from sft.errors import UserError
from sft.split import __main__ as split


def _split(csv_path, *flags):
    split.main([str(csv_path), *flags])
    folder = csv_path.parent
    if "--output_dir" in flags:
        folder = type(csv_path)(flags[flags.index("--output_dir") + 1])
    return json.loads((folder / "split.json").read_text())


def _ids(manifest):
    return {name: set(part["tasks"]) for name, part in manifest["parts"].items()}


def test_every_task_is_in_exactly_one_part_with_all_its_rows(tmp_path):
    manifest = _split(write_trajectories(tmp_path, build_tasks(40)))
    ids = _ids(manifest)
    assert sum(map(len, ids.values())) == len(set().union(*ids.values())) == 40
    for name, part in manifest["parts"].items():
        tasks = load_trajectories(tmp_path / f"{name}.csv", show_progress=False)
        assert {t.task_id for t in tasks} == ids[name]
        assert sum(len(t.steps) for t in tasks) == part["n_steps"] == 3 * part["n_tasks"]


def test_each_application_is_parted_in_the_same_shares(tmp_path):
    manifest = _split(write_trajectories(tmp_path, build_tasks(40)), "--parts", "train=0.8,test=0.2")
    assert manifest["parts"]["train"]["applications"] == {"Archive": 16, "Viewer": 16}
    assert manifest["parts"]["test"]["applications"] == {"Archive": 4, "Viewer": 4}


def test_same_seed_gives_the_same_bytes_and_another_seed_another_split(tmp_path):
    path = write_trajectories(tmp_path, build_tasks(40))
    manifests = [_split(path, "--seed", seed, "--output_dir", str(tmp_path / out)) for seed, out in
                 (("1", "a"), ("1", "b"), ("2", "c"))]  # fmt: skip
    contents = [(tmp_path / out / "train.csv").read_bytes() for out in "abc"]
    assert contents[0] == contents[1]
    assert _ids(manifests[0]) == _ids(manifests[1])
    assert _ids(manifests[0]) != _ids(manifests[2])


def test_parts_do_not_depend_on_the_order_of_the_rows(tmp_path):
    rows = build_tasks(30)
    first = _split(write_trajectories(tmp_path / "a", rows))
    second = _split(write_trajectories(tmp_path / "b", sorted(rows, key=lambda r: (r["Slide_number"], r["Output"]))))
    assert _ids(first) == _ids(second)


def test_cells_are_written_as_they_were(tmp_path):
    notes = ('a "quoted",\nold note', "two\rlines", "plain")
    rows = [{**row, "Mine": notes[i % 3]} for i, row in enumerate(build_tasks(20))]
    path = write_trajectories(tmp_path, rows)
    path.write_text(format_csv(rows, [*rows[0]], quoting=csv.QUOTE_ALL), newline="")
    manifest = _split(path, "--parts", "train=0.5,test=0.5")
    with (tmp_path / "test.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert written == [row for row in rows if row["Task_id"] in manifest["parts"]["test"]["tasks"]]


def test_rewordings_of_one_task_stay_together(tmp_path):
    seeds = (
        "Load the liver scan and outline the tumour",
        "Upload yesterday's X-ray report to the archive",
        "Register a new patient with her insurance number",
        "Compare both knee series side by side",
        "Print the blood count of ward seven",
        "Rename every measurement after its side",
    )
    goals = {
        f"s{i}-{k}": g for i, goal in enumerate(seeds) for k, g in enumerate((goal, f"Please {goal.lower()} now."))
    }
    rows = [row for task_id, goal in goals.items() for row in build_task(task_id, goal, 2, 2, 0)]
    path = write_trajectories(tmp_path, rows)
    grouped = _split(path, "--group_by", "goal", "--goal_similarity", "75", "--parts", "train=0.5,test=0.5")
    assert grouped["n_groups"] == 6
    for ids in _ids(grouped).values():
        assert all((f"s{i}-0" in ids) == (f"s{i}-1" in ids) for i in range(6))
    alone = _split(path, "--parts", "train=0.5,test=0.5")
    assert any((f"s{i}-0" in ids) != (f"s{i}-1" in ids) for i in range(6) for ids in _ids(alone).values())


def test_equal_goals_stay_together_under_every_grouping(tmp_path):
    rows = [row for i in range(20) for row in build_task(f"t{i}", f"Open DOE{i // 2}" + " " * (i % 2), 2, 2, 0)]
    manifest = _split(write_trajectories(tmp_path, rows), "--parts", "train=0.5,test=0.5")
    for ids in _ids(manifest).values():
        assert {f"t{int(t[1:]) ^ 1}" for t in ids} == ids
    assert manifest["overlaps"][0]["n_same_goals"] == 0


def test_tasks_that_share_a_screenshot_stay_together(tmp_path):
    rows = build_tasks(6, n_steps=2)
    for row in rows:
        row["Image_id"] = f"screens/{(int(row['Task_id'][1:]) - 1) // 2}.png"
    path = write_trajectories(tmp_path, rows)
    write_screenshots(tmp_path, 3)
    manifest = _split(path, "--group_by", "screenshot", "--parts", "train=0.6,test=0.4")
    for ids in _ids(manifest).values():
        assert all((f"t{2 * k + 1}" in ids) == (f"t{2 * k + 2}" in ids) for k in range(3))
    assert manifest["overlaps"][0]["n_same_screenshots"] == 0


def test_groups_too_large_for_the_parts_are_refused(tmp_path):
    path = write_trajectories(tmp_path, build_tasks(6))
    with pytest.raises(UserError, match=r"found 1 groups of tasks that stay together, the largest of 6"):
        split.main([str(path), "--group_by", "screenshot"])
    assert not (tmp_path / "train.csv").exists()


def test_every_task_that_uses_a_held_out_application_is_in_test_and_the_others_are_split(tmp_path):
    """By hand: 20 tasks of the archive, 20 of the viewer, of which one ends in the archive and one shares a goal."""
    rows = build_tasks(40)
    viewer = [row["Task_id"] for row in rows if row["Application"] == "Viewer" and row["Slide_number"] == "1"]
    archive = {row["Task_id"] for row in rows if row["Application"] == "Archive"}
    wanders, shares = viewer[0], viewer[1]
    for row in rows:
        if row["Task_id"] == wanders and row["Slide_number"] == "3":
            row["Grounding"] = json.dumps({"application": "Archive"})
        if row["Task_id"] == shares:
            row["Instruction"] = next(r["Instruction"] for r in rows if r["Task_id"] in archive).upper()
    path = write_trajectories(tmp_path, rows)
    manifest = _split(path, "--hold_out_application", "Archive")
    ids = _ids(manifest)
    assert ids["test"] >= archive | {wanders, shares}
    assert [len(ids[name]) for name in ("train", "val", "test")] == [12, 2, 26]  # 18 others: 12.6, 1.8 and 3.6
    assert manifest["held_out_applications"] == ["Archive"]
    assert find_split(tmp_path / "train.csv")["held_out_applications"] == ["Archive"]
    assert _split(path)["held_out_applications"] == []


def test_two_applications_can_be_held_out_and_what_is_left_must_fill_the_parts(tmp_path):
    names = {row["Task_id"]: "ABC"[i % 3] for i, row in enumerate(build_tasks(30, n_steps=1))}
    rows = [{**row, "Application": names[row["Task_id"]], "Grounding": ""} for row in build_tasks(30)]
    path = write_trajectories(tmp_path, rows)
    manifest = _split(path, "--hold_out_application", "A", "--hold_out_application", " C ")
    assert set(manifest["parts"]["train"]["applications"]) == set(manifest["parts"]["val"]["applications"]) == {"B"}
    with pytest.raises(UserError, match="expected enough to fill train, val"):
        split.main([str(path), *(flag for name in "ABC" for flag in ("--hold_out_application", name))])


def test_application_that_the_data_lacks_is_refused_with_those_it_has(tmp_path, capsys):
    path = write_trajectories(tmp_path, build_tasks(20))
    message = "found 'Orthanc'; expected an application that the data names: 'Archive', 'Viewer'"
    with pytest.raises(UserError, match=message):
        split.main([str(path), "--hold_out_application", "Orthanc"])
    with pytest.raises(SystemExit):
        split.main([str(path), "--hold_out_application", "Archive", "--parts", "a=0.5,b=0.5"])
    assert "found the parts a, b; expected one named test" in capsys.readouterr().err
    assert not (tmp_path / "split.json").exists()


def test_manifest_carries_the_hash_of_every_file(tmp_path):
    path = write_trajectories(tmp_path, build_tasks(20))
    manifest = _split(path)
    assert manifest["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, part in manifest["parts"].items():
        assert part["sha256"] == hashlib.sha256((tmp_path / f"{name}.csv").read_bytes()).hexdigest()


def test_split_of_a_file_is_found_beside_it_and_a_later_change_is_seen(tmp_path):
    _split(write_trajectories(tmp_path, build_tasks(20)), "--seed", "5")
    found = find_split(tmp_path / "test.csv")
    assert (found["part"], found["seed"], found["is_unchanged"]) == ("test", 5, True)
    with (tmp_path / "test.csv").open("a") as file:
        file.write("\n")
    assert find_split(tmp_path / "test.csv")["is_unchanged"] is False
    assert find_split(tmp_path / "tasks.csv") is None


def test_bad_rows_are_refused_before_anything_is_written(tmp_path):
    rows = build_tasks(4)
    rows[0]["Output"] = "{"
    with pytest.raises(UserError, match="row 2: Output: found broken JSON"):
        split.main([str(write_trajectories(tmp_path, rows))])
    assert not (tmp_path / "split.json").exists()


@pytest.mark.parametrize("name", ["train.csv", "val.csv", "test.csv"])
def test_part_may_not_replace_the_data_itself(tmp_path, name):
    path = write_trajectories(tmp_path, build_tasks(20), name)
    before = path.read_bytes()
    with pytest.raises(UserError, match="found the data itself under a part's name"):
        split.main([str(path)])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.glob("*.csv")] == [name]  # nothing was written before that was seen


@pytest.mark.parametrize("manifest", [None, "{", '{"parts": {"val": {"csv": "val.csv"}}}', "of other data"])
def test_file_that_no_split_of_this_data_wrote_is_not_replaced(tmp_path, manifest):
    path = write_trajectories(tmp_path, build_tasks(20))
    if manifest == "of other data":
        _split(write_trajectories(tmp_path, build_tasks(19), "other.csv"))
    else:
        (tmp_path / "val.csv").write_text("mine")
        if manifest:
            (tmp_path / "split.json").write_text(manifest)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(
        UserError, match=r"\.csv: found a file that no split\.json lists .*choose another --output_dir"
    ):
        split.main([str(path)])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_part_that_was_changed_by_hand_is_not_replaced(tmp_path):
    path = write_trajectories(tmp_path, build_tasks(20))
    _split(path)
    with (tmp_path / "test.csv").open("a") as file:
        file.write("\n")
    before = (tmp_path / "train.csv").read_bytes()
    with pytest.raises(UserError, match=r"test\.csv: found a file that .* was changed since"):
        split.main([str(path), "--seed", "1"])
    assert (tmp_path / "train.csv").read_bytes() == before


def test_split_of_the_same_data_can_be_made_again_with_another_seed(tmp_path):
    path = write_trajectories(tmp_path, build_tasks(20))
    assert _ids(_split(path)) != _ids(_split(path, "--seed", "1"))


def test_part_of_the_split_before_may_not_be_left_beside_the_new_ones(tmp_path):
    path = write_trajectories(tmp_path, build_tasks(20))
    _split(path)
    with pytest.raises(UserError, match=r"val\.csv: found a part of the split before this one"):
        split.main([str(path), "--parts", "train=0.5,test=0.5"])
    (tmp_path / "val.csv").unlink()
    assert set(_split(path, "--parts", "train=0.5,test=0.5")["parts"]) == {"train", "test"}


@pytest.mark.parametrize(
    "parts", ["train", "train=x", "train=0.5,test=0.6", "a=0.5,a=0.5", "a=0,b=1", "../a=0.5,b=0.5"]
)
def test_wrong_parts_are_a_usage_error(tmp_path, parts, capsys):
    with pytest.raises(SystemExit) as stop:
        split.main([str(write_trajectories(tmp_path, build_tasks(4))), "--parts", parts])
    assert stop.value.code == 2
    assert "found" in capsys.readouterr().err
