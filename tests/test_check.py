"""`python -m sft.check`: exit codes, numbers, dumped prompts, what it shows; no torch, little time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from trajectory_samples import TINY_AGENT, build_output, build_task, build_tasks, format_csv, write_trajectories

from sft.check import __main__ as check
from sft.data.load import load_trajectories
from sft.memory import lagged
from sft.prompts import build_prompt, build_system_text

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def recipe(tmp_path):
    """A recipe with the small budgets of the sample tasks; its other keys are not read."""
    path = tmp_path / "recipe.yaml"
    keys = ("min_pixels", "max_pixels", "memory_budget_chars", "max_prompt_tokens", "max_answer_tokens")
    path.write_text("learning_rate: 1.0e-4\n" + "".join(f"{k}: {getattr(TINY_AGENT, k)}\n" for k in keys))
    return path


def _check(*arguments):
    """Run the command in this process; return its exit code."""
    try:
        check.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def _report(tmp_path, csv_path, *flags):
    code = _check(csv_path, "--json", tmp_path / "report.json", *flags)
    return code, json.loads((tmp_path / "report.json").read_text())


def test_clean_file_ends_with_code_0(tmp_path, capsys):
    assert _check(write_trajectories(tmp_path, build_tasks(4))) == 0
    assert "✓ Clean: 4 tasks can be used." in capsys.readouterr().out


def test_bad_rows_end_with_code_1_each_with_row_column_found_and_expected(tmp_path, capsys):
    rows = build_tasks(4)
    rows[1]["Output"] = build_output("HOVER", "Search")
    rows[5]["Image_id"] = "screens/gone.png"
    code, report = _report(tmp_path, write_trajectories(tmp_path, rows))
    out = capsys.readouterr().out
    assert (code, report["is_clean"], report["n_problems"]) == (1, False, 2)
    first, second = report["problems"]
    assert (first["row"], first["column"], first["task_id"]) == (3, "Output", "t1")
    assert "found action 'HOVER'; expected one of CLICK" in first["message"]
    assert (second["row"], second["column"], second["task_id"]) == (7, "Image_id", "t2")
    assert "HOVER" in out
    assert "✗ 2 problems in 2 of 4 tasks." in out
    assert (report["n_tasks"], report["n_quarantined_tasks"], report["n_quarantined_rows"]) == (2, 2, 6)


def test_file_that_is_no_table_ends_with_code_1(tmp_path):
    (tmp_path / "x.csv").write_text("a;b\n1;2\n")
    code, report = _report(tmp_path, tmp_path / "x.csv")
    assert code == 1
    assert "separated by semicolons" in report["problems"][0]["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["gone.csv"],
        ["tasks.csv", "--show", "-1"],
        ["tasks.csv", "--image_root", "gone"],
        ["tasks.csv", "--shw", "1"],
    ],
)
def test_wrong_command_line_ends_with_code_2(tmp_path, monkeypatch, arguments):
    write_trajectories(tmp_path, build_tasks(1))
    monkeypatch.chdir(tmp_path)
    assert _check(*arguments) == 2


def test_folder_named_like_a_file_is_told_to_be_a_folder(tmp_path, capsys):
    (tmp_path / "dir.csv").mkdir()
    assert _check(tmp_path / "dir.csv") == 2
    assert "dir.csv: found a folder; expected a trajectory CSV" in capsys.readouterr().err


def test_command_ends_with_code_2_on_a_tokenizer_folder_that_is_none(tmp_path):
    csv_path = write_trajectories(tmp_path, build_tasks(1))
    done = _run("sft.check", csv_path, "--tokenizer", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "found no processor_config.json or preprocessor_config.json; expected a vision-language" in done.stderr


def _run(module, *arguments, code=None):
    command = [sys.executable, "-m", module] if code is None else [sys.executable, "-c", code, module]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "119"},
        check=False,
    )


def test_check_starts_and_works_without_torch(tmp_path):
    csv_path = write_trajectories(tmp_path, build_tasks(2))
    without_torch = (
        "import runpy, sys\n"
        "sys.modules['torch'] = None\n"  # importing it now fails
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
    )
    done = _run("sft.check", csv_path, "--show", "1", code=without_torch)
    assert done.returncode == 0, done.stderr
    assert "✓ Clean" in done.stdout


def test_piped_output_is_plain(tmp_path):
    done = _run("sft.check", write_trajectories(tmp_path, build_tasks(2)), "--show", "2")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 119


def test_numbers_of_a_small_file_are_those_counted_by_hand(tmp_path):
    _, report = _report(tmp_path, write_trajectories(tmp_path, build_tasks(4, n_steps=3)))
    assert (report["n_tasks"], report["n_steps"]) == (4, 12)
    assert report["applications"] == {"Archive": {"tasks": 2, "steps": 6}, "Viewer": {"tasks": 2, "steps": 6}}
    # t1 to t4 begin at TEXT, SCROLL, ZOOM, SEGMENT of the cycle and end with COMPLETE
    assert report["actions"] == {"COMPLETE": 4, "SCROLL": 2, "ZOOM": 2, "SEGMENT": 2, "TEXT": 1, "CLICK": 1}
    assert report["majority_share"] == pytest.approx(4 / 12)
    assert report["steps_per_task"]["histogram"] == [{"from": 3, "to": 3, "n": 4}]
    shots = report["screenshots"]
    assert (shots["n_distinct"], shots["n_steps_that_share"], shots["sizes"]) == (2, 12, {"320x192": 12})
    assert report["image_tokens"]["per_step"]["max"] == 77  # 320x192 grows to 11 x 7 tokens of 32 px: 65,536 pixels
    assert report["duplicate_goals"] == []


def test_two_files_of_one_content_are_one_screenshot(tmp_path):
    rows = build_tasks(1, n_steps=2)
    path = write_trajectories(tmp_path, rows)
    (tmp_path / "screens/1.png").write_bytes((tmp_path / "screens/0.png").read_bytes())
    _, report = _report(tmp_path, path)
    assert (report["screenshots"]["n_files"], report["screenshots"]["n_distinct"]) == (2, 1)


def test_goals_of_several_tasks_are_named(tmp_path, capsys):
    rows = [*build_task("a", "Open the study"), *build_task("b", "open  the STUDY "), *build_task("c", "Close it")]
    _, report = _report(tmp_path, write_trajectories(tmp_path, rows))
    assert report["duplicate_goals"] == [{"goal": "Open the study", "tasks": ["a", "b"], "differ": False}]
    assert "Tasks a, b have the same goal" in capsys.readouterr().out


def test_goals_that_look_alike_in_other_characters_are_named(tmp_path, capsys):
    rows = [*build_task("a", "Open the scan"), *build_task("b", "Open the s\u0441an."), *build_task("c", "Close it")]
    _report(tmp_path, write_trajectories(tmp_path, rows))
    assert "Tasks a, b have goals that look alike, in other characters" in " ".join(capsys.readouterr().out.split())


def test_left_out_step_numbers_are_counted_and_told_with_their_row(tmp_path, capsys):
    rows = [*build_task("a", "Open the study", 3), *build_task("b", "Close the study", 3)]
    for row, number in zip(rows[3:], ("1", "2", "6")):
        row["Slide_number"] = number
    code, report = _report(tmp_path, write_trajectories(tmp_path, rows))
    assert code == 0
    assert report["step_numbers_missing"] == 3
    assert report["step_number_gaps"] == [{"task_id": "b", "row": 7, "found": 6, "expected": 3}]
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 step numbers are left out" in printed and "row 7, task b, Slide_number 6; expected 3" in printed


def test_doubtful_screenshots_are_counted_by_file_and_the_first_is_named(tmp_path, capsys):
    path = write_trajectories(tmp_path, build_tasks(2))
    for i in range(2):
        Image.new("RGBA", (320, 192), (9 * i, 20, 30, 0)).save(tmp_path / f"screens/{i}.png")
    _, report = _report(tmp_path, path)
    assert len(report["screenshots"]["notes"]) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "Row 2, screens/1.png: no pixel of it is visible" in printed
    assert "So of 1 more screenshots; --json lists them all." in printed


def test_personal_data_is_hinted_at_outside_the_target_only(tmp_path):
    rows = build_task("a", "Send it to jane.doe@hospital.org", 3)
    rows[0]["Output"] = build_output("CLICK", "ROE^RICHARD")
    _, report = _report(tmp_path, write_trajectories(tmp_path, rows))
    kinds = {(hint["kind"], hint["column"]): hint["n"] for hint in report["personal_data"]}
    assert kinds[("e-mail address", "Instruction")] == 1
    rows[0]["Output"] = json.dumps({"action": "CLICK", "target": "ROE^RICHARD", "short_term": {}, "long_term": {}})
    _, report = _report(tmp_path, write_trajectories(tmp_path, rows))
    assert ("DICOM-style name", "Output") not in {(h["kind"], h["column"]) for h in report["personal_data"]}
    rows[1]["Output"] = build_output("TEXT", "Name", text="MOE^MARY")
    _, report = _report(tmp_path, write_trajectories(tmp_path, rows))
    (hint,) = [h for h in report["personal_data"] if h["kind"] == "DICOM-style name"]
    assert (hint["column"], hint["examples"]) == ("Output", [{"row": 3, "text": "MOE^MARY"}])


def test_personal_data_is_hinted_at_in_what_was_read_from_screenshots_and_in_other_answers(tmp_path):
    rows = [{**row, "Detected_Elements": "[]", "Also_Right": ""} for row in build_task("a", "Open it", 3)]
    rows[0]["Detected_Elements"] = json.dumps([{"name": "DOE^JANE 1970", "bbox": [0, 0, 9, 9]}])
    rows[1]["Also_Right"] = json.dumps([{"action": "TEXT", "target": "Name", "text": "ROE^RICHARD"}])
    csv_path = write_trajectories(tmp_path, build_task("a", "Open it", 3))
    csv_path.write_text(format_csv(rows, list(rows[0])))
    _, report = _report(tmp_path, csv_path)
    found = {hint["column"]: hint["examples"] for hint in report["personal_data"]}
    assert found["Detected_Elements"] == [{"row": 2, "text": "DOE^JANE"}]
    assert found["Also_Right"] == [{"row": 3, "text": "ROE^RICHARD"}]


def test_characters_nobody_sees_are_told_and_never_reach_the_terminal(tmp_path, capsys):
    rows = build_task("a", "Open \u202eydutS\u202c \x1b[31mred", 2)
    code, report = _report(tmp_path, write_trajectories(tmp_path, rows), "--show", "2")
    out = capsys.readouterr().out
    assert code == 0
    assert {hit["character"] for hit in report["hidden_characters"]} == {"U+202E", "U+202C", "U+001B"}
    assert "\\u202eydutS" in out
    assert not set(out) & {"\u202e", "\u202c", "\x1b"}


def test_fillers_and_selectors_are_told_as_other_characters_nobody_sees(tmp_path, capsys):
    rows = build_task("a", "Open\u034f the\u3164 study\U000e0100", 2)
    _, report = _report(tmp_path, write_trajectories(tmp_path, rows), "--show", "1")
    assert {hit["character"] for hit in report["hidden_characters"]} == {"U+034F", "U+3164", "U+E0100"}
    assert "Open\\u034f the\\u3164 study\\U000e0100" in capsys.readouterr().out


def test_memory_columns_are_judged_with_evidence(tmp_path, capsys):
    rows = build_task("a", "Find the scan", 4)
    for row in rows:
        row["Short_Term_Memory"] = json.dumps(
            {"last_lesson": f"Expected action: {json.loads(row['Output'])['action']}"}
        )
    path = write_trajectories(tmp_path, rows)
    path.write_text(format_csv(rows, [*rows[0]]), newline="")
    code, report = _report(tmp_path, path)
    audits = {audit["column"]: audit for audit in report["memory_columns"]}
    assert audits["Short_Term_Memory"]["verdict"] == "same-row"
    assert audits["Output, shown one step later"]["verdict"] == "lagged"
    assert code == 0  # a column that no prompt uses makes no row unusable
    assert "row 2: names the action CLICK (its own step)" in capsys.readouterr().out


def _run_ahead(rows):
    """Write the memory of each step into the step before, as if it were known there already."""
    outputs = [json.loads(row["Output"]) for row in rows]
    for row, output, after in zip(rows, outputs, outputs[1:]):
        row["Output"] = json.dumps({**output, "short_term": after["short_term"], "long_term": {}})
    return rows


def test_output_memory_that_tells_the_next_answer_is_a_problem(tmp_path, capsys):
    rows = [*_run_ahead(build_task("a", "Find the scan", 4)), *build_task("b", "Find the report", 4)]
    code, report = _report(tmp_path, write_trajectories(tmp_path, rows))
    assert (code, report["n_problems"]) == (1, 3)
    assert report["memory_columns"][0]["verdict"] == "mixed"  # of both tasks together
    assert [(p["row"], p["column"], p["task_id"]) for p in report["problems"]] == [
        (row, "Output", "a") for row in (2, 3, 4)
    ]
    message = report["problems"][0]["message"]
    assert "found memory that tells the answer of the next step (row 3)" in message
    assert "its last action is 'TEXT Patient Name'" in message
    assert "set memory_writer: rule" in message
    out = capsys.readouterr().out
    assert "A prompt would hold its own answer" in out
    assert "✗ 3 problems in 1 of 2 tasks." in out


def test_output_memory_that_no_prompt_shows_is_no_problem(tmp_path, recipe, capsys):
    path = write_trajectories(tmp_path, _run_ahead(build_task("a", "Find the scan", 4)))
    text = recipe.read_text()
    for ablation in ("memory_writer: rule", "use_short_term: false"):
        recipe.write_text(f"{text}{ablation}\n")
        code, report = _report(tmp_path, path, "--recipe", recipe)
        assert (code, report["memory_columns"][0]["verdict"]) == (0, "same-row")
    recipe.write_text(f"{text}memory_writer: rule\n")
    assert _check(path, "--recipe", recipe) == 0
    assert "No prompt shows it: the memory is written by rule." in " ".join(capsys.readouterr().out.split())


def test_dump_holds_every_prompt_and_answer_as_training_builds_them(tmp_path, recipe):
    csv_path = write_trajectories(tmp_path, build_tasks(2, n_steps=3))
    assert _check(csv_path, "--recipe", recipe, "--dump_prompts", tmp_path / "prompts.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [(line["task_id"], line["step"]) for line in lines] == [(t, i) for t in ("t1", "t2") for i in range(3)]
    task = load_trajectories(csv_path, show_progress=False)[0]
    memory = list(lagged(task.golds, "model", TINY_AGENT.memory_budget_chars))[2]
    system, user = lines[2]["messages"]
    assert system["content"][0]["text"] == build_system_text(TINY_AGENT)
    assert user["content"][0] == {"type": "image", "image": task.steps[2].image_id}
    assert user["content"][1:] == build_prompt(task.instruction, memory, TINY_AGENT)[1]["content"][1:]
    assert json.loads(lines[2]["completion"])["action"] == "COMPLETE"


def test_documented_row_and_prompt_are_those_of_the_demo(tmp_path):
    page = (ROOT / "docs/data.md").read_text()
    row = page.partition("```csv\n")[2].partition("```")[0]
    assert (ROOT / "demo/data/train.csv").read_text().startswith(row)
    (tmp_path / "row.csv").write_text(row)
    flags = ("--image_root", ROOT / "demo/data", "--dump_prompts", tmp_path / "prompts.jsonl")
    assert _check(tmp_path / "row.csv", *flags) == 0
    dumped = json.loads((tmp_path / "prompts.jsonl").read_text())
    shown = json.loads(next(line for line in page.splitlines() if line.startswith('{"task_id":')))
    (system, user), (shown_system, shown_user) = dumped["messages"], shown["messages"]
    assert {**dumped, "messages": 0, "completion": 0} == {**shown, "messages": 0, "completion": 0}
    assert user == shown_user
    for text, start in (
        (system["content"][0]["text"], shown_system["content"][0]["text"]),
        (dumped["completion"], shown["completion"]),
    ):
        assert start.endswith("...")
        assert text.startswith(start.removesuffix("..."))


def test_dumped_prompts_of_a_task_do_not_change_with_the_labels_from_their_step_on(tmp_path):
    rows = build_task("a", "Find the scan", 5)
    csv_path = write_trajectories(tmp_path, rows)
    _check(csv_path, "--dump_prompts", tmp_path / "before.jsonl")
    rows[2]["Output"] = build_output("SCROLL", "CANARY", ["CANARY"], direction="up")
    rows[2]["Grounding"] = json.dumps({"bbox": [1, 1, 2, 2], "application": "CANARY"})
    write_trajectories(tmp_path, rows)
    _check(csv_path, "--dump_prompts", tmp_path / "after.jsonl")
    before, after = (
        [json.dumps(json.loads(line)["messages"]) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("before.jsonl", "after.jsonl")
    )
    assert before[:3] == after[:3]
    assert "CANARY" in after[3]


def test_shown_steps_tell_the_supervised_part_from_the_rest(tmp_path, capsys):
    _check(write_trajectories(tmp_path, build_tasks(2, n_steps=3)), "--show", "2")
    out = capsys.readouterr().out
    assert "task t1, step 1 of 3, row 2" in out
    assert "task t2, step 3 of 3, row 7" in out
    trained = [line for line in out.splitlines() if line.startswith("│ trained")]
    assert len(trained) == 2
    assert '{"action":"COMPLETE"' in trained[1]


def test_with_a_tokenizer_tokens_are_counted_and_limits_checked(tmp_path, recipe, tiny_checkpoints):
    csv_path = write_trajectories(tmp_path, build_tasks(2))
    flags = ("--recipe", recipe, "--tokenizer", tiny_checkpoints["qwen3_vl"])
    code, report = _report(tmp_path, csv_path, *flags)
    assert code == 0
    assert 200 < report["prompt_tokens"]["max"] <= TINY_AGENT.max_prompt_tokens
    assert sum(part["n"] for part in report["answer_tokens"]["histogram"]) == 6
    recipe.write_text(recipe.read_text().replace("max_answer_tokens: 160", "max_answer_tokens: 5"))
    code, report = _report(tmp_path, csv_path, *flags)
    assert (code, report["n_problems"]) == (1, 6)
    assert "expected at most 5: raise max_answer_tokens" in report["problems"][0]["message"]


def test_goal_of_another_file_is_a_problem_and_its_ids_and_screenshots_are_reported(tmp_path, capsys):
    train = write_trajectories(tmp_path, build_tasks(4), "train.csv")
    shared = [*build_tasks(2, first=4), *build_task("x", "OPEN the study of DOE001")]
    code, report = _report(tmp_path, write_trajectories(tmp_path, shared, "test.csv"), "--against", train)
    assert (code, report["is_clean"], report["n_problems"]) == (1, False, 2)
    overlap = report["overlap"]
    assert (overlap["same_goals"], overlap["n_same_ids"], overlap["n_same_screenshots"]) == (["t4", "x"], 1, 2)
    assert [(p["row"], p["column"], p["task_id"]) for p in report["problems"]] == [
        (2, "Instruction", "t4"),
        (8, "Instruction", "x"),
    ]
    assert "found the goal 'OPEN the study of DOE001', which is in" in report["problems"][1]["message"]
    assert "✗ 2 problems in 2 of 3 tasks." in capsys.readouterr().out


def test_ids_and_screenshots_that_are_in_another_file_too_leave_the_data_clean(tmp_path, capsys):
    train = write_trajectories(tmp_path, build_tasks(2), "train.csv")
    test = write_trajectories(tmp_path, build_task("t1", "Close the study"), "test.csv")
    code, report = _report(tmp_path, test, "--against", train)
    assert (code, report["overlap"]["n_same_ids"], report["overlap"]["n_same_goals"]) == (0, 1, 0)
    assert "1 task ids are in" in capsys.readouterr().out


@pytest.mark.slow
def test_10000_rows_on_as_many_screenshots_take_seconds_and_little_memory(tmp_path):
    image = Image.new("RGB", (1280, 800), "white")
    rows = []
    for task in range(1_000):
        rows += build_task(f"t{task}", f"Open the study of DOE{task:04d}", 10, 10_000, task * 10)
    path = write_trajectories(tmp_path, rows)
    image.save(tmp_path / "screens/white.png")
    data = (tmp_path / "screens/white.png").read_bytes()
    for i in range(10_000):
        (tmp_path / f"screens/{i}.png").write_bytes(data)
    measure = (
        "import pathlib, sys, time\n"
        "import sft.check.__main__\n"
        "started = time.process_time()\n"
        "sft.check.__main__.main(sys.argv[2:])\n"
        "print('SECONDS', time.process_time() - started)\n"
        "peak = [x for x in pathlib.Path('/proc/self/status').read_text().splitlines() if x.startswith('VmHWM')]\n"
        "print('MIB', int(peak[0].split()[1]) / 1024)\n"  # ru_maxrss would tell of the process that started this one
    )
    done = _run("sft.check", path, code=measure)
    assert done.returncode == 0, done.stderr
    measured = {k: float(v) for k, v in (line.split() for line in done.stdout.splitlines()[-2:])}
    # CPU seconds of all threads, which other programs on the machine lengthen less: 10 s on 2 cores are at most 20
    assert measured["SECONDS"] < 20, measured
    assert measured["MIB"] < 600
