"""Bad input, line by line: each stops before a model is loaded with one message: where, found, expected."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trajectory_samples import build_output, build_task, build_tasks, format_csv, write_screenshots, write_trajectories

from sft.data.load import TrajectoryError, load_trajectories

ROOT = Path(__file__).resolve().parent.parent
SCREEN = "screens/0.png"


def _refusal(folder, content, **options):
    """Return the problems with which a file of this content is refused."""
    write_screenshots(folder)
    path = folder / "tasks.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TrajectoryError) as caught:
        load_trajectories(path, show_progress=False, **options)
    assert str(caught.value).startswith(f"{path}: ")
    return [(p.row, p.column, p.message) for p in caught.value.problems]


def _change(row=2, **cells):
    """Return the CSV of two tasks with some cells of one row changed; row 2 is the first below the header."""
    rows = build_tasks(2)
    rows[row - 2] = {**rows[row - 2], **cells}
    return format_csv(rows)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"Output": '{"action": "CLICK", '}, (2, "Output", "found broken JSON (Expecting property name")),
        ({"Output": ""}, (2, "Output", "found an empty cell; expected JSON")),
        ({"Output": "[1]"}, (2, "Output", "found list '[1]'; expected an answer as a JSON object")),
        ({"Output": '"CLICK"'}, (2, "Output", "found str '\"CLICK\"'; expected an answer as a JSON object")),
        ({"Output": "nan"}, (2, "Output", "found 'nan', a missing value; expected JSON: fill the cell")),
        ({"Output": "null"}, (2, "Output", "found NoneType 'null'; expected an answer as a JSON object")),
        ({"Output": "{}"}, (2, "Output", 'found keys none; expected "action", "Predicted"')),
        ({"Output": '{"Predicted": "CLICK"}'}, (2, "Output", 'found keys Predicted; expected "action"')),
        ({"Output": build_output("DRAG", "x")}, (2, "Output", "found action 'DRAG'; expected one of CLICK, SCROLL")),
        ({"Output": build_output("CLICK", "")}, (2, "Output", "found no target for CLICK")),
        (
            {"Output": '{"action":"ZOOM","target":"x","scale":NaN}'},
            (2, "Output", "found broken JSON (found the number nan; expected a finite one, or null)"),
        ),
        ({"Output": "[" * 50_000}, (2, "Output", "found broken JSON (")),
        ({"Output": '{"action":"CLICK","target":"x","short_term":3}'}, (2, "Output", "found short_term of type int")),
        ({"row": 3, "Output": build_output("COMPLETE", "")}, (3, "Output", "found COMPLETE before the last step")),
        ({"Grounding": '{"bbox": [5, 1, 1, 5]}'}, (2, "Grounding", "found bbox [5, 1, 1, 5]; expected [x1,")),
        ({"Grounding": '{"bbox": [1, 5, 5, 1]}'}, (2, "Grounding", "found bbox [1, 5, 5, 1]; expected [x1,")),
        ({"Grounding": '{"bbox": [1, 2, 3]}'}, (2, "Grounding", "found bbox [1, 2, 3]; expected")),
        ({"Grounding": '{"screen": [0, 9]}'}, (2, "Grounding", "found screen [0, 9]; expected [width, height]")),
        ({"Task_id": " "}, (2, "Task_id", "found an empty cell; expected the task's id")),
        ({"Image_id": ""}, (2, "Image_id", "found an empty cell; expected the screenshot's path")),
        ({"Image_id": "screens/none.png"}, (2, "Image_id", "found no file ")),
        ({"Image_id": "screens"}, (2, "Image_id", "found no file ")),
        ({"Image_id": "x" * 300}, (2, "Image_id", "found")),
        ({"Image_id": "/etc/hostname"}, (2, "Image_id", "found the absolute path '/etc/hostname'; expected")),
        ({"Image_id": "C:\\shots\\1.png"}, (2, "Image_id", "found the absolute path 'C:")),
        ({"Image_id": "../screens/0.png"}, (2, "Image_id", "found '../screens/0.png', which leaves ")),
        ({"Image_id": "screens/../../x.png"}, (2, "Image_id", "found 'screens/../../x.png', which leaves ")),
        ({"row": 3, "Instruction": "another"}, (3, "Instruction", "found 'another'; expected the same text as row 2")),
        ({"row": 3, "Application": "another"}, (3, "Application", "found 'another'; expected the same text as row 2")),
        ({"row": 3, "Group": "another"}, (3, "Group", "found 'another'; expected the same text as row 2")),
        ({"row": 3, "Slide_number": "1"}, (3, "Slide_number", "found step 1 again (first in row 2); expected")),
        ({"Slide_number": "0"}, (2, "Slide_number", "found '0'; expected a whole number from 1 on")),
        ({"Slide_number": "1.5"}, (2, "Slide_number", "found '1.5'; expected a whole number from 1 on")),
        ({"Slide_number": ""}, (2, "Slide_number", "found ''; expected a whole number from 1 on")),
    ],
)  # fmt: skip
def test_bad_cell_is_refused_once_with_row_column_found_and_expected(tmp_path, change, expected):
    problems = _refusal(tmp_path, _change(**change))
    assert problems[0][:2] == expected[:2]
    assert problems[0][2].startswith(expected[2])
    assert len(problems) == 1
    assert len(problems[0][2]) < 500


def test_broken_grounding_is_refused(tmp_path):
    problems = _refusal(tmp_path, _change(Grounding="{oops"))
    assert (2, "Grounding") in [p[:2] for p in problems]


def test_empty_goal_is_refused(tmp_path):
    rows = [{**row, "Instruction": "  "} for row in build_task("t1", "goal")]
    assert _refusal(tmp_path, format_csv(rows)) == [
        (2, "Instruction", "found an empty cell; expected the user's goal")
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", (None, None, "found an empty file; expected a header row")),
        (b"\xef\xbb\xbf", (None, None, "found an empty file; expected a header row")),
        (b" \r\n\r\n", (None, None, "found an empty file; expected a header row")),
        (format_csv([]), (None, None, "found a header and no rows; expected one row per step")),
        (format_csv(build_tasks(1), delimiter=";"), (1, None, "found columns separated by semicolons; expected")),
        (format_csv(build_tasks(1), delimiter="\t"), (1, None, "found columns separated by tabs; expected commas")),
        (format_csv(build_tasks(1)).encode("utf-16"), (None, None, "found UTF-16 text; expected a trajectory CSV: ")),
        ("Größe".encode("latin-1"), (None, None, "found bytes that are not UTF-8 at position 2")),
        (b"PK\x03\x04\x00\x00", (None, None, "found a damaged ZIP archive; expected a trajectory CSV")),
        (format_csv(build_tasks(1)) + 't9,1,"never closed', (None, None, "found broken CSV")),
        (format_csv(build_tasks(1)) + "t9,1\n", (5, None, "found 2 cells; expected 8")),
    ],
)  # fmt: skip
def test_file_that_is_no_table_is_refused(tmp_path, content, expected):
    problems = _refusal(tmp_path, content)
    assert problems[0][:2] == expected[:2]
    assert problems[0][2].startswith(expected[2])


@pytest.mark.parametrize("missing", ["Task_id", "Image_id", "Instruction", "Output", "Grounding"])
def test_missing_column_is_named(tmp_path, missing):
    columns = [c for c in ("Task_id", "Image_id", "Instruction", "Output", "Grounding") if c != missing]
    problems = _refusal(tmp_path, format_csv(build_tasks(1), columns))
    assert problems == [(1, missing, f"found columns {', '.join(columns)}; expected {missing} too")]


def test_column_given_twice_is_refused(tmp_path):
    text = format_csv(build_tasks(1)).replace("Group", "Output", 1)
    assert _refusal(tmp_path, text) == [(1, "Output", "found this column twice; expected it once")]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "found a damaged image"),
        (lambda data: data[:-4], "found a damaged image"),
        (lambda data: b"", "found an empty file"),
        (lambda data: b"<html>404 Not Found</html>", "found a web page"),
    ],
    ids=["half a file", "its end missing", "empty", "a web page"],
)
def test_screenshot_that_cannot_be_decoded_is_named_once(tmp_path, damage, message):
    write_screenshots(tmp_path)
    good = (tmp_path / SCREEN).read_bytes()
    (tmp_path / "screens/bad.png").write_bytes(damage(good))
    rows = [{**row, "Image_id": "screens/bad.png"} for row in build_task("t1", "goal")]
    problems = _refusal(tmp_path, format_csv(rows))
    assert [p[:2] for p in problems] == [(2, "Image_id")]
    assert problems[0][2].startswith(message)
    assert str(tmp_path / "screens/bad.png") in problems[0][2]


@pytest.mark.parametrize(
    ("target", "message"), [("gone.png", "found no file"), ("link.png", "found a file that cannot be read")]
)
def test_link_that_leads_nowhere_is_refused_as_what_it_is(tmp_path, target, message):
    write_screenshots(tmp_path)
    (tmp_path / "screens/link.png").symlink_to(target)
    found = _refusal(tmp_path, _change(Image_id="screens/link.png"))[0]
    assert found[:2] == (2, "Image_id")
    assert message in found[2]


def test_all_problems_are_listed_up_to_twenty_and_counted(tmp_path):
    rows = [{**row, "Output": "{"} for i in range(25) for row in build_task(f"t{i}", "goal", 1)]
    write_screenshots(tmp_path)
    (tmp_path / "tasks.csv").write_text(format_csv(rows))
    with pytest.raises(TrajectoryError) as caught:
        load_trajectories(tmp_path / "tasks.csv", show_progress=False)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines[:20]] == [f"row {n}" for n in range(2, 22)]
    assert lines[20:] == ["... and 5 more", "25 problems; nothing was loaded."]


def test_no_task_in_the_chosen_range_is_refused(tmp_path):
    assert _refusal(tmp_path, format_csv(build_tasks(2)), task_start=5) == [
        (None, None, "found 2 tasks, none in task_start=5, task_end=None")
    ]


def _run(*arguments):
    """Run an entry point as a user does; -X importtime lists on stderr what was imported."""
    command = [sys.executable, "-X", "importtime", *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    imported = {
        line.rsplit("|", 1)[-1].strip() for line in finished.stderr.splitlines() if line.startswith("import time:")
    }
    message = "\n".join(line for line in finished.stderr.splitlines() if not line.startswith("import time:"))
    return finished.returncode, message.strip(), imported


def test_training_ends_with_code_2_and_the_problems_of_recipe_data_and_model(tmp_path):
    write_screenshots(tmp_path)
    (tmp_path / "tasks.csv").write_text(_change(Output="{oops"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"train_csv: {tmp_path}/tasks.csv\nmodel_name_or_path: {tmp_path}/no-model\n")
    code, message, imported = _run("sft/run.py", str(recipe))
    lines = [line for line in message.splitlines() if "Checking screenshots" not in line]
    assert code == 2
    assert lines[0].startswith(f"{tmp_path}/no-model: found no such folder; expected a model folder or a Hub id")
    assert lines[1].startswith(f"{tmp_path}/tasks.csv: row 2: Output: found broken JSON")
    assert lines[2:] == ["1 problem; nothing was loaded."]
    assert "torch" not in imported


def test_training_ends_with_code_2_on_a_recipe_key_given_twice(tmp_path):
    (tmp_path / "recipe.yaml").write_text("lora_r: 1\nlora_r: 2\n")
    code, message, imported = _run("sft/run.py", str(tmp_path / "recipe.yaml"))
    assert (code, "torch" in imported) == (2, False)
    assert message == (f"{tmp_path}/recipe.yaml: line 2: found key 'lora_r' again (first in line 1); expected it once")


def test_rollout_ends_with_code_2_on_bad_data_and_writes_nothing(tmp_path):
    write_screenshots(tmp_path)
    (tmp_path / "tasks.csv").write_text(_change(Image_id="../secret.png"))
    arguments = ["--test_csv", f"{tmp_path}/tasks.csv", "--output_dir", f"{tmp_path}/results", "--policy", "replay"]
    code, message, imported = _run("eval/rollout.py", *arguments)
    assert (code, "torch" in imported) == (2, False)
    assert f"{tmp_path}/tasks.csv: row 2: Image_id: found '../secret.png', which leaves {tmp_path}" in message
    assert "Traceback" not in message
    assert not (tmp_path / "results").exists()


def test_rollout_ends_with_code_2_on_a_model_folder_that_is_none(tmp_path):
    write_screenshots(tmp_path)
    (tmp_path / "tasks.csv").write_text(format_csv(build_tasks(1)))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "agent_config.json").write_text(json.dumps({"prompt_version": "0"}))
    arguments = ["--test_csv", f"{tmp_path}/tasks.csv", "--output_dir", f"{tmp_path}/results"]
    code, message, imported = _run("eval/rollout.py", *arguments, "--model_path", f"{tmp_path}/model")
    assert (code, "torch" in imported) == (2, False)
    assert message.startswith(f"{tmp_path}/model/agent_config.json: found prompt_version '0'; expected one of 1, 2")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["qwen3vl", "qwen2_5vl"])
def test_published_recipe_without_weights_or_hub_says_what_is_missing_and_the_way_out(recipe, tmp_path):
    train = write_trajectories(tmp_path / "train", build_tasks(4))  # its own data has 1,000 screenshots to look at
    val = write_trajectories(tmp_path / "val", build_tasks(1, first=50))
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/nonexistent"}
    command = [
        sys.executable,
        "sft/run.py",
        f"recipes/{recipe}.yaml",
        "--train_csv",
        str(train),
        "--val_csv",
        str(val),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "found no folder Qwen/Qwen" in done.stderr and "the Hub cannot be reached" in done.stderr
    assert "--model_name_or_path /path/to/its/folder" in done.stderr
    assert "Traceback" not in done.stderr
