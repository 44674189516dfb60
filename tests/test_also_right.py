"""More than one right answer: read from a file, accepted under every rule, counted, and shown with and without."""

import csv
import json

import pytest
from rollout_samples import RUN, as_action, judge, make_step, make_task
from test_convert import _convert, _write_records
from trajectory_samples import COLUMNS, build_tasks, format_csv, write_screenshots

from eval.reporting.files import format_predictions
from eval.reporting.report import Thumbnails, render_report
from eval.reporting.tables import print_summary
from eval.rollout import main as roll_out
from eval.scoring.bootstrap import Bootstrap
from eval.scoring.comparison import compare_runs
from eval.scoring.metrics import compute_metrics
from eval.scoring.other_rules import build_rules, score_rules
from eval.step_result import format_result, load_results, parse_result
from sft.actions import Action
from sft.agent import AgentConfig
from sft.check.describe import describe
from sft.data.load import load_trajectories, read_table, read_task_set
from sft.data.problems import TrajectoryError

CLOSE, BACK = {"action": "CLICK", "target": "Close"}, {"action": "SCROLL", "target": "Back", "direction": "up"}
RIGHT, WRONG = ("CLICK", "CLICK"), ("CLICK", "TEXT")

# a: the recorded answer; CLOSE, whose action is the recorded one's; BACK. b: BACK in another direction; nothing right.
STEPS = [
    make_step("a", 0, "CLICK", "CLICK", also_right=[as_action(CLOSE)]),
    make_step("a", 1, "CLICK", {**CLOSE, "target": "close"}, also_right=[as_action(CLOSE)]),
    make_step("a", 2, "CLICK", BACK, also_right=[as_action(CLOSE), as_action(BACK)]),
    make_step("b", 0, "CLICK", {**BACK, "direction": "down"}, also_right=[as_action(BACK)]),
    make_step("b", 1, "CLICK", "ZOOM"),
]


def score(results):
    return compute_metrics(judge(results), mode="own", n_resamples=200)


def test_an_answer_that_is_right_too_is_right_under_every_matcher():
    matchers = score(STEPS)["matchers"]
    # action: a1, a2, a3, and b1, whose direction it does not compare. action_target: a1, a2, a3.
    assert matchers["action"]["swa"].value == pytest.approx(4 / 5)
    assert matchers["action_target"]["swa"].value == pytest.approx(3 / 5)
    assert matchers["action_target"]["ta"].value == pytest.approx(1 / 2)
    assert matchers["action_target"]["outcomes"]["right"] == 3


def test_both_scores_and_the_steps_right_by_another_answer_are_counted():
    others = score(STEPS)["also_right"]
    assert others["n_steps"] == 4
    action, target = others["matchers"]["action"], others["matchers"]["action_target"]
    # By the recorded answers alone: action a1, a2; action_target a1.
    assert (action["n_right_by_other"], target["n_right_by_other"]) == (2, 2)
    assert action["swa_recorded"].value == pytest.approx(2 / 5)
    assert target["swa_recorded"].value == pytest.approx(1 / 5)
    assert target["ta_recorded"].value == 0
    assert score(make_task("a", [RIGHT]))["also_right"] is None


def test_baselines_are_judged_by_the_same_answers():
    metrics = score(STEPS)
    assert metrics["majority_baseline"] == {"action": "CLICK", "swa": 1, "low": 1, "high": 1}
    zooms = [make_step("a", i, "CLICK" if i else "TEXT", "ZOOM", also_right=[as_action("ZOOM")]) for i in range(3)]
    found = score(zooms)
    assert found["majority_baseline"]["action"] == "ZOOM" and found["over_majority"].value == 0
    # TEXT: guessed as ZOOM, right. CLICK: guessed as TEXT, wrong. CLICK: guessed as CLICK, right.
    assert found["previous_action_baseline"]["swa"] == pytest.approx(2 / 3)


def test_precision_and_recall_stay_shares():
    rows = score([*STEPS[:3], make_step("a", 3, BACK, BACK)])["per_action"]
    # CLICK: recorded 3 times and found 3 times; predicted 2 times, both right. SCROLL: recorded once, predicted twice.
    assert (rows["CLICK"]["recall"], rows["CLICK"]["precision"]) == (1, 1)
    assert rows["CLICK"]["f1"] == pytest.approx((3 + 2) / (3 + 2))
    assert (rows["SCROLL"]["recall"], rows["SCROLL"]["precision"]) == (1, 1)
    assert rows["SCROLL"]["f1"] == pytest.approx((1 + 2) / (1 + 2))


def test_a_final_action_that_is_right_too_needs_no_target():
    done = {"action": "COMPLETE", "target": "the report"}
    step = make_step("a", 0, "CLICK", {"action": "COMPLETE", "target": ""}, also_right=[as_action(done)])
    ((verdict,),) = judge([step]).values()
    assert verdict.is_right("action_target") and verdict.right_by_other == {"action", "action_target"}


def test_other_rules_accept_them_too():
    typed = {"action": "TEXT", "target": "Name", "text": "DOE"}
    gold = {**typed, "text": "ROE"}
    other = [as_action(typed), as_action(CLOSE)]
    answers = [typed, {**typed, "text": "POE"}, CLOSE, {**CLOSE, "target": "Open"}]
    steps = [make_step("a", i, gold, answer, also_right=other) for i, answer in enumerate(answers)]
    rules = {row["name"]: row for row in score_rules(judge(steps), build_rules(), Bootstrap(n_resamples=50))}
    # The text: the other one; neither; of an answer without text, that answer; of such an answer, another.
    assert (rules["text_exact"]["n"], rules["text_exact"]["n_right"]) == (4, 2)
    assert (rules["action_target_fuzzy"]["n_right"], rules["action_target_exact"]["n_right"]) == (2, 2)


def test_points_are_not_judged_where_another_target_is_right_too():
    box = {"bbox": [0, 0, 10, 10], "screen": [100, 100]}
    steps = [make_step("a", 0, "CLICK", "CLICK", **box, also_right=[as_action(CLOSE)])]
    rules = {row["name"]: row for row in score_rules(judge(steps), build_rules(), Bootstrap(n_resamples=50))}
    assert rules["point_in_box"]["n"] == 0


def test_predictions_csv_matches_what_was_scored():
    rows = list(csv.DictReader(format_predictions(judge(STEPS)).splitlines()))
    columns = ("Action_Match", "Target_Exact_Match", "Target_Semantic_Match", "Combined_Match")
    assert [[row[c] == "True" for c in columns] for row in rows] == [
        [True, True, True, True],
        [True, False, True, True],
        [True, True, True, True],
        [True, True, True, False],
        [False, True, True, False],
    ]


def test_summary_and_report_show_both_scores(capsys):
    metrics = score(STEPS)
    print_summary(metrics)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("the recorded answer alone") == 2
    assert "another answer than the recorded one: 2 under action, 2 under action_target, of 4 steps" in printed
    page = render_report(judge(STEPS), metrics, RUN, Thumbnails([], {}, []))
    assert page.count("by the recorded answer alone") == 2
    assert "by the recorded answer alone" not in render_report(
        judge(make_task("b", [WRONG])), score(make_task("b", [WRONG])), RUN, Thumbnails([], {}, [])
    )


def test_a_line_of_steps_holds_them_and_an_older_one_has_none():
    line = format_result(STEPS[2])
    assert json.loads(line)["also_right"] == [CLOSE, BACK]
    assert parse_result(line) == STEPS[2]
    fields = json.loads(line)
    del fields["also_right"]
    assert parse_result(json.dumps(fields)).also_right == []
    assert STEPS[2].as_not_run({}).also_right == STEPS[2].also_right


def test_rollouts_with_and_without_them_are_not_compared():
    without = [make_step("a", 0, "CLICK", "CLICK")]
    with pytest.raises(ValueError, match="other gold actions in task a"):
        compare_runs(judge(STEPS[:1]), judge(without))


def write(tmp_path, *cells):
    rows = [{**row, "Also_Right": cell} for row, cell in zip(build_tasks(1, n_steps=len(cells)), cells)]
    write_screenshots(tmp_path)
    path = tmp_path / "tasks.csv"
    path.write_text(format_csv(rows, (*COLUMNS, "Also_Right")), encoding="utf-8")
    return path


def test_the_column_is_read_in_every_shape_of_an_answer(tmp_path):
    record = {"Predicted": {"predicted_action": {"action": "CLICK", "target": "Save"}}, "Short Term": {"a": 1}}
    python = "[{'action': 'scroll', 'target': 'List', 'direction': 'down', 'scale': None}]"
    (task,) = load_trajectories(write(tmp_path, json.dumps([CLOSE, record]), python, "null"), show_progress=False)
    assert [step.also_right for step in task.steps] == [
        (Action("CLICK", "Close"), Action("CLICK", "Save")),
        (Action("SCROLL", "List", {"direction": "down"}),),
        (),
    ]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ('{"action": "CLICK", "target": "Close"}', r"expected a JSON list of answers"),
        ('["Close"]', "expected a JSON list of answers"),
        ("[", "found"),
        ('[{"action": "CLICK", "target": "A"}, {"action": "PRESS", "target": "B"}]', "answer 2: found action 'PRESS'"),
        ('[{"action": "SCROLL", "target": "B", "direction": "off"}]', "answer 1: "),
        ('[{"target": "B"}]', "answer 1: found keys target"),
        ('[{"action": "COMPLETE", "target": ""}]', "found COMPLETE before the last step"),
    ],
)
def test_a_cell_that_is_no_list_of_answers_is_named_with_its_row(tmp_path, cell, message):
    with pytest.raises(TrajectoryError, match=message) as found:
        load_trajectories(write(tmp_path, "", cell, ""), show_progress=False)
    assert [(p.row, p.column) for p in found.value.problems] == [(3, "Also_Right")]


def test_check_counts_the_steps_that_have_some(tmp_path):
    table = read_table(write(tmp_path, json.dumps([CLOSE]), "", json.dumps([CLOSE, BACK])))
    assert describe(table, read_task_set(table, show_progress=False), AgentConfig())["steps_with_also_right"] == 2


def test_a_rollout_of_them_scores_as_right(tmp_path, monkeypatch):
    path = write(tmp_path, json.dumps([CLOSE]), json.dumps([CLOSE]), "")
    roll_out(["--policy", "replay", "--test_csv", str(path), "--output_dir", str(tmp_path / "out")])
    assert [r.also_right for r in load_results(tmp_path / "out/steps.jsonl")] == [[as_action(CLOSE)]] * 2 + [[]]
    roll_out(["--self_check", "--test_csv", str(path)])


def test_records_keep_the_column_and_other_formats_have_none(tmp_path):
    (tmp_path / "in").mkdir()
    source = _write_records(tmp_path / "in/rows.jsonl", output_memory=True)
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    lines[-1]["Also_Right"] = [CLOSE]
    source.write_text("\n".join(map(json.dumps, lines)))
    (task,), _ = _convert("records", source, tmp_path / "out")
    assert [step.also_right for step in task.steps] == [(as_action(CLOSE),), (), (), (), ()]
    header = (tmp_path / "out/data.csv").read_text().splitlines()[0]
    assert header.endswith("Application,Group,Also_Right")
