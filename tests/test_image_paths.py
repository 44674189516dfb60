"""Names of screenshots as data writes them: one rule for tables, foreign formats, report and predictor."""

import json
import os
import time
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from trajectory_samples import build_output, build_task, build_tasks, format_csv, write_screenshots, write_trajectories

from eval.reporting.report import load_thumbnails
from sft.convert.careflow import read_careflow
from sft.convert.pipeline import read_pipeline
from sft.convert.records import load_records, read_records
from sft.data.image_paths import find_file, find_screenshot, resolve_image, suggest_names
from sft.data.load import TrajectoryError, load_trajectories

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "écran.png") for form in ("NFC", "NFD"))


def _make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


FOUND = {  # files that are there, the name in the data, the file it means
    "as it is": (["shots/1.png"], "shots/1.png", "shots/1.png"),
    "backslashes": (["shots/1.png"], "shots\\1.png", "shots/1.png"),
    "backslashes, from here": (["shots/1.png"], ".\\shots\\1.png", "shots/1.png"),
    "both slashes": (["a/b/1.png"], "a\\b/1.png", "a/b/1.png"),
    "doubled backslashes": (["shots/1.png"], "shots\\\\1.png", "shots/1.png"),
    "a file of the literal name first": (["shots/1.png", "shots\\1.png"], "shots\\1.png", "shots\\1.png"),
    "from here": (["shots/1.png"], "./shots/1.png", "shots/1.png"),
    "doubled slashes": (["shots/1.png"], "shots//1.png", "shots/1.png"),
    "up and down": (["shots/1.png"], "x/../shots/1.png", "shots/1.png"),
    "white space around": (["shots/1.png"], " shots/1.png\t", "shots/1.png"),
    "letter case": (["Shots/Screen_1.PNG"], "shots/screen_1.png", "Shots/Screen_1.PNG"),
    "letter case and backslashes": (["Shots/1.png"], "SHOTS\\1.PNG", "Shots/1.png"),
    "the same letter case first": (["a.png", "A.png"], "A.png", "A.png"),
    "composed for decomposed": ([DECOMPOSED], COMPOSED, DECOMPOSED),
    "decomposed for composed": ([COMPOSED], DECOMPOSED, COMPOSED),
    "form before letter case": ([COMPOSED, DECOMPOSED.upper()], DECOMPOSED, COMPOSED),
    "form and letter case": ([COMPOSED], DECOMPOSED.upper(), COMPOSED),
    "Turkish and German letters": (["straße.png"], "STRASSE.png", "straße.png"),
    "percent signs that are meant": (["a%20b.png"], "a%20b.png", "a%20b.png"),
}


@pytest.mark.parametrize(("files", "name", "meant"), FOUND.values(), ids=FOUND)
def test_name_finds_the_one_file_that_it_can_mean(tmp_path, files, name, meant):
    _make(tmp_path, *files)
    assert resolve_image(name, tmp_path) == tmp_path / meant
    assert find_screenshot(name, [tmp_path]) == tmp_path / meant
    assert find_file(tmp_path / name.strip()) == tmp_path / meant


REFUSED = {
    "\\shots\\1.png": "found the absolute path",
    "/shots/1.png": "found the absolute path",
    "C:\\shots\\1.png": "found the absolute path",
    "c:/shots/1.png": "found the absolute path",
    "\\\\server\\shots\\1.png": "found the absolute path",
    "file:///home/me/shots/1.png": "found the address",
    "file:shots/1.png": "found the address",
    "https://host/shots/1.png": "found the address",
    "s3://bucket/shots/1.png": "found the address",
    "data:image/png;base64,AAAA": "found the address",
    "../1.png": "which leaves",
    "..\\1.png": "which leaves",
    "shots\\..\\..\\1.png": "which leaves",
    "": "found an empty cell",
    "a" * 501: "(501 characters)",
    "a\0.png": "expected the screenshot's path",
}


@pytest.mark.parametrize(("name", "words"), REFUSED.items(), ids=range(len(REFUSED)))
def test_name_that_is_no_path_below_the_root_is_refused_in_words(tmp_path, name, words):
    _make(tmp_path, "in/shots/1.png", "1.png")
    with pytest.raises(ValueError) as caught:
        resolve_image(name, tmp_path / "in")
    assert words in str(caught.value)


def test_name_does_not_leave_a_root_that_is_here(tmp_path, monkeypatch):
    _make(tmp_path, "in/1.png", "secret.png")
    monkeypatch.chdir(tmp_path / "in")
    assert find_screenshot("../in/1.png", [Path()]) == tmp_path / "in/1.png"
    with pytest.raises(ValueError, match="which leaves"):
        resolve_image("../secret.png", Path())
    assert find_screenshot("..\\secret.png", [Path()]) is None
    assert find_file(Path("IN.PNG")) == Path("IN.PNG")
    assert find_file(Path("../IN/1.png")) == tmp_path / "in/1.png"


def test_path_of_endless_folders_is_looked_up_in_little_time(tmp_path):
    _make(tmp_path, "1.png")
    start = time.process_time()
    assert find_screenshot("a/" * 200_000 + "1.png", [tmp_path]) == tmp_path / "1.png"
    assert time.process_time() - start < 5


SUGGESTED = {  # files that are there, the name in the data, what is asked
    "percent escapes": (["my shot.png"], "my%20shot.png", "'my shot.png'"),
    "two files in other letter case": (["A1.png", "a1.PNG"], "a1.png", "'A1.png' or 'a1.PNG'"),
    "another suffix": (["shots/1.webp", "shots/2.webp"], "shots/1.png", "'shots/1.webp'"),
    "a letter wrong": (["shots/layout_3.png", "shots/layout_4.png"], "shots/layuot_3.png", "'shots/layout_3.png'"),
    "a folder wrong": (["screenshots/1.png"], "screenshot/1.png", "'screenshots'"),
    "a root too deep": (["1.png"], "shots/1.png", "'1.png'"),
    "a root too deep, backslashes": (["1.png"], "data\\shots\\1.png", "'1.png'"),
}


@pytest.mark.parametrize(("files", "name", "asked"), SUGGESTED.values(), ids=SUGGESTED)
def test_near_name_is_told_where_it_is_not_taken(tmp_path, files, name, asked):
    _make(tmp_path, *files)
    assert not resolve_image(name, tmp_path).exists()
    assert suggest_names(name, tmp_path) == f"; did you mean {asked}?"


def test_no_other_number_is_suggested(tmp_path):
    _make(tmp_path, "step_1.png", "step_3.png", "step_12.png")
    assert suggest_names("step_2.png", tmp_path) == ""


def test_missing_screenshot_is_told_with_row_and_near_name(tmp_path):
    rows = build_task("t1", "Open the study")
    rows[1]["Image_id"] = "screens/0.jpg"
    with pytest.raises(TrajectoryError, match=r"row 3: Image_id: found no file .*did you mean 'screens/0\.png'\?"):
        load_trajectories(write_trajectories(tmp_path, rows), show_progress=False)


def test_near_names_are_searched_for_the_first_missing_screenshots_alone(tmp_path, monkeypatch):
    searched = []
    monkeypatch.setattr("sft.data.rows.suggest_names", lambda *names: searched.append(names) or "")
    rows = build_task("t1", "Open the study", 500, 500)
    path = write_trajectories(tmp_path, rows)
    with pytest.raises(TrajectoryError):
        load_trajectories(path, show_progress=False)
    assert len(searched) == 20


def test_two_spellings_of_one_screenshot_are_one_screenshot(tmp_path):
    rows = build_task("t1", "Open the study", 3, 1)
    rows[1]["Image_id"], rows[2]["Image_id"] = "screens\\0.png", "Screens/0.PNG"
    (task,) = load_trajectories(write_trajectories(tmp_path, rows), show_progress=False)
    assert {step.image_path for step in task.steps} == {tmp_path / "screens/0.png"}
    assert [step.image_id for step in task.steps] == ["screens/0.png", "screens\\0.png", "Screens/0.PNG"]


def test_saved_data_set_finds_names_as_a_csv_does(tmp_path):
    import datasets

    rows = build_task("t1", "Open the study", 3, 1)
    rows[1]["Image_id"] = "screens\\0.png"
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    write_screenshots(tmp_path)
    (task,) = load_trajectories(tmp_path / "saved", tmp_path, show_progress=False)
    assert {step.image_path for step in task.steps} == {tmp_path / "screens/0.png"}


@pytest.fixture
def images(tmp_path):
    """A folder of one screenshot, named in another letter case than data names it."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (320, 192)).save(tmp_path / "images/Shot1.PNG")
    return tmp_path / "images"


def test_records_find_names_as_a_csv_does(tmp_path, images):
    line = {
        "Task_id": "r",
        "Image_id": "old\\shot1.png",
        "Instruction": "Open",
        "Output": build_output("COMPLETE", ""),
    }
    (tmp_path / "r.jsonl").write_text(json.dumps({**line, "Grounding": "{}"}))
    (task,) = read_records(load_records(tmp_path / "r.jsonl"), images)
    assert task.steps[0].image == images / "Shot1.PNG"
    (tmp_path / "r.jsonl").write_text(json.dumps({**line, "Image_id": "shot1.jpg"}))
    (dropped,) = read_records(load_records(tmp_path / "r.jsonl"), images)
    assert "found no screenshot 'shot1.jpg'" in dropped.reason and "did you mean 'Shot1.PNG'?" in dropped.reason


@pytest.mark.parametrize(
    "name",
    [
        "{private}", "../private.png", "file://{private}", "{private}/../private.png", "file:///%2e%2e/private.png",
        "file://localhost/x/..%2f..%2fprivate.png", "file:///images/%00/../../private.png",
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", ["{}", '{{"path": "{}"}}', '{{"image_url": {{"url": "{}"}}}}'])
def test_careflow_table_brings_no_picture_of_elsewhere(tmp_path, images, name, shape):
    private = tmp_path / "private.png"
    Image.new("RGB", (8, 8)).save(private)
    named = name.format(private=private)
    steps = [{"step": 1, "action": "COMPLETE", "target": "", "screenshot": named}]
    data = json.dumps({"id": 1, "instruction": "Open", "trajectory": steps})
    listed = json.dumps([json.loads(shape.format(named)) if shape != "{}" else named])
    row = {"task_id": "c", "json_data": data, "images": listed, "image_paths": json.dumps([named])}
    (tmp_path / "c.csv").write_text(format_csv([row], tuple(row)))
    (task,) = read_careflow(str(tmp_path / "c.csv"), images)
    assert "found no" in getattr(task, "reason", "")


def test_careflow_finds_names_as_a_csv_does(tmp_path, images):
    steps = [{"step": 1, "action": "COMPLETE", "target": "", "screenshot": "C:\\old\\SHOT1.png"}]
    data = json.dumps({"id": 1, "instruction": "Open", "trajectory": steps})
    (tmp_path / "c.csv").write_text(format_csv([{"task_id": "c", "json_data": data}], ("task_id", "json_data")))
    (task,) = read_careflow(str(tmp_path / "c.csv"), images)
    assert task.steps[0].image == images / "Shot1.PNG"


def test_pipeline_finds_names_as_a_csv_does(tmp_path, images):
    record = {
        "Grounding": {"ground_truth": {"action": "COMPLETE", "target": ""}},
        "image_info": {"image_path": "D:\\run\\shot1.PNG"},
    }
    content = {"metadata": {"user_goal": "Open", "total_steps": 1}, "steps": [{"Step 1": record}]}
    (tmp_path / "Slicer_endtoend_001.json").write_text(json.dumps(content))
    (task,) = read_pipeline(tmp_path)
    assert task.steps[0].image == images / "Shot1.PNG"


def test_report_shows_every_screenshot_that_the_check_found(tmp_path):
    """Behind links that lead out of the root as well, in a Hub cache as in linked storage."""
    rows = build_tasks(1, n_steps=6)
    names = ("screens/0.png", "screens\\0.png", "SCREENS/0.png", "blob.png", "storage/1.png", "./screens//1.png")
    for row, name in zip(rows, names):
        row["Image_id"] = name
    path = write_trajectories(tmp_path / "data", rows)
    write_screenshots(tmp_path / "elsewhere", 4)
    (tmp_path / "data/blob.png").symlink_to(os.path.relpath(tmp_path / "elsewhere/screens/2.png", tmp_path / "data"))
    (tmp_path / "data/storage").symlink_to(tmp_path / "elsewhere/screens")
    (task,) = load_trajectories(path, show_progress=False)
    shown = load_thumbnails([step.image_id for step in task.steps], tmp_path / "data")
    assert (shown.problems, len(shown.images), set(shown.index_of)) == ([], 3, set(names))
    linked = load_thumbnails([step.image_id for step in task.steps], tmp_path / "data", link_from=tmp_path / "out")
    assert {image.url for image in linked.images} == {
        "../data/screens/0.png",
        "../data/storage/1.png",
        "../data/blob.png",
    }


def test_report_refuses_what_the_check_refuses(tmp_path):
    write_screenshots(tmp_path)
    write_screenshots(tmp_path / "in")
    shown = load_thumbnails(["../screens/0.png", str(tmp_path / "screens/0.png")], tmp_path / "in")
    assert shown.index_of == {}
    assert ["which leaves" in shown.problems[0], "absolute path" in shown.problems[1]] == [True, True]
