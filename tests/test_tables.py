"""Tables that are no CSV: the same prompts and answers as the CSV of the same rows, and other files by their name."""

import json
from datetime import datetime

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from conversion_samples import STEPS, build_careflow_row, encode_screen
from pyarrow import feather, parquet
from trajectory_samples import build_tasks, format_csv, write_screenshots, write_trajectories

from eval import rollout
from sft.check import __main__ as check
from sft.convert import __main__ as convert
from sft.data.load import TrajectoryError, load_trajectories
from sft.split import __main__ as split

# Objects whose keys differ from row to row, in the answer, in lists inside it and in the evidence.
ROWS = [
    {
        "Output": {"action": "CLICK", "target": "Layout", "short_term": {"last_action": "CLICK"},
                   "long_term": {"done": [{"what": "open"}], "left": []}},
        "Grounding": {"bbox": [20, 20, 120, 60]},
        "Detected_Elements": [{"name": "Layout", "bbox": [20, 20, 120, 60]}, {"name": "Back"}],
    },
    {
        "Output": {"action": "ZOOM", "target": "viewport", "direction": "in", "scale": 2,
                   "short_term": {"last_action": "ZOOM", "note": "two grids", "n": 3},
                   "long_term": {"done": [{"what": "open"}, {"what": "zoom", "how": "in"}]}},
        "Grounding": {"screen": [320, 192], "application": "Viewer"},
        "Detected_Elements": [],
    },
    {
        "Output": {"action": "ZOOM", "target": "viewport", "scale": 1.5, "short_term": {}, "long_term": {}},
        "Grounding": {},
        "Detected_Elements": [{"name": "OK", "state": {"is_on": False}}],
    },
    {
        "Output": {"action": "COMPLETE", "target": "", "short_term": {"big": 2**60, "half": 0.5}, "long_term": {}},
        "Grounding": {"bbox": [], "screen": None},
        "Detected_Elements": [],
    },
]  # fmt: skip
COLUMNS = ("Task_id", "Slide_number", "Image_id", "Instruction", "Output", "Grounding", "Detected_Elements")


@pytest.fixture(autouse=True)
def screenshot_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))


def _build_rows(picture=None):
    """Return rows with objects as values; `picture` names a column that holds the screenshot's bytes."""
    rows = []
    for i, row in enumerate(ROWS, start=1):
        named = {"Task_id": "t1", "Slide_number": i, "Instruction": "Zoom the scan", **row}
        rows.append(
            named | ({picture: {"bytes": encode_screen(i)}} if picture else {"Image_id": f"screens/{i % 2}.png"})
        )
    return rows


def _as_csv(rows):
    return [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]


def _write_csv(folder, rows, **dialect):
    write_screenshots(folder)
    (folder / "tasks.csv").write_text(format_csv(_as_csv(rows), COLUMNS, **dialect))


def _write_json_lines(folder, rows):
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "tasks.jsonl"


def _write_json(folder, rows):
    (folder / "tasks.json").write_text(json.dumps(rows, indent=1))
    return folder / "tasks.json"


def _write_parquet(folder, rows):
    parquet.write_table(pa.Table.from_pylist(rows), folder / "tasks.parquet")
    return folder / "tasks.parquet"


def _write_pandas(folder, rows):
    pd.DataFrame(rows).to_parquet(folder / "pandas.parquet")
    return folder / "pandas.parquet"


def _write_feather(folder, rows):
    feather.write_feather(pa.Table.from_pylist(rows), folder / "tasks.feather")
    return folder / "tasks.feather"


def _write_stream(folder, rows):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(folder / "tasks.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return folder / "tasks.arrow"


def _save_to_disk(folder, rows):
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved"


def _save_for_numpy(folder, rows):
    data = datasets.Dataset.from_list(rows)
    data.set_format("numpy", columns=["Task_id"])  # what a training loop leaves behind; it hides the other columns
    data.save_to_disk(folder / "saved")
    return folder / "saved"


def _save_as_json_type(folder, rows):
    features = datasets.Dataset.from_list(rows).features
    features["Output"] = features["Grounding"] = datasets.Json()
    datasets.Dataset.from_list(rows, features=features).save_to_disk(folder / "saved")
    return folder / "saved"


WRITERS = [_write_json_lines, _write_json, _write_parquet, _write_pandas, _write_feather, _write_stream, _save_to_disk,
           _save_for_numpy, _save_as_json_type]  # fmt: skip


def _dump(source, folder, *flags):
    """Return the prompts and answers of every step, without the place of the screenshot."""
    out = folder / "prompts.jsonl"
    check.main([str(source), "--dump_prompts", str(out), *map(str, flags)])
    return [
        {**line, "messages": [[{**part, "image": ""} for part in m["content"]] for m in line["messages"]]}
        for line in map(json.loads, out.read_text().splitlines())
    ]


@pytest.mark.parametrize("write", WRITERS)
def test_table_gives_the_prompts_and_answers_of_the_csv_of_the_same_rows(tmp_path, write):
    rows = _build_rows()
    _write_csv(tmp_path, rows)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("use_grounding: true\n")
    expected = _dump(tmp_path / "tasks.csv", tmp_path, "--recipe", recipe)
    assert '"scale":2,' in expected[1]["completion"] and "null" not in json.dumps(expected)
    source = write(tmp_path, rows)
    assert _dump(source, tmp_path, "--recipe", recipe, "--image_root", tmp_path) == expected
    found, plain = (
        [(s.grounding, s.elements) for s in load_trajectories(path, tmp_path, show_progress=False)[0].steps]
        for path in (source, tmp_path / "tasks.csv")
    )
    assert found == plain


def test_null_that_the_user_wrote_into_a_text_a_line_a_list_or_a_map_stays(tmp_path):
    output = {"action": "CLICK", "target": "OK", "short_term": {"note": None, "list": [None, 1]}, "long_term": {}}
    row = {**_build_rows()[0], "Output": output}
    write_screenshots(tmp_path)
    memory = pa.map_(pa.string(), pa.string())
    kind = pa.struct([("action", pa.string()), ("target", pa.string()), ("short_term", memory), ("long_term", memory)])
    mapped = {**output, "short_term": [("note", None)], "long_term": []}
    columns = {k: [row[k]] for k in ("Task_id", "Image_id", "Instruction")}
    table = pa.table({**columns, "Grounding": [""], "Output": pa.array([mapped], kind)})
    parquet.write_table(table, tmp_path / "map.parquet")
    text = _write_parquet(tmp_path, [{**row, "Output": json.dumps(output)}])
    for path, expected in (
        (_write_json_lines(tmp_path, [row]), {"note": None, "list": [None, 1]}),
        (text, {"note": None, "list": [None, 1]}),
        (tmp_path / "map.parquet", {"note": None}),
    ):
        assert load_trajectories(path, show_progress=False)[0].steps[0].gold.short_term == expected


def test_ids_and_numbers_that_a_missing_value_made_floats_are_whole_again(tmp_path):
    rows = [{**row, "Task_id": float(i), "Slide_number": 1.0} for i, row in enumerate(_build_rows(), start=1)]
    write_screenshots(tmp_path)
    for write in (_write_parquet, _write_json_lines, _save_to_disk):
        tasks = load_trajectories(write(tmp_path, rows), tmp_path, show_progress=False)
        assert [t.task_id for t in tasks] == ["1", "2", "3", "4"]


def test_id_that_has_lost_digits_as_a_float_is_refused(tmp_path):
    rows = [{**row, "Task_id": 12345678901234567890.0} for row in _build_rows()]
    with pytest.raises(TrajectoryError, match=r"row 2: Task_id: found the number 1\.2345678901234567e\+19, which has"):
        load_trajectories(_write_parquet(tmp_path, rows), show_progress=False)


def test_missing_values_of_a_column_are_empty_cells(tmp_path):
    rows = [{**row, "Application": float("nan"), "Group": None} for row in _build_rows()]
    write_screenshots(tmp_path)
    for write in (_write_parquet, _write_pandas, _write_json_lines):
        (task,) = load_trajectories(write(tmp_path, rows), tmp_path, show_progress=False)
        assert (task.application, task.group) == ("", "")


def test_class_labels_are_read_as_their_names(tmp_path):
    rows = [{**row, "Application": "Viewer", "Output": {"action": "CLICK", "target": "OK"}} for row in _build_rows()]
    data = datasets.Dataset.from_list(rows).class_encode_column("Application")
    features = data.features.copy()
    features["Output"]["action"] = datasets.ClassLabel(names=["ZOOM", "CLICK"])
    data = data.map(lambda row: {"Output": {**row["Output"], "action": 1}}, features=features)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "tasks.parquet")
    write_screenshots(tmp_path)
    for source in (tmp_path / "saved", tmp_path / "tasks.parquet"):
        (task,) = load_trajectories(source, tmp_path, show_progress=False)
        assert (task.application, task.steps[0].gold.action.kind) == ("Viewer", "CLICK")


def test_date_inside_an_object_is_refused_since_its_spelling_is_lost(tmp_path):
    rows = [
        {**row, "Output": {"action": "TEXT", "target": "Date", "text": datetime(2024, 3, 5)}} for row in _build_rows()
    ]
    with pytest.raises(
        TrajectoryError, match=r"row 2: Output: found a datetime \(2024-03-05 .*expected it saved as text"
    ):
        load_trajectories(_write_parquet(tmp_path, rows), show_progress=False)


def test_number_of_single_precision_is_read_as_it_was_written(tmp_path):
    kind = pa.struct([("action", pa.string()), ("target", pa.string()), ("scale", pa.float32())])
    columns = {k: [v] for k, v in _build_rows()[0].items() if k in ("Task_id", "Image_id", "Instruction")}
    outputs = pa.array([{"action": "ZOOM", "target": "image", "scale": 1.1}], kind)
    parquet.write_table(pa.table({**columns, "Output": outputs, "Grounding": [""]}), tmp_path / "tasks.parquet")
    write_screenshots(tmp_path)
    (task,) = load_trajectories(tmp_path / "tasks.parquet", show_progress=False)
    assert task.steps[0].gold.action.arguments == {"scale": 1.1}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_lines_of_any_system_are_read(tmp_path, end):
    path = _write_json_lines(tmp_path, [{**row, "Instruction": "one\u2028two"} for row in _build_rows()])
    path.write_bytes(path.read_text().replace("\\u2028", "\u2028").replace("\n", end).encode())
    write_screenshots(tmp_path)
    (task,) = load_trajectories(path, show_progress=False)
    assert (task.instruction, len(task.steps)) == ("one\u2028two", 4)


def test_rows_that_python_has_no_value_for_are_refused_in_words(tmp_path):
    texts = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    columns = {k: [v] for k, v in _as_csv(_build_rows())[0].items() if k in COLUMNS[:6]}
    parquet.write_table(pa.table({**columns, "Instruction": texts}), tmp_path / "tasks.parquet")
    with pytest.raises(TrajectoryError, match=r"found rows that cannot be read \(.*utf-8.*\); restore the file"):
        load_trajectories(tmp_path / "tasks.parquet", show_progress=False)


def test_half_character_becomes_a_question_mark_and_a_nul_is_refused(tmp_path):
    write_screenshots(tmp_path)
    rows = [{**row, "Task_id": f"t{i}", "Instruction": "Open \ud83d", "Mine": "\ud83d"}
            for i, row in enumerate(_build_rows())]  # fmt: skip
    path = _write_json_lines(tmp_path, rows)
    assert {t.instruction for t in load_trajectories(path, show_progress=False)} == {"Open ?"}
    rows = [{**row, "Instruction": f"Open {i}"} for i, row in enumerate(rows)]
    split.main([str(_write_json_lines(tmp_path, rows)), "--parts", "train=0.5,test=0.5"])
    rows[1]["Instruction"] = "Open\0"
    with pytest.raises(TrajectoryError, match="row 2: Instruction: found a NUL character; expected text"):
        load_trajectories(_write_json_lines(tmp_path, rows), show_progress=False)


def test_column_that_stands_twice_is_refused(tmp_path):
    table = pa.Table.from_pylist(_as_csv(_build_rows()))
    parquet.write_table(table.append_column("Output", table["Grounding"]), tmp_path / "twice.parquet")
    with pytest.raises(TrajectoryError, match="Output: found this column twice; expected it once"):
        load_trajectories(tmp_path / "twice.parquet", show_progress=False)


def test_column_that_nothing_reads_may_hold_anything(tmp_path):
    rows = [{**row, "Mine": {"when": datetime(2024, 3, 5)}, "Sound": b"RIFF"} for row in _build_rows()]
    write_screenshots(tmp_path)
    assert len(load_trajectories(_write_parquet(tmp_path, rows), tmp_path, show_progress=False)) == 1


# Pictures


def _load_shots(source):
    return [s.image_path.read_bytes() for s in load_trajectories(source, show_progress=False)[0].steps]


SHOTS = [encode_screen(i) for i in (1, 2, 3, 4)]


@pytest.mark.parametrize("column", ["picture", "image", "Screenshot", "Image_id"])
@pytest.mark.parametrize("wrap", [lambda data: {"bytes": data, "path": None}, lambda data: data, lambda data: [data]])
def test_one_column_of_pictures_holds_the_screenshots_by_any_name(tmp_path, column, wrap):
    rows = [{**row, column: wrap(data)} for row, data in zip(_build_rows("none"), SHOTS)]
    rows = [{k: v for k, v in row.items() if k != "none"} for row in rows]
    assert _load_shots(_write_parquet(tmp_path, rows)) == SHOTS


def test_column_of_a_known_name_is_taken_before_one_with_the_answer_drawn_in(tmp_path):
    rows = [
        {"annotated": {"bytes": encode_screen(9)}, **row, "thumb": encode_screen(8)} for row in _build_rows("image")
    ]
    assert _load_shots(_write_parquet(tmp_path, rows)) == SHOTS
    features = datasets.Dataset.from_list(rows).features
    features["annotated"] = features["image"] = datasets.Image()
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    assert _load_shots(tmp_path / "saved") == SHOTS


@pytest.mark.parametrize("names", [("before", "after"), ("image", "screenshot"), ("annotated", "Bild")])
def test_several_columns_of_pictures_are_refused_with_their_names(tmp_path, names):
    rows = [{**row, **dict.fromkeys(names, encode_screen(1))} for row in _build_rows("x")]
    rows = [{k: v for k, v in row.items() if k != "x"} for row in rows]
    message = (
        f"found pictures in the columns {', '.join(names)}; expected them in one, or in one of the names image_id"
    )
    with pytest.raises(TrajectoryError, match=message):
        load_trajectories(_write_parquet(tmp_path, rows), show_progress=False)


def test_bytes_that_are_no_picture_are_no_screenshot(tmp_path):
    rows = [
        {**row, "embedding": b"\0\1\2", "sound": {"bytes": b"RIFF....WAVE", "path": "a.wav"}} for row in _build_rows()
    ]
    write_screenshots(tmp_path)
    path = _write_parquet(tmp_path, rows)
    assert len(load_trajectories(path, show_progress=False)[0].steps) == 4  # by Image_id
    rows = [{**row, "embedding": b"\0\1\2"} for row in _build_rows("shot")]
    assert _load_shots(_write_parquet(tmp_path, rows)) == SHOTS


def test_pictures_beside_screenshots_in_files_are_refused_unless_their_name_says_what_they_are(tmp_path):
    write_screenshots(tmp_path)
    rows = [{**row, "annotated": encode_screen(9)} for row in _build_rows()]
    with pytest.raises(
        TrajectoryError, match="found screenshots in the files that Image_id names, and pictures in the"
    ):
        load_trajectories(_write_parquet(tmp_path, rows), show_progress=False)
    rows = [{**row, "image": shot} for row, shot in zip(_build_rows(), SHOTS)]
    assert _load_shots(_write_parquet(tmp_path, rows)) == SHOTS


def test_list_of_pictures_is_a_screenshot_where_it_holds_one(tmp_path):
    rows = [{**row, "shot": [row["shot"]]} for row in _build_rows("shot")]
    features = datasets.Dataset.from_list(rows).features
    features["shot"] = datasets.List(datasets.Image())
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "one")
    assert _load_shots(tmp_path / "one") == SHOTS
    rows[1]["shot"] *= 2
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "two")
    with pytest.raises(TrajectoryError, match="row 3: shot: found 2 pictures; expected one screenshot per step"):
        load_trajectories(tmp_path / "two", show_progress=False)


def test_parquet_file_with_screenshots_is_checked_split_and_rolled_out_with_report(tmp_path, caplog):
    write_screenshots(tmp_path)
    shots = [(tmp_path / f"screens/{i}.png").read_bytes() for i in (0, 1)]
    rows = [
        {k: v for k, v in row.items() if k != "Image_id"} | {"image": shots[i % 2]}
        for i, row in enumerate(build_tasks(4))
    ]
    path = _write_parquet(tmp_path, rows)
    check.main([str(path), "--against", str(write_trajectories(tmp_path, build_tasks(2, first=20)))])
    rollout.main(["--test_csv", str(path), "--policy", "replay", "--output_dir", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out/metrics.json").read_text())["matchers"]["action_target"]["ta"]["value"] == 1
    assert "report.html lacks" not in caplog.text  # every screenshot was found
    split.main([str(path), "--parts", "train=0.5,test=0.5"])
    root = json.loads((tmp_path / "split.json").read_text())["image_root"]
    assert len(load_trajectories(tmp_path / "train.csv", root, show_progress=False)) == 2


# CareFlow tables hold objects too


@pytest.mark.parametrize("write", [_write_parquet, _save_to_disk])
def test_careflow_table_of_objects_is_the_one_of_texts(tmp_path, write):
    row = build_careflow_row(1)
    data = json.loads(row["json_data"])
    del data["outputs"]  # Parquet holds no object without keys
    data["trajectory"][1]["text"] = "scan 1"  # a key that the other steps do not have
    objects = {**row, "json_data": data, "image_sequence": json.loads(row["image_sequence"]), "task_id": 7.0}
    convert.main(["careflow", str(write(tmp_path, [objects])), str(tmp_path / "out")])
    (task,) = load_trajectories(tmp_path / "out/data.csv", show_progress=False)
    assert task.task_id == "7"
    assert [(s.gold.action.kind, s.gold.action.target) for s in task.steps] == list(STEPS)
    assert [dict(s.gold.action.arguments) for s in task.steps] == [{}, {"text": "scan 1"}, {}, {}, {}]
    assert "null" not in (tmp_path / "out/data.csv").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"Task_id": "a"', "row 1: found broken JSON|found JSON that is neither one object per line nor a list"),
        ("[1, 2]", "found no list of objects; expected one object per step"),
        ("[{", "found broken JSON"),
        ('{"Task_id": {"0": "a"}, "Image_id": {}, "Instruction": {}, "Output": {}, "Grounding": {}}',
         "row 1: Task_id: found .*are rows and columns swapped"),
        ('{"Task_id": "a"}', "found columns Task_id; expected Image_id too"),
    ],
)  # fmt: skip
def test_json_that_is_no_table_is_refused(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(TrajectoryError, match=message):
        load_trajectories(tmp_path / "x.jsonl", show_progress=False)


def test_broken_line_of_json_lines_is_named_by_its_number(tmp_path):
    path = _write_json_lines(tmp_path, _build_rows())
    write_screenshots(tmp_path)
    path.write_text(path.read_text().replace('"t1"', '"t1', 1))
    with pytest.raises(TrajectoryError, match=r"tasks.jsonl: row 1: found broken JSON"):
        load_trajectories(path, show_progress=False)


def test_damaged_parquet_file_is_refused(tmp_path):
    path = _write_parquet(tmp_path, _build_rows())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrajectoryError, match="found a file that is no Parquet .*restore it"):
        load_trajectories(path, show_progress=False)


def test_parquet_file_with_damaged_pages_is_refused_in_words(tmp_path):
    path = tmp_path / "tasks.parquet"
    parquet.write_table(pa.Table.from_pylist(_build_rows(picture="image")), path)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 2000 + data[2004:])

    with pytest.raises(TrajectoryError, match=r"tasks.parquet: found rows that cannot be read .*; restore the file"):
        load_trajectories(path)


@pytest.mark.parametrize("name", ["screens\\1.png", "Screens/1.PNG"])
def test_pictures_beside_screenshots_whose_names_are_near_are_refused(tmp_path, name):
    write_screenshots(tmp_path)
    rows = [{**row, "Image_id": name} for row in _build_rows(picture="annotated")]

    with pytest.raises(TrajectoryError, match="pictures in the column annotated; expected one of the two"):
        load_trajectories(_write_parquet(tmp_path, rows))


def test_saved_data_set_that_names_files_elsewhere_is_refused(tmp_path):
    folder = _save_to_disk(tmp_path, _build_rows(picture="image"))
    state = json.loads((folder / "state.json").read_text())
    (file,) = folder.glob("*.arrow")
    file.rename(tmp_path / file.name)
    state["_data_files"] = [{"filename": f"../{file.name}"}]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(TrajectoryError, match=rf"found '../{file.name}' in state.json"):
        load_trajectories(folder)


def test_saved_data_set_that_names_a_split_elsewhere_is_refused(tmp_path):
    """`datasets` joins its name to the folder's."""
    _save_to_disk(tmp_path, _build_rows(picture="image"))
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "dataset_dict.json").write_text('{"splits": ["../saved"]}')
    with pytest.raises(TrajectoryError, match="found '../saved' in dataset_dict.json"):
        load_trajectories(folder)


@pytest.mark.parametrize("state", ["{", "[]", '{"_data_files": [{}]}', '{"_data_files": 3}'])
def test_saved_data_set_with_a_broken_state_is_refused(tmp_path, state):
    folder = _save_to_disk(tmp_path, _build_rows(picture="image"))
    (folder / "state.json").write_text(state)
    with pytest.raises(TrajectoryError, match="no data set can be opened"):
        load_trajectories(folder)


def test_picture_stored_as_a_path_too_long_for_a_file_is_a_bad_row(tmp_path):
    rows = _build_rows(picture="image")
    rows[1]["image"] = {"bytes": None, "path": "x" * 5000}

    with pytest.raises(TrajectoryError, match=r"image: found 'x+' .5000 characters.; expected the screenshot's"):
        load_trajectories(_write_parquet(tmp_path, rows))


@pytest.mark.parametrize("is_absolute", [True, False])
def test_picture_stored_as_a_path_is_read_below_the_root_alone(tmp_path, is_absolute):
    """A table of somebody else's may name any file: it would be opened, copied and published in the report."""
    folder, private = tmp_path / "data", tmp_path / "private.png"
    folder.mkdir()
    write_screenshots(folder)
    write_screenshots(tmp_path)
    (tmp_path / "screens/0.png").rename(private)
    rows = _build_rows(picture="image")
    name = str(folder / "screens/0.png") if is_absolute else "screens/0.png"
    rows[1]["image"] = {"bytes": None, "path": name}
    assert len(load_trajectories(_write_parquet(folder, rows))[0].steps) == len(rows)
    rows[1]["image"] = {"bytes": None, "path": str(private) if is_absolute else "../private.png"}
    with pytest.raises(TrajectoryError, match="private.*give the folder that holds the screenshots as image_root"):
        load_trajectories(_write_parquet(folder, rows))
    if is_absolute:
        assert len(load_trajectories(_write_parquet(folder, rows), tmp_path)[0].steps) == len(rows)


def test_name_too_long_for_a_file_beside_a_column_of_pictures_is_none(tmp_path):
    rows = [{**row, "Image_id": "x" * 5000} for row in _build_rows(picture="shown")]

    assert len(load_trajectories(_write_parquet(tmp_path, rows))[0].steps) == len(rows)


def test_single_picture_of_a_careflow_row_is_a_list_of_one(tmp_path):
    row = build_careflow_row(1)
    data = json.loads(row["json_data"])
    row |= {
        "json_data": json.dumps(data | {"trajectory": data["trajectory"][:1]}),
        "images": {"bytes": encode_screen(0)},
    }
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "tasks.parquet")

    convert.main(["careflow", str(tmp_path / "tasks.parquet"), str(tmp_path / "out")])

    assert len(load_trajectories(tmp_path / "out/data.csv")[0].steps) == 1
