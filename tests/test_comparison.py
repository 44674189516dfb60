"""Two runs of the same steps: paired differences, the sign of every task, and the command that prints them."""

import json
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest
from rollout_samples import RUN_INFO, approx_rate, judge, make_step, make_task

from eval.reporting.tables import BLIND, print_comparison
from eval.score import main
from eval.scoring.comparison import compare_repeats, compare_runs
from eval.step_result import format_result
from sft.agent import AgentConfig

ROOT = Path(__file__).parent.parent
RIGHT, WRONG = ("CLICK", "CLICK"), ("CLICK", "TEXT")
A = [*make_task("t1", [RIGHT, RIGHT]), *make_task("t2", [RIGHT, WRONG]), *make_task("t3", [WRONG])]
B = [*make_task("t1", [RIGHT, WRONG]), *make_task("t2", [RIGHT, WRONG]), *make_task("t3", [RIGHT])]


def compare(a, b):
    return compare_runs(judge(a), judge(b))


def write_run(folder: Path, steps) -> Path:
    folder.mkdir()
    info = {**RUN_INFO, "test_csv": str(folder.parent / "test.csv"), "n_tasks": 3, "n_steps": len(steps)}
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "steps.jsonl").write_text("".join(map(format_result, steps)))
    return folder


def test_differences_are_a_minus_b():
    swa, ta = (compare(A, B)["matchers"]["action"][measure] for measure in ("swa", "ta"))
    assert (swa["a"].value, swa["b"].value) == (pytest.approx(3 / 5), pytest.approx(3 / 5))
    assert swa["difference"].value == pytest.approx(0)
    assert (ta["a"].value, ta["b"].value, ta["difference"].value) == (
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
        pytest.approx(0),
    )


def test_tasks_are_paired_by_name_whatever_their_order():
    backwards = [*B[4:], *B[2:4], *B[:2]]
    assert compare(A, backwards) == compare(A, B)


def test_several_runs_of_each_are_compared_by_their_means_with_the_task_as_the_unit():
    """A has 3 of 5 steps right in one run and 4 in the other, B has 3 in both. Tasks all right: 1 and 2, 1 and 1."""
    better = [*A[:2], *make_task("t2", [RIGHT, RIGHT]), *A[4:]]
    compared = compare_repeats([judge(A), judge(better)], [judge(B), judge(B)])["action"]
    assert (compared["swa"]["a"].value, compared["swa"]["b"].value) == (pytest.approx(7 / 10), pytest.approx(6 / 10))
    assert compared["swa"]["difference"].value == pytest.approx(1 / 10)
    assert compared["swa"]["repeats"] == [pytest.approx(3 / 5), pytest.approx(4 / 5)]
    assert (compared["ta"]["a"].value, compared["ta"]["b"].value) == (pytest.approx(3 / 6), pytest.approx(2 / 6))
    assert compared["ta"]["repeats"] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]


def test_repeating_the_same_runs_narrows_no_interval():
    once, twice = compare_repeats([judge(A)], [judge(B)]), compare_repeats([judge(A)] * 2, [judge(B)] * 2)
    for measure in ("swa", "ta"):
        pair = [compared["action_target"][measure] for compared in (once, twice)]
        assert [pair[1][side] == approx_rate(*astuple(pair[0][side])) for side in ("a", "b", "difference")] == [
            True
        ] * 3


def test_every_task_has_a_sign():
    signs = compare(A, B)["tasks"]["action"]
    assert {row["task_id"]: row["sign"] for row in signs["by_task"]} == {"t1": "better", "t2": "same", "t3": "worse"}
    assert (signs["better"], signs["same"], signs["worse"]) == (1, 1, 1)


def test_a_constant_difference_has_no_width_although_both_runs_vary():
    a = [s for i in range(30) for s in make_task(f"t{i}", [RIGHT, RIGHT] if i % 2 else [RIGHT, WRONG])]
    b = [s for i in range(30) for s in make_task(f"t{i}", [RIGHT, WRONG] if i % 2 else [WRONG, WRONG])]
    swa = compare(a, b)["matchers"]["action"]["swa"]
    assert swa["difference"] == approx_rate(0.5, 0.5, 0.5)
    assert swa["a"].high - swa["a"].low > 0.1


@pytest.mark.parametrize(("b", "shown"), [(RIGHT, "+0.0 [+0.0, +0.0]"), (WRONG, "+100.0 [+100.0, +100.0]")])
def test_a_difference_that_every_task_shares_is_said_to_be_blind(b, shown, capsys):
    tasks = [[s for i in range(5) for s in make_task(f"t{i}", [verdict])] for verdict in (RIGHT, b)]
    print_comparison(compare(*tasks))
    printed = " ".join(capsys.readouterr().out.split())
    assert shown in printed and BLIND in printed
    assert "100.0 [47.8, 100.0]" in printed  # TA of each run by itself


def test_differences_with_a_width_need_no_note(capsys):
    print_comparison(compare(A, B))
    assert "blind" not in capsys.readouterr().out


def test_parse_rates_stand_side_by_side():
    b = [*make_task("t1", [RIGHT, ("CLICK", None)]), *B[2:]]
    assert compare(A, b)["parse_rate"] == {"a": 1, "b": pytest.approx(4 / 5)}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (A[:4], "found 1 tasks in one of them only, such as t3 in A"),
        ([*make_task("t1", [RIGHT, ("TEXT", "TEXT")]), *A[2:]], "other gold actions in task t1"),
    ],
)
def test_runs_of_other_steps_are_not_compared(other, message):
    with pytest.raises(ValueError, match=message):
        compare(A, other)


def test_run_with_points_is_compared_with_one_without():
    plain = {"action": "CLICK", "target": "OK"}
    gold = {**plain, "point": [200, 300]}
    a = judge([make_step("t", 0, gold, {**gold, "point": [1, 2]})], AgentConfig(points=True).actions)
    b = judge([make_step("t", 0, plain, "ZOOM")])
    assert compare_runs(a, b, n_resamples=50)["matchers"]["action_target"]["swa"]["difference"].value == 1


def test_compare_command_prints_the_table_and_writes_the_report(tmp_path):
    runs = [write_run(tmp_path / name, steps) for name, steps in (("first", A), ("second", B))]
    command = [sys.executable, "eval/score.py", "compare", *map(str, runs), "--output_dir", str(tmp_path / "both")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "A minus B" in done.stdout and "1 better, 1 same, 1 worse" in done.stdout
    assert json.loads((tmp_path / "both/comparison.json").read_text())["n_steps"] == 5
    page = (tmp_path / "both/report.html").read_text()
    assert "Two runs, side by side" in page and str(runs[1]) in page


def test_compared_runs_tell_seen_applications_from_unseen_ones(tmp_path):
    steps = [*make_task("t1", [RIGHT], application="Viewer"), *make_task("t2", [RIGHT], application="Archive")]
    runs = [str(write_run(tmp_path / name, steps)) for name in ("first", "second")]
    info = json.loads((tmp_path / "first/run.json").read_text()) | {"data": {"unseen_applications": ["Archive"]}}
    (tmp_path / "first/run.json").write_text(json.dumps(info))
    main(["compare", *runs, "--n_resamples", "10", "--output_dir", str(tmp_path / "both")])
    assert "Seen in training or not" in (tmp_path / "both/report.html").read_text()


def test_compare_of_a_folder_without_a_rollout_ends_with_one_line(tmp_path):
    with pytest.raises(ValueError, match="run.json: found no such file"):
        main(["compare", str(tmp_path), str(tmp_path)])
