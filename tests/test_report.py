"""Published files and the HTML report; the report also in a real browser."""

import csv
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from rollout_samples import RUN, judge, make_step, make_task

from eval.reporting.files import PREDICTION_COLUMNS, format_json, format_predictions, write_outputs
from eval.reporting.report import write_report
from eval.reporting.tables import print_summary
from eval.scoring.comparison import compare_runs
from eval.scoring.error_sources import add_teacher
from eval.scoring.metrics import compute_metrics
from sft.actions import ActionType
from sft.agent import AgentConfig
from sft.files import hash_file, write_whole
from sft.pages.frame import escape_script

HOSTILE = '</script><script>document.title="pwned"</script><img src=x onerror="document.title=1"><!-- & \u2028'

# Task t2: a wrong target. Task t10: an unreadable answer. Task t1: all right, with hostile text everywhere.
STEPS = [
    *make_task("t2", [("CLICK", {"action": "CLICK", "target": "Layout"}), ("COMPLETE", "COMPLETE")]),
    *make_task("t10", [("CLICK", None), ("ZOOM", "CLICK")], application="Orthanc Explorer", group="new_workflow"),
    make_step(
        "t1",
        0,
        {"action": "TEXT", "target": HOSTILE, "text": HOSTILE},
        {"action": "TEXT", "target": HOSTILE, "text": HOSTILE},
        instruction=HOSTILE,
        raw_text=HOSTILE + "\ud83d",
        memory_after={"short_term": {HOSTILE: HOSTILE}, "long_term": {"completed_subtasks": [HOSTILE]}},
        image_id="copy.png",
        bbox=[320, 200, 640, 400],
        screen=[1280, 800],
    ),
]


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    image = Image.new("RGB", (1280, 800), "white")
    ImageDraw.Draw(image).rectangle([320, 200, 640, 400], outline="black")
    image.save(root / "screen.png")
    shutil.copy(root / "screen.png", root / "copy.png")
    return root


def write_page(steps, tmp_path: Path, image_root: Path, **arguments) -> Path:
    verdicts = judge(as_rolled_out(step, image_root) for step in steps)
    metrics = compute_metrics(verdicts, mode="own")
    return write_report(tmp_path, verdicts, metrics, RUN, image_root, **arguments)


def as_rolled_out(step, image_root):
    """Return a step with the hash of its screenshot, as a rollout notes it."""
    path = image_root / step.image_id
    return replace(step, image_sha256=hash_file(path) if path.is_file() else "0" * 64)


FORMULAS = {
    "=cmd|' /C calc'!A0": "'=cmd|' /C calc'!A0",
    "+1+cmd": "'+1+cmd",
    "-2+3": "'-2+3",
    "@SUM(A1)": "'@SUM(A1)",
    "\t=1+1": "'\t=1+1",
    "\r=1+1": "'\r=1+1",
    "\uff1d1+1": "'\uff1d1+1",
    "'=1+1": "''=1+1",
    "+": "+",
    "-": "-",
    "-5": "-5",
    "+0.25": "+0.25",
    "'": "'",
    "O'Neil": "O'Neil",
    "a=b": "a=b",
}


@pytest.mark.parametrize("text", FORMULAS)
def test_predictions_csv_holds_no_formula_and_every_text_can_be_read_back(tmp_path, text):
    steps = [make_step(text, 0, {"action": "CLICK", "target": text}, {"action": "CLICK", "target": text})]
    steps[0] = replace(steps[0], image_id=text)
    write_outputs(tmp_path, judge(steps), compute_metrics(judge(steps), mode="own"), RUN)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    columns = ("Task_id", "Predicted_Target", "Ground_Truth_Target", "Image_id")
    assert {row[column] for column in columns} == {FORMULAS[text]}
    read = re.sub(r"^'('*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])", r"\1", FORMULAS[text])
    assert read == text


def test_predictions_csv_has_the_published_columns_and_one_row_a_step(tmp_path):
    write_outputs(tmp_path, judge(STEPS), compute_metrics(judge(STEPS), mode="own"), RUN)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == PREDICTION_COLUMNS
    assert [(row["Task_id"], row["Slide_number"]) for row in rows] == [
        ("t1", "1"),
        ("t2", "1"),
        ("t2", "2"),
        ("t10", "1"),
        ("t10", "2"),
    ]
    matches = ("Action_Match", "Target_Exact_Match", "Target_Semantic_Match", "Combined_Match")
    assert [rows[1][column] for column in matches] == ["True", "False", "False", "False"]
    assert [rows[2][column] for column in matches] == ["True", "True", "True", "True"]
    assert [rows[3][column] for column in ("Predicted_Action", "Predicted_Output_JSON", *matches)] == [
        "",
        "",
        *["False"] * 4,
    ]
    assert json.loads(rows[0]["Ground_Truth_Output_JSON"])["target"] == HOSTILE
    assert rows[0]["Predicted_Target"] == HOSTILE


def test_memory_columns_hold_what_the_prompt_showed():
    before = {"short_term": {"last_action": "CLICK"}, "long_term": {"overall_progress": "half"}}
    text = format_predictions(judge(make_task("t", [("CLICK", "CLICK")], memory_before=before)))
    row = next(csv.DictReader(text.splitlines()))
    assert json.loads(row["Short_Term_Memory"]) == before["short_term"]
    assert json.loads(row["Long_term_Memory"]) == before["long_term"]


def test_a_target_that_differs_in_case_only_matches_but_not_exactly():
    text = format_predictions(judge(make_task("t", [("CLICK", {"action": "CLICK", "target": "ok"})])))
    row = next(csv.DictReader(text.splitlines()))
    assert (row["Target_Exact_Match"], row["Target_Semantic_Match"], row["Combined_Match"]) == (
        "False",
        "True",
        "True",
    )


def test_a_final_action_of_an_own_vocabulary_matches_whatever_its_target():
    own = [ActionType("DONE", "the goal is reached", is_final=True)]
    step = make_step("t", 0, {"action": "DONE", "target": "the report"}, {"action": "DONE", "target": ""})
    row = next(csv.DictReader(format_predictions(judge([step], own)).splitlines()))
    assert (row["Ground_Truth_Target"], row["Target_Exact_Match"], row["Target_Semantic_Match"]) == (
        "the report",
        "False",
        "True",
    )


def test_json_files_say_what_was_run_and_hold_every_step(tmp_path):
    write_outputs(tmp_path, judge(STEPS), compute_metrics(judge(STEPS), mode="own"), RUN)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    details = json.loads((tmp_path / "details.json").read_text(encoding="utf-8"))
    assert metrics["run"] == details["run"] == RUN.to_json()
    assert metrics["matchers"]["action"]["swa"]["value"] == pytest.approx(3 / 5)
    assert [task["task_id"] for task in details["tasks"]] == ["t1", "t2", "t10"]
    wrong_target = details["tasks"][1]["steps"][0]
    assert wrong_target["outcomes"] == {"action": "right", "action_target": "wrong"}
    assert details["tasks"][2]["n_right"] == {"action": 0, "action_target": 0}
    assert [len(task["steps"]) for task in details["tasks"]] == [1, 2, 2]


def test_numbers_that_json_lacks_become_text():
    assert format_json({"a": [math.nan, math.inf], "b": 1.5}) == '{"a":["nan","inf"],"b":1.5}'


def test_a_write_that_fails_leaves_the_earlier_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_whole(path, "earlier")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "later")
    assert path.read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_json_inside_a_script_cannot_end_it():
    text = escape_script(json.dumps({"text": HOSTILE}))
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"text": HOSTILE}


def test_report_is_one_file_that_names_nothing_outside_itself(tmp_path, image_root):
    page = write_page(make_task("t", [("CLICK", "TEXT")]), tmp_path, image_root).read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(?!data:)\w""", page)
    assert "http:" not in page.replace("http-equiv", "") and "https:" not in page
    assert "default-src 'none'" in page


def test_names_of_data_and_model_are_text_in_the_page_and_no_markup(tmp_path, image_root):
    """What stands in tables and headings: application, group, paths and versions of the run, names of two runs."""
    steps = make_task("t1", [("CLICK", "CLICK")], application="OHIF <b>x</b>", group="<script>group</script>")
    run = replace(RUN, model_path="models/<i>&amp;", versions={"torch": "<u>2</u>"})
    verdicts = judge(steps)
    metrics = compute_metrics(verdicts, mode="own")
    comparison = compare_runs(verdicts, verdicts, names=("<s>first</s>", "second"), n_resamples=50)
    path = write_report(tmp_path, verdicts, metrics, run, image_root, comparison=comparison, others=verdicts)
    page = path.read_text(encoding="utf-8")
    for markup in ("<b>x", "<script>group", "<i>&amp;", "<u>2", "<s>first"):
        assert markup not in page
    for text in (
        "OHIF &lt;b&gt;x",
        "&lt;script&gt;group",
        "models/&lt;i&gt;&amp;amp;",
        "&lt;u&gt;2",
        "&lt;s&gt;first",
    ):
        assert text in page


def test_a_screenshot_is_embedded_once_whatever_its_names(tmp_path, image_root):
    page = write_page(STEPS, tmp_path, image_root).read_text(encoding="utf-8")
    assert page.count('<script type="text/plain" id="image-') == 1


def test_a_missing_screenshot_is_named_and_the_report_still_written(tmp_path, image_root, caplog):
    steps = [*STEPS, make_step("t3", 0, "CLICK", "CLICK", image_id="gone.png")]
    steps.append(make_step("t3", 1, "CLICK", "CLICK", image_id="../report.html"))
    assert write_page(steps, tmp_path, image_root).is_file()
    assert "lacks 2 screenshots" in caplog.text and "gone.png" in caplog.text


def test_report_works_with_315_tasks_of_13_steps(tmp_path, image_root):
    steps = [step for i in range(315) for step in make_task(f"t{i}", [("CLICK", "CLICK")] * 13)]
    assert write_page(steps, tmp_path, image_root).stat().st_size < 5e6


@pytest.mark.slow
def test_errors_of_one_root_are_found_in_a_real_browser(browser, tmp_path, image_root):
    others = [*make_task("t2", [("CLICK", "CLICK")] * 2), *make_task("t10", [("CLICK", None), ("ZOOM", "ZOOM")])]
    verdicts = add_teacher(judge(STEPS), judge([*others, STEPS[4]]))
    metrics = compute_metrics(verdicts, mode="own")
    page = browser.new_page()
    page.goto(write_report(tmp_path, verdicts, metrics, RUN, image_root).as_uri())
    page.select_option("[name=root]", "memory")
    tasks = page.locator(".task:not([hidden])")
    assert tasks.count() == 1  # under action
    page.select_option("[name=matcher]", "action_target")
    assert tasks.count() == 2
    tasks.nth(1).locator("summary").first.click()
    tasks.nth(1).locator(".step .verdict").nth(1).wait_for()
    assert tasks.nth(1).locator("text=the recorded one").count() == 1  # at the error of memory
    assert tasks.nth(1).locator(".step .verdict").all_inner_texts() == [
        "action: unparsable (seeing or knowing) · action_target: unparsable (seeing or knowing)",
        "action: wrong (memory) · action_target: wrong (memory)",
    ]
    page.close()


@pytest.mark.slow
def test_two_runs_stand_side_by_side_in_a_real_browser(browser, tmp_path, image_root):
    stopped = [*STEPS[2:4], *STEPS[:2], *STEPS[4:]]
    stopped[1] = stopped[1].as_not_run(stopped[0].memory_after)
    comparison = compare_runs(judge(STEPS), judge(stopped), names=("first", "second"), n_resamples=50)
    page = browser.new_page()
    page.goto(write_page(STEPS, tmp_path, image_root, comparison=comparison, others=judge(stopped)).as_uri())
    page.locator(".task").nth(2).locator("summary").first.click()
    page.locator(".task").nth(2).locator(".step .action .label").nth(5).wait_for()
    labels = page.locator(".task").nth(2).locator(".step .action .label").all_inner_texts()
    assert labels == ["Gold", "first ?", "second ?", "Gold", "first ✗", "second –"]
    assert "A has more steps right in 0 tasks" in page.locator("main").inner_text()
    page.close()


@pytest.mark.slow
def test_points_stand_where_they_are_on_the_screenshot_in_a_real_browser(browser, tmp_path, image_root):
    place = {"bbox": [320, 200, 640, 400], "screen": [1280, 800]}
    gold = {"action": "CLICK", "target": "OK", "point": [375, 375]}
    near, far = {**gold, "point": [260, 490]}, {**gold, "point": [1000, 0]}
    steps, others = (
        [as_rolled_out(make_step("t", i, gold, p, **place), image_root) for i, p in enumerate(points)]
        for points in ([near, far, None], [far, near, near])
    )
    verdicts, other_verdicts = (judge(s, AgentConfig(points=True).actions) for s in (steps, others))
    metrics = compute_metrics(verdicts, mode="own", n_resamples=50)
    comparison = compare_runs(verdicts, other_verdicts, names=("first", "second"), n_resamples=50)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    path = write_report(tmp_path, verdicts, metrics, RUN, image_root, comparison=comparison, others=other_verdicts)
    page.goto(path.as_uri())
    page.locator(".task summary").first.click()
    shot = page.locator(".step .shot").first
    shot.locator("img").evaluate("image => image.decode()")
    screen = shot.locator("img").bounding_box()
    for name, (x, y) in {"gold": (375, 375), "predicted": (260, 490), "other": (1000, 0)}.items():
        mark = shot.locator(f".{name}-point").bounding_box()
        assert mark["x"] + mark["width"] / 2 == pytest.approx(screen["x"] + screen["width"] * x / 1000, abs=1)
        assert mark["y"] + mark["height"] / 2 == pytest.approx(screen["y"] + screen["height"] * y / 1000, abs=1)
    assert page.locator(".step").nth(2).locator(".predicted-point").count() == 0  # no readable answer
    told = page.locator(".action .argument").all_inner_texts()
    assert told[:3] == ["point: [375,375]", "point: [260,490], in the box", "point: [1000,0], outside the box"]
    assert page.locator(".legend", has_text="point of first").count() == 1
    page.close()


def test_linked_screenshots_are_shown_from_where_they_are(browser, tmp_path, image_root):
    page = browser.new_page()
    page.goto(write_page(STEPS, tmp_path, image_root, images="link").as_uri())
    page.locator(".task").nth(0).locator("summary").first.click()
    image = page.locator(".task").nth(0).locator(".shot img")
    image.scroll_into_view_if_needed()
    image.evaluate("image => image.decode()")
    assert image.evaluate("node => node.naturalWidth") == 1280  # not shrunk
    page.close()


def test_summary_shows_every_number_with_its_interval(capsys):
    print_summary(compute_metrics(judge(STEPS), mode="own"))
    printed = capsys.readouterr().out
    for text in ("action_target", "always CLICK", "new_workflow", "1 unparsable", "5 in all", "95% interval"):
        assert text in printed
    assert "…" not in printed


def test_summary_in_a_file_folds_no_name_and_lists_no_rule_without_a_step(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    metrics = compute_metrics(judge(STEPS), mode="own")
    print_summary(metrics)
    printed = capsys.readouterr().out
    for name in (*metrics["per_group"], *metrics["per_application"]):
        assert re.search(rf"^ {name} +\d", printed, re.MULTILINE)
    assert "point_in_box" not in printed and "not applicable" not in printed
    macro_f1 = f"{100 * metrics['matchers']['action']['macro_f1']:.1f}"
    assert re.search(rf"macro-F1 over actions +{macro_f1}", printed)
    print_summary(metrics, ["point_in_box"])  # asked for by name
    assert re.search(r"point_in_box v1 +0 +not applicable", capsys.readouterr().out)


def test_summary_says_where_an_interval_is_blind(capsys):
    print_summary(compute_metrics(judge(make_task("t", [("CLICK", "CLICK")])), mode="own"))
    assert "the bootstrap is blind" in capsys.readouterr().out


@pytest.mark.slow
def test_report_in_a_real_browser(browser, tmp_path, image_root):
    path = write_page(STEPS, tmp_path, image_root, figures=[image_root / "screen.png"])
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.extend([request.url] if request.url.startswith("http") else []))
    page.goto(path.as_uri())

    tasks = page.locator(".task")
    assert page.locator("#shown").inner_text() == "3 of 3 tasks"
    assert tasks.nth(0).locator(".cell").all_inner_texts() == ["✓"]
    assert tasks.nth(1).locator(".cell").all_inner_texts() == ["~", "✓"]
    assert tasks.nth(2).locator(".cell").all_inner_texts() == ["?", "✗"]

    # What a model or a file wrote is text, also where it looks like a page.
    tasks.nth(0).locator("summary").first.click()
    step = tasks.nth(0).locator(".step")
    assert step.locator(".action bdi").first.text_content() == HOSTILE
    assert step.locator("pre").text_content().startswith(HOSTILE)
    assert step.locator(".memory li.added").text_content() == HOSTILE
    assert page.title().startswith("Rollout report")

    # The gold box stands where it is on the screen: a quarter from the left and the top.
    shot, box = step.locator(".shot img").bounding_box(), step.locator(".gold-box").bounding_box()
    assert box["x"] - shot["x"] == pytest.approx(shot["width"] / 4, abs=1.5)
    assert box["y"] - shot["y"] == pytest.approx(shot["height"] / 4, abs=1.5)
    step.locator(".shot").click()
    assert page.locator("#viewer-shot img").bounding_box()["width"] > 2 * shot["width"]
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()

    def shown(verdict="all", matcher="action", application="", group="", text=""):
        page.check(f"input[name=verdict][value={verdict}]")
        page.select_option("[name=matcher]", matcher)
        page.select_option("[name=application]", application)
        page.select_option("[name=group]", group)
        page.fill("[name=text]", text)
        return [about.split(" ")[0] for about in page.locator(".task:not([hidden]) .about").all_inner_texts()]

    assert shown("errors") == ["t10"]
    assert shown("errors", "action_target") == ["t2", "t10"]
    assert shown("right", "action_target") == ["t1"]
    assert shown(application="Orthanc Explorer") == ["t10"]
    assert shown(group="known_workflow") == ["t1", "t2"]
    assert shown(text="layout") == ["t2"]
    assert shown(text="no such thing") == []

    # Nothing is wider than a phone but what scrolls in its own box.
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints == []
    page.close()


def test_tasks_without_an_application_are_neither_seen_nor_unseen():
    steps = [*make_task("t1", [("CLICK", "CLICK")], application=""), *make_task("t2", [("CLICK", "CLICK")])]
    metrics = compute_metrics(judge(steps), mode="own", n_resamples=1, unseen_applications=[steps[1].application])
    assert list(metrics["per_familiarity"]) == ["(none)", "unseen applications"]


def test_seen_and_unseen_applications_stand_apart_in_terminal_and_report(tmp_path, image_root, capsys):
    verdicts = judge(STEPS)
    metrics = compute_metrics(verdicts, mode="own", unseen_applications=["Orthanc Explorer"])
    assert {label: part["n_tasks"] for label, part in metrics["per_familiarity"].items()} == {
        "seen applications": 2,
        "unseen applications": 1,
    }
    print_summary(metrics)
    assert re.search(r"^ *unseen applications +1 ", capsys.readouterr().out, re.MULTILINE)
    run = replace(RUN, data={"unseen_applications": ["Orthanc Explorer"]})
    page = write_report(tmp_path, verdicts, metrics, run, image_root).read_text()
    assert "<h3>Seen in training or not</h3>" in page
    assert "Applications that the model was never trained on: Orthanc Explorer." in page
    assert "Seen in training or not" not in write_page(STEPS, tmp_path, image_root).read_text()
