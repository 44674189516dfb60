"""From step to step: survival, recovery, drift; every number worked out by hand."""

import pytest
from rollout_samples import judge, make_step, make_task

from eval.reporting.tables import describe_progress
from eval.scoring.bootstrap import Bootstrap
from eval.scoring.breakdowns import compute_memory_drift, compute_progress
from eval.scoring.matching import cut_at_first_error
from eval.scoring.metrics import compute_metrics

RIGHT, WRONG = ("CLICK", "CLICK"), ("CLICK", "TEXT")

# a: R R R R; b: R W R W; c: W W R; d: R W (the last step). 13 steps, 8 right.
STEPS = [
    *make_task("a", [RIGHT] * 4),
    *make_task("b", [RIGHT, WRONG, RIGHT, WRONG]),
    *make_task("c", [WRONG, WRONG, RIGHT]),
    *make_task("d", [RIGHT, WRONG]),
]


def progress(results):
    return compute_progress(judge(results), Bootstrap(n_resamples=200))


def test_goal_progress_is_the_mean_share_of_a_task_before_its_first_error():
    assert progress(STEPS)["goal_progress"].value == pytest.approx((4 / 4 + 1 / 4 + 0 / 3 + 1 / 2) / 4)


def test_right_after_right_and_right_after_wrong_count_neighbours_of_one_task():
    # Pairs after a right step: a RR RR RR, b RW RW, d RW -> 3 of 6. After a wrong one: b WR, c WW WR -> 2 of 3.
    scores = progress(STEPS)
    assert scores["right_after_right"].value == pytest.approx(3 / 6)
    assert scores["right_after_wrong"].value == pytest.approx(2 / 3)


def test_recovery_counts_stretches_of_errors_that_a_right_step_ends():
    # b: W then R, recovered; its last W has nothing after it. c: WW then R, recovered. d: last step.
    assert progress(STEPS)["recovery"].value == 1
    # e: R W W never comes back; f: W R.
    steps = [*make_task("e", [RIGHT, WRONG, WRONG]), *make_task("f", [WRONG, RIGHT])]
    assert progress(steps)["recovery"].value == pytest.approx(1 / 2)


def test_prefix_survival_counts_tasks_that_reach_the_step():
    rows = progress(STEPS)["prefix_survival"]
    assert [(row["n"], row["n_alive"]) for row in rows] == [(4, 3), (4, 1), (3, 1), (2, 1)]


def test_first_errors_and_faultless_tasks_are_all_tasks():
    assert progress(STEPS)["first_error"] == {"none": 1, "by_index": {0: 1, 1: 2}}


def test_independence_prediction_multiplies_the_step_accuracy():
    expected = (2 * (8 / 13) ** 4 + (8 / 13) ** 3 + (8 / 13) ** 2) / 4
    assert progress(STEPS)["independence"] == {"ta": 1 / 4, "expected_ta": pytest.approx(expected)}


def test_summary_says_each_rate_by_its_name():
    told = describe_progress(compute_metrics(judge(STEPS), mode="own", n_resamples=50))
    assert told.startswith("Right before the first error, share of a task: 43.8 [")
    assert "Right after a right step: 50.0 [" in told and "; after a wrong one: 66.7 [" in told
    assert "Errors recovered from: 100.0 [" in told and told.endswith("TA 25.0; if steps were independent 22.5.")


def test_a_rate_without_a_case_is_none_not_zero():
    scores = progress(make_task("a", [RIGHT, RIGHT]))
    assert scores["right_after_wrong"] is None and scores["recovery"] is None


def test_memory_drift_is_similarity_and_shared_keys_by_step():
    gold = {"short_term": {"last_action": "CLICK"}, "long_term": {"overall_progress": "half"}}
    own = {"short_term": {"last_action": "CLICK"}, "long_term": {}}
    steps = [make_step("t", 0, *RIGHT), make_step("t", 1, *RIGHT, memory_before=own, gold_memory=gold)]
    first, second = compute_memory_drift(steps)
    assert (first["n"], first["similarity"], first["key_overlap"]) == (1, 1, 1)
    assert second["key_overlap"] == 1 / 2
    # The own memory is 53 characters, all of them in the gold one of 78: ratio = 2 * 53 / (53 + 78).
    assert second["similarity"] == pytest.approx(106 / 131)


def test_steps_that_were_not_run_stay_in_every_denominator():
    stopped = cut_at_first_error(judge(STEPS))
    assert cut_at_first_error(judge(stopped)) == stopped
    metrics = compute_metrics(judge(stopped), mode="own_stop", n_resamples=100)
    # run: a 4, b 2, c 1, d 2; right before the stop: a 4, b 1, c 0, d 1
    assert metrics["outcomes"] == {
        "right": 6,
        "wrong": 3,
        "unparsable": 0,
        "truncated": 0,
        "error": 0,
        "not_run": 4,
    }
    assert metrics["matchers"]["action"]["swa"].value == pytest.approx(6 / 13)
    assert metrics["matchers"]["action"]["ta"].value == pytest.approx(1 / 4)
    assert metrics["n_steps"] == 13 and metrics["answers"]["n_run"] == 9
    assert [(row["n"], row["n_run"]) for row in metrics["per_step_index"]] == [(4, 4), (4, 3), (3, 1), (2, 1)]
    assert metrics["confusion"]["CLICK"] == {"(not run)": 4, "CLICK": 6, "TEXT": 3}
    assert metrics["progress"]["right_after_wrong"] is None
    assert metrics["progress"]["goal_progress"].value == progress(STEPS)["goal_progress"].value


def test_tasks_are_scored_apart_by_length():
    results = [*make_task("a", [RIGHT] * 5), *make_task("b", [WRONG] * 6)]
    parts = compute_metrics(judge(results), mode="own", n_resamples=50)["per_task_length"]
    assert {name: part["matchers"]["action"]["swa"].value for name, part in parts.items()} == {"1-5": 1, "6-10": 0}
