"""Foreign formats to a CSV: nothing invented, nothing lost silently, memory rebuilt from earlier steps only."""

import csv
import hashlib
import json
import random
import shutil

import pytest
from conversion_samples import (
    STEPS,
    as_data_uri,
    build_careflow_row,
    build_pipeline_records,
    build_record,
    build_trajectory,
    draw_screen,
    encode_screen,
    write_pipeline_task,
)

from sft.convert import __main__ as convert
from sft.data.load import load_trajectories
from sft.errors import UserError


def _write_table(path, rows):
    """Write a CareFlow table as CSV: images only by name."""
    with path.open("w", newline="", encoding="utf-8") as file:
        columns = [c for c in rows[0] if c != "images"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _write_shots(folder, n=5, seed=0):
    folder.mkdir(exist_ok=True)
    for i in range(1, n + 1):
        (folder / f"shot{i}.png").write_bytes(encode_screen(seed + i))
    return folder


def _convert(kind, source, out, *flags):
    convert.main([kind, str(source), str(out), *map(str, flags)])
    report = json.loads((out / "conversion_report.json").read_text())
    return load_trajectories(out / "data.csv", show_progress=False), report


def _save_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def _save_dataset(path, rows, decoded=False):
    import datasets

    features = datasets.Features(
        {
            **{c: datasets.Value("string") for c in ("task_id", "instruction", "image_sequence", "json_data")},
            "images": datasets.List(datasets.Image()),
        }
    )
    kept = [{c: row[c] for c in features} for row in rows]
    if decoded:
        kept = [{**row, "images": [draw_screen(i) for i in range(5)]} for row in kept]
    else:
        kept = [{**row, "images": [{"bytes": b, "path": None} for b in row["images"]]} for row in kept]
    datasets.Dataset.from_list(kept, features=features).save_to_disk(path)
    return path


def _as_parquet_with_paths(tmp_path, rows):
    _write_shots(tmp_path / "shots")
    rows = [{**row, "images": [f"stale/folder/shot{i}.png" for i in range(1, 6)]} for row in rows]
    return _save_parquet(tmp_path / "table.parquet", rows), ("--images_dir", tmp_path / "shots")


def _as_csv(tmp_path, rows):
    return _write_table(tmp_path / "table.csv", rows), ("--images_dir", _write_shots(tmp_path / "shots"))


@pytest.mark.parametrize(
    "write",
    [
        _as_csv,
        _as_parquet_with_paths,
        lambda folder, rows: (_save_parquet(folder / "table.parquet", rows), ()),
        lambda folder, rows: (_save_dataset(folder / "saved", rows), ()),
        lambda folder, rows: (_save_dataset(folder / "saved", rows, decoded=True), ()),
    ],
    ids=[
        "csv with images_dir",
        "parquet with paths",
        "parquet with bytes",
        "saved with bytes",
        "saved with decoded images",
    ],
)
def test_careflow_table_in_every_container_gives_the_same_steps(tmp_path, write):
    source, flags = write(tmp_path, [build_careflow_row(2), build_careflow_row(10)])
    tasks, report = _convert("careflow", source, tmp_path / "out", *flags, "--application", "3D Slicer")
    assert [t.task_id for t in tasks] == ["slicer-2", "slicer-10"]
    assert tasks[0].instruction == "Load scan 2 and segment the tumour in it"
    assert tasks[0].application == "3D Slicer"
    assert [(s.gold.action.kind, s.gold.action.target) for s in tasks[0].steps] == list(STEPS)
    assert tasks[0].steps[0].grounding.bbox == (10, 20, 90, 40)
    assert tasks[0].steps[1].grounding.bbox is None
    assert tasks[0].steps[0].grounding.screen_wh == (320, 192)
    assert (report["n_tasks"], report["n_steps"], report["n_dropped_tasks"]) == (2, 10, 0)


def test_older_column_names_of_careflow_are_read(tmp_path):
    row = build_careflow_row(1)
    old = {
        "task_number": 7,
        "task": "Old goal",
        "image_paths": "shot1.png; shot2.png; shot3.png; shot4.png; shot5.png",
    }
    source = _write_table(tmp_path / "old.csv", [{**old, "json_data": row["json_data"]}])
    tasks, _ = _convert("careflow", source, tmp_path / "out", "--images_dir", _write_shots(tmp_path / "shots"))
    assert (tasks[0].task_id, tasks[0].instruction) == ("7", "Old goal")


def test_screenshot_is_found_by_name_before_position(tmp_path):
    names = [f"shot{i}.png" for i in (5, 4, 3, 2, 1)]
    images = [encode_screen(i) for i in (5, 4, 3, 2, 1)]
    row = build_careflow_row(1, image_sequence=json.dumps(names), images=images)
    tasks, _ = _convert("careflow", _save_parquet(tmp_path / "t.parquet", [row]), tmp_path / "out")
    assert [s.image_path.read_bytes() for s in tasks[0].steps] == [encode_screen(i) for i in (1, 2, 3, 4, 5)]


def test_screenshots_are_named_by_content_and_written_once(tmp_path):
    rows = [build_careflow_row(n, images=[encode_screen(0)] * 5) for n in (1, 2)]
    tasks, report = _convert("careflow", _save_parquet(tmp_path / "t.parquet", rows), tmp_path / "out")
    files = [p.name for p in (tmp_path / "out/images").iterdir()]
    assert len(files) == report["n_screenshots"] == 1
    assert files == [hashlib.sha256(encode_screen(0)).hexdigest()[:16] + ".png"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": [encode_screen(i) for i in range(3)], "image_sequence": ""}, "found 3 images for 5 steps"),
        ({"images": [encode_screen(i) for i in range(6)], "image_sequence": ""}, "found 6 images for 5 steps"),
        ({"json_data": "{"}, "json_data: found broken JSON"),
        ({"json_data": json.dumps({"trajectory": []})}, "found no steps in json_data.trajectory"),
        (
            {"json_data": json.dumps({"trajectory": [{**s, "action": "HOVER"} for s in build_trajectory()]})},
            "step 1: found action 'HOVER'; expected one of CLICK",
        ),
        (
            {"json_data": json.dumps({"trajectory": [{**s, "step": 1} for s in build_trajectory()]})},
            "found step numbers [1, 1, 1, 1, 1]; expected each once",
        ),
        ({"images": [b"no image"] * 5}, "step 1: found a file that is no image"),
        (
            {"instruction": " ", "json_data": json.dumps({"trajectory": build_trajectory()})},
            "expected the user's goal",
        ),
        (
            {"json_data": json.dumps({"trajectory": build_trajectory()[::-1][:1] + build_trajectory()[:0:-1]})},
            "expected each once",
        ),
    ],
)
def test_careflow_task_that_cannot_be_used_is_dropped_with_the_reason(tmp_path, changes, reason):
    rows = [build_careflow_row(1), build_careflow_row(2, **changes)]
    tasks, report = _convert("careflow", _save_parquet(tmp_path / "t.parquet", rows), tmp_path / "out")
    assert [t.task_id for t in tasks] == ["slicer-1"]
    (dropped,) = report["dropped"]
    assert dropped["task_id"] == "slicer-2"
    assert reason in dropped["reason"]
    assert len(list((tmp_path / "out/images").iterdir())) == 5  # nothing of the dropped task is left


def test_task_with_complete_in_the_middle_is_dropped_for_the_loaders_reason(tmp_path):
    trajectory = build_trajectory()
    trajectory[1]["action"] = "COMPLETE"
    row = build_careflow_row(2, json_data=json.dumps({"trajectory": trajectory}))
    _, report = _convert(
        "careflow", _save_parquet(tmp_path / "t.parquet", [build_careflow_row(1), row]), tmp_path / "o"
    )
    assert "found COMPLETE before the last step" in report["dropped"][0]["reason"]


def test_memory_after_a_step_tells_of_steps_up_to_it_and_of_no_later_one(tmp_path):
    source = _save_parquet(tmp_path / "t.parquet", [build_careflow_row(1)])
    (task,), _ = _convert("careflow", source, tmp_path / "out")
    done = [step.gold.long_term["completed_subtasks"] for step in task.steps]
    actions = [f"{action} {target}" for action, target in STEPS]
    assert done == [actions[: i + 1] for i in range(5)]
    assert task.steps[0].gold.short_term == {
        "last_action": "CLICK",
        "last_target": "Load Data",
        "last_observation": "Load Data is ready",
    }
    assert "last_observation" not in task.steps[1].gold.short_term  # its note was only "Step 2"


def test_pipeline_folder_with_gaps_and_stale_paths_is_read(tmp_path):
    records = build_pipeline_records(48)
    write_pipeline_task(tmp_path / "in", 48, [records[0], records[2], records[4]], total_steps=5)
    (task,), report = _convert("pipeline", tmp_path / "in", tmp_path / "out")
    assert (task.task_id, task.application, task.instruction) == (
        "3DSlicer_endtoend_048",
        "3DSlicer",
        "Segment scan 48",
    )
    assert [s.gold.action.kind for s in task.steps] == ["CLICK", "ZOOM", "COMPLETE"]
    assert [s.image_path.read_bytes() for s in task.steps] == [encode_screen(4800 + k) for k in (1, 3, 5)]
    with (tmp_path / "out/data.csv").open() as file:
        assert [row["Slide_number"] for row in csv.DictReader(file)] == ["1", "3", "5"]
    assert report["remarks"]["3DSlicer_endtoend_048"] == ["never recorded: step 2, 4"]


def test_recorded_pipeline_memory_is_not_copied_and_the_report_says_why(tmp_path):
    records = build_pipeline_records(1)
    records[3] = build_record(4, "SEGMENT", "Threshold", "3DSlicer_endtoend001_step4.png", pasted=True)
    write_pipeline_task(tmp_path / "in", 1, records)
    (task,), report = _convert("pipeline", tmp_path / "in", tmp_path / "out")
    assert "Expected action" not in (tmp_path / "out/data.csv").read_text()
    assert task.steps[3].gold.short_term == {"last_action": "SEGMENT", "last_target": "Threshold"}
    audit = next(a for a in report["recorded_memory"] if a["column"] == "Short Term")
    assert audit["verdict"] == "same-row"
    assert [(e["row"], e["tells"], e["reason"]) for e in audit["evidence"]] == [
        (2, "own step", "its last action is 'TEXT on File name'"),
        (3, "own step", "its last action is 'ZOOM on Slice view'"),
        (4, "own step", "names the action SEGMENT"),
        (5, "own step", "its last action is 'COMPLETE on Task'"),
    ]


def test_label_pasted_as_a_prediction_after_failures_is_not_trusted(tmp_path):
    records = build_pipeline_records(1)
    records[3] = build_record(4, "SEGMENT", "ground_truth_target", "x_step4.png", label=False, pasted=True)
    write_pipeline_task(tmp_path / "in", 1, records)
    write_pipeline_task(tmp_path / "in", 2, build_pipeline_records(2))
    tasks, report = _convert("pipeline", tmp_path / "in", tmp_path / "out")
    assert [t.task_id for t in tasks] == ["3DSlicer_endtoend_002"]
    (dropped,) = report["dropped"]
    assert dropped["task_id"] == "3DSlicer_endtoend_001"
    assert "only a prediction that was pasted in after failures; it is not trusted" in dropped["reason"]


def test_wrong_prediction_beside_a_label_is_not_the_gold(tmp_path):
    records = build_pipeline_records(1)
    records[0]["Step 1"]["Predicted"]["predicted_action"] = {"action": "SCROLL", "target": "elsewhere"}
    write_pipeline_task(tmp_path / "in", 1, records)
    (task,), _ = _convert("pipeline", tmp_path / "in", tmp_path / "out")
    assert (task.steps[0].gold.action.kind, task.steps[0].gold.action.target) == ("CLICK", "Load Data")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda records: records.append(build_record(2, "SCROLL", "List")), "found two records of step 2"),
        (lambda records: records.insert(0, {"Part 1": {}}), "found an entry"),
        (lambda records: records[1]["Step 2"].update(Grounding={}, Predicted={}), "step 2: found neither"),
        (lambda records: records[1]["Step 2"]["image_info"].update(image_path="gone.png", image_path_absolute=""),
         "step 2: found no screenshot 'gone.png'"),
        (lambda records: records[1]["Step 2"]["image_info"].update(image_data_uri="data:image/png;base64,%%"),
         "step 2: image_data_uri: found a broken data URI"),
    ],
)  # fmt: skip
def test_pipeline_task_that_cannot_be_used_is_dropped_with_the_reason(tmp_path, damage, reason):
    records = build_pipeline_records(1)
    write_pipeline_task(tmp_path / "in", 1, records)
    damage(records)
    path = tmp_path / "in/3DSlicer_endtoend_001.json"
    path.write_text(json.dumps({"metadata": {"user_goal": "x"}, "steps": records}))
    write_pipeline_task(tmp_path / "in", 2, build_pipeline_records(2))
    tasks, report = _convert("pipeline", tmp_path / "in", tmp_path / "out")
    assert [t.task_id for t in tasks] == ["3DSlicer_endtoend_002"]
    assert reason in report["dropped"][0]["reason"]


def test_screenshot_embedded_in_a_pipeline_record_wins_over_its_path(tmp_path):
    records = build_pipeline_records(1)
    records[0]["Step 1"]["image_info"]["image_data_uri"] = as_data_uri(encode_screen(77))
    write_pipeline_task(tmp_path / "in", 1, records)
    (task,), _ = _convert("pipeline", tmp_path / "in", tmp_path / "out")
    assert task.steps[0].image_path.read_bytes() == encode_screen(77)


def test_images_of_one_bare_name_in_two_folders_are_told_apart(tmp_path):
    row = build_careflow_row(1)
    data = json.loads(row["json_data"])
    names = [f"part{i}/shot.png" for i in range(1, 6)]
    for step, name in zip(data["trajectory"], names):
        step["screenshot"] = name
    named = {**row, "image_sequence": json.dumps(names[::-1]), "images": row["images"][::-1]}
    for i, json_names in enumerate((names, ["shot.png"] * 5)):  # by their paths, or by position where they have none
        for step, name in zip(data["trajectory"], json_names):
            step["screenshot"] = name
        table = named if i == 0 else {**row, "image_sequence": json.dumps(names)}
        source = _save_parquet(tmp_path / f"{i}.parquet", [{**table, "json_data": json.dumps(data)}])
        (task,), _ = _convert("careflow", source, tmp_path / f"out{i}")
        assert [s.image_path.read_bytes() for s in task.steps] == row["images"]


def test_screenshot_in_a_folder_below_images_dir_is_found_by_its_path(tmp_path):
    row = build_careflow_row(1)
    data = json.loads(row["json_data"])
    for step in data["trajectory"]:
        step["screenshot"] = f"part/{step['screenshot']}"
    _write_shots(tmp_path / "shots").rename(tmp_path / "part")
    source = _write_table(tmp_path / "t.csv", [{**row, "image_sequence": "", "json_data": json.dumps(data)}])
    (task,), _ = _convert("careflow", source, tmp_path / "out", "--images_dir", tmp_path)
    assert len(task.steps) == 5


@pytest.mark.parametrize("write", [str, float, lambda n: f"Step {n}"])
def test_step_numbers_written_as_text_order_the_steps_too(tmp_path, write):
    row = build_careflow_row(1)
    data = json.loads(row["json_data"])
    for step in data["trajectory"]:
        step["step"] = write(step["step"])
    data["trajectory"].reverse()
    source = _save_parquet(tmp_path / "t.parquet", [{**row, "json_data": json.dumps(data)}])
    (task,), _ = _convert("careflow", source, tmp_path / "out")
    assert [s.gold.action.kind for s in task.steps] == [action for action, _ in STEPS]


def test_blank_id_and_blank_goal_cost_no_other_task(tmp_path):
    rows = [build_careflow_row(1), build_careflow_row(2, task_id="  ", serial_number="  "), build_careflow_row(3)]
    rows[2]["instruction"] = " "  # then the goal in json_data counts
    rows = [{**row, "serial_number": str(row["serial_number"])} for row in rows]
    tasks, report = _convert("careflow", _save_parquet(tmp_path / "t.parquet", rows), tmp_path / "out")
    assert [t.task_id for t in tasks] == ["row2", "slicer-1", "slicer-3"]
    assert tasks[2].instruction == "Load scan 3 and segment the tumour in it"
    assert not report["dropped"]


def test_ids_that_are_one_once_written_are_not_mixed_up(tmp_path):
    first = write_pipeline_task(tmp_path / "in", 1, build_pipeline_records(1))
    shutil.copy(first, first.with_name(f" {first.name}"))
    tasks, report = _convert("pipeline", tmp_path / "in", tmp_path / "out")
    assert [t.task_id for t in tasks] == ["3DSlicer_endtoend_001"]
    (dropped,) = report["dropped"]
    assert "found the task id '3DSlicer_endtoend_001' again" in dropped["reason"]


def test_lone_carriage_return_in_a_cell_is_read_back(tmp_path):
    row = build_careflow_row(1, instruction="Load the scan\rSegment it")
    (task,), _ = _convert("careflow", _save_parquet(tmp_path / "t.parquet", [row]), tmp_path / "out")
    assert task.instruction == "Load the scan\rSegment it"


def _write_records(path, memory_of=None, output_memory=False, ahead=0):
    lines = []
    for i, (action, target) in enumerate(STEPS, start=1):
        output = {"action": action, "target": target}
        if output_memory:
            told_action, told_target = STEPS[min(i - 1 + ahead, len(STEPS) - 1)]
            output |= {"short_term": {"last_action": told_action, "last_target": told_target}, "long_term": {}}
        line = {
            "Task_id": "r1",
            "Slide_number": i,
            "Image_id": f"shot{i}.png",
            "Instruction": "Segment the scan",
            "Output": output,
            "Grounding": {"bbox": [1, 2, 3, 4], "application": "3D Slicer"},
        }
        if memory_of:
            line["Short_Term_Memory"] = memory_of(i)
        lines.append(json.dumps(line))
    _write_shots(path.parent)
    path.write_text("\n".join(reversed(lines)), encoding="utf-8")  # Slide_number orders them
    return path


def _short_terms(task):
    return [step.gold.short_term.get("last_action") for step in task.steps]


def test_records_keep_the_memory_of_output(tmp_path):
    (tmp_path / "in").mkdir()
    source = _write_records(tmp_path / "in/rows.jsonl", output_memory=True)
    (task,), report = _convert("records", source, tmp_path / "out")
    assert _short_terms(task) == ["CLICK", "TEXT", "ZOOM", "SEGMENT", "COMPLETE"]
    assert task.application == "3D Slicer"
    assert task.steps[0].grounding.bbox == (1, 2, 3, 4)
    assert not report["remarks"]


def test_records_in_one_list_are_those_of_its_lines(tmp_path):
    (tmp_path / "in").mkdir()
    source = _write_records(tmp_path / "in/rows.jsonl", output_memory=True)
    (by_line,), _ = _convert("records", source, tmp_path / "lines")
    source.write_text(f"[{','.join(source.read_text().splitlines())}]")
    (by_list,), _ = _convert("records", source, tmp_path / "list")
    assert [(s.gold, s.image_id) for s in by_list.steps] == [(s.gold, s.image_id) for s in by_line.steps]


def test_records_keep_the_screen_of_their_boxes_and_remark_on_a_box_that_is_none(tmp_path):
    (tmp_path / "in").mkdir()
    source = _write_records(tmp_path / "in/rows.jsonl", output_memory=True)
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    for line in lines:  # recorded at twice the size of the screenshots
        line["Grounding"] = {"bbox": [2, 4, 600, 300], "screen": [640, 384]}
    lines[0]["Grounding"]["bbox"] = [600, 4, 2, 300]
    source.write_text("\n".join(map(json.dumps, lines)))
    (task,), report = _convert("records", source, tmp_path / "out")
    assert {step.grounding.screen_wh for step in task.steps[:4]} == {(640, 384)}
    assert task.steps[0].grounding.bbox == (2, 4, 600, 300)
    assert task.steps[4].grounding.bbox is None
    assert "line 1: left out the box and the screen: found bbox [600, 4, 2, 300]" in report["remarks"]["r1"][0]


@pytest.mark.parametrize("kind", ["careflow", "pipeline"])
def test_box_that_is_none_is_remarked_on_and_an_empty_one_is_not(tmp_path, kind):
    if kind == "careflow":
        row = build_careflow_row(1)
        data = json.loads(row["json_data"])
        data["trajectory"][0]["bbox"], data["trajectory"][1]["bbox"] = [90, 20, 10, 40], [None] * 4
        source = _save_parquet(tmp_path / "t.parquet", [{**row, "json_data": json.dumps(data)}])
    else:
        records = build_pipeline_records(1)
        for record, box in zip(records, ([90, 20, 10, 40], [])):
            (fields,) = record.values()
            fields["Grounding"]["ground_truth"]["original_step_data"] = {"bbox": box}
        source = write_pipeline_task(tmp_path / "in", 1, records).parent
    _, report = _convert(kind, source, tmp_path / "out")
    (remarks,) = report["remarks"].values()
    assert [remark for remark in remarks if "box" in remark] == [remarks[0]]
    assert remarks[0].startswith("step 1: left out the box: found bbox [90, 20, 10, 40]; expected [x1, y1, x2, y2]")


def test_memory_of_output_that_tells_the_next_answer_is_rebuilt(tmp_path):
    (tmp_path / "in").mkdir()
    source = _write_records(tmp_path / "in/rows.jsonl", output_memory=True, ahead=1)
    (task,), report = _convert("records", source, tmp_path / "out")
    assert _short_terms(task) == ["CLICK", "TEXT", "ZOOM", "SEGMENT", "COMPLETE"]
    assert report["remarks"] == {"r1": ["memory in Output told of the next step; it was rebuilt from the actions"]}


def test_memory_column_proven_lagged_becomes_the_memory_after_the_step_before(tmp_path):
    def lagged(i):
        return {} if i == 1 else {"last_action": STEPS[i - 2][0], "last_target": STEPS[i - 2][1], "mark": i}

    (tmp_path / "in").mkdir()
    (task,), report = _convert("records", _write_records(tmp_path / "in/rows.jsonl", lagged), tmp_path / "out")
    assert [step.gold.short_term.get("mark") for step in task.steps] == [2, 3, 4, 5, 5]
    assert report["memory_columns"][0]["verdict"] == "lagged"


def test_memory_column_of_the_same_row_is_not_used(tmp_path):
    def same_row(i):
        return {"last_action": STEPS[i - 1][0], "last_target": STEPS[i - 1][1], "mark": i}

    (tmp_path / "in").mkdir()
    (task,), report = _convert("records", _write_records(tmp_path / "in/rows.jsonl", same_row), tmp_path / "out")
    assert "mark" not in (tmp_path / "out/data.csv").read_text()
    assert report["memory_columns"][0]["verdict"] == "same-row"
    assert _short_terms(task) == ["CLICK", "TEXT", "ZOOM", "SEGMENT", "COMPLETE"]  # rebuilt, first shown a step later


def _damage(rng, value):
    """Return a JSON value with something wrong somewhere inside."""
    wrong = (
        None,
        True,
        -1,
        1.5,
        10**30,
        float("nan"),
        [],
        {},
        [[]],
        {"a": []},
        "",
        "x" * 3_000,
        "\x00../..",
        "Step 0",
    )
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return (
            {**value, key: _damage(rng, value[key])}
            if rng.random() < 0.9
            else {k: v for k, v in value.items() if k != key}
        )
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], _damage(rng, value[at]), *value[at + 1 :]]
    return rng.choice(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_damaged_foreign_tasks_are_dropped_in_words_or_converted(tmp_path, seed):
    rng = random.Random(seed)
    whole = json.loads(write_pipeline_task(tmp_path / "in", 1, build_pipeline_records(1)).read_text())
    for number in range(2, 120):
        damaged = json.dumps(_damage(rng, whole))
        (tmp_path / f"in/3DSlicer_endtoend_{number:03d}.json").write_text(damaged)
    tasks, report = _convert("pipeline", tmp_path / "in", tmp_path / "pipeline")
    assert len(tasks) + len(report["dropped"]) == 119
    table = json.loads(build_careflow_row(0)["json_data"])
    rows = [build_careflow_row(0)]
    rows += [{**rows[0], "task_id": f"s{i}", "json_data": json.dumps(_damage(rng, table))} for i in range(1, 120)]
    tasks, report = _convert("careflow", _save_parquet(tmp_path / "t.parquet", rows), tmp_path / "careflow")
    assert len(tasks) + len(report["dropped"]) == 120
    assert len(report["dropped"]) > 10


def test_folder_that_holds_something_is_not_written_into(tmp_path):
    write_pipeline_task(tmp_path / "in", 1, build_pipeline_records(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("kept")
    with pytest.raises(UserError, match="found something there; expected a new or empty folder"):
        convert.main(["pipeline", str(tmp_path / "in"), str(tmp_path / "out")])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_conversion_that_fails_leaves_no_folder_behind(tmp_path):
    write_pipeline_task(tmp_path / "in", 1, build_pipeline_records(1))
    shutil.rmtree(tmp_path / "in/images")
    with pytest.raises(UserError, match="found no task that can be converted"):
        convert.main(["pipeline", str(tmp_path / "in"), str(tmp_path / "out")])
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("careflow", "gone.csv", None, "found no such file; expected a CareFlow table"),
        ("careflow", "rows.csv", "Task_id,Output\n1,2\n", "expected json_data too: is this a CareFlow task table?"),
        ("careflow", "rows.parquet", "no parquet", "found a file that is no Parquet"),
        ("records", "rows.jsonl", "{", "line 1: found broken JSON"),
        ("records", "rows.jsonl", "{}", "line 1: found no Task_id"),
        ("records", "rows.json", "[1]", "found no list of objects; expected one object per step"),
        ("pipeline", "gone", None, "found no such folder"),
    ],
)
def test_source_that_is_none_is_named(tmp_path, kind, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        convert.main([kind, str(tmp_path / name), str(tmp_path / "out")])
