"""Metrics: every number against one worked out by hand."""

import math
import random
import time

import numpy as np
import pytest
from rollout_samples import approx_rate, judge, make_step, make_task

from eval.rollouts.validation import choose_tasks, compute_scores, count_right
from eval.scoring.bootstrap import Bootstrap, compute_exact_interval, compute_interval, resample_sums
from eval.scoring.metrics import compute_metrics
from sft.rates import Rate

OTHER = {"action": "CLICK", "target": "elsewhere"}

# Task a: 3 of 3 actions right, 2 of 3 targets. Task b: 1 of 4. Task c: 0 of 1.
STEPS = [
    *make_task("a", [("CLICK", "CLICK"), ("CLICK", OTHER), ("COMPLETE", "COMPLETE")]),
    *make_task(
        "b",
        [("CLICK", "CLICK"), ("TEXT", "CLICK"), ("TEXT", None), ("CLICK", "TEXT")],
        application="Orthanc Explorer",
        group="new_workflow",
    ),
    make_step("c", 0, "ZOOM", None, parse_status="truncated"),
]
RIGHT, WRONG = ("CLICK", "CLICK"), ("CLICK", "TEXT")


def score(results, **settings):
    return compute_metrics(judge(results), mode="own", **settings)


def test_swa_is_right_steps_over_all_steps_and_ta_tasks_without_a_fault_over_tasks():
    matchers = score(STEPS)["matchers"]
    assert matchers["action"]["swa"].value == pytest.approx(4 / 8)
    assert matchers["action"]["ta"].value == pytest.approx(1 / 3)
    assert matchers["action_target"]["swa"].value == pytest.approx(3 / 8)
    assert matchers["action_target"]["ta"].value == 0


def test_outcomes_add_up_to_all_steps():
    metrics = score(STEPS)
    assert metrics["outcomes"] == {"right": 4, "wrong": 2, "unparsable": 1, "truncated": 1, "error": 0}
    assert sum(metrics["outcomes"].values()) == metrics["n_steps"] == 8
    assert metrics["matchers"]["action_target"]["outcomes"]["wrong"] == 3


def test_previous_action_begins_each_task_with_the_majority_s_action():
    # a: CLICK=CLICK (guess), CLICK=CLICK, CLICK!=COMPLETE; b: CLICK=CLICK, no, TEXT=TEXT, no; c: no.
    assert score(STEPS)["previous_action_baseline"]["swa"] == pytest.approx(4 / 8)


def test_baselines_guess_the_recorded_actions_whatever_was_predicted():
    # Recorded: 3 CLICK, 1 TEXT, 1 ZOOM. Predicted: 1 CLICK, 4 TEXT, of which CLICK and one TEXT are right.
    pairs = [("CLICK", "CLICK"), ("CLICK", "TEXT"), ("CLICK", "TEXT"), ("TEXT", "TEXT"), ("ZOOM", "TEXT")]
    metrics = score(make_task("a", pairs))
    assert metrics["majority_baseline"]["action"] == "CLICK"
    assert metrics["majority_baseline"]["swa"] == pytest.approx(3 / 5)
    # CLICK guessed for the first; CLICK=CLICK, CLICK=CLICK, CLICK!=TEXT, TEXT!=ZOOM
    assert metrics["previous_action_baseline"]["swa"] == pytest.approx(3 / 5)
    assert metrics["over_majority"].value == pytest.approx(2 / 5 - 3 / 5)


def test_equally_frequent_actions_give_the_first_by_name():
    metrics = score(make_task("a", [("ZOOM", "ZOOM"), ("CLICK", "ZOOM")]))
    assert metrics["majority_baseline"]["action"] == "CLICK"


def test_per_action_counts_precision_recall_and_f1():
    rows = score(STEPS)["per_action"]
    assert rows["CLICK"] == {
        "n": 4,
        "n_predicted": 4,
        "right": {"action": 3, "action_target": 2},
        "precision": pytest.approx(3 / 4),
        "recall": pytest.approx(3 / 4),
        "f1": pytest.approx(3 / 4),
    }
    assert (rows["TEXT"]["precision"], rows["TEXT"]["recall"], rows["TEXT"]["f1"]) == (0, 0, 0)
    assert (rows["ZOOM"]["precision"], rows["ZOOM"]["recall"], rows["ZOOM"]["f1"]) == (None, 0, 0)


def test_macro_f1_is_the_mean_over_the_actions_of_the_gold():
    assert score(STEPS)["matchers"]["action"]["macro_f1"] == pytest.approx((3 / 4 + 1 + 0 + 0) / 4)


def test_confusion_has_every_step_once():
    confusion = score(STEPS)["confusion"]
    assert confusion["TEXT"] == {"(unreadable)": 1, "CLICK": 1}
    assert sum(n for row in confusion.values() for n in row.values()) == len(STEPS)


def test_parts_are_scored_as_if_alone():
    metrics = score(STEPS)
    alone = score([step for step in STEPS if step.group == "new_workflow"])
    part = metrics["per_group"]["new_workflow"]
    assert part == {key: alone[key] for key in part} | {"matchers": part["matchers"]}
    assert part["matchers"]["action"]["swa"] == alone["matchers"]["action"]["swa"]
    assert part["majority_baseline"]["swa"] == pytest.approx(2 / 4)
    assert {name: p["n_tasks"] for name, p in metrics["per_application"].items()} == {
        "OHIF Viewer": 2,
        "Orthanc Explorer": 1,
    }


def test_tasks_without_a_group_are_not_lost():
    assert score(make_task("a", [RIGHT], group=""))["per_group"]["(none)"]["n_steps"] == 1


def test_per_step_index_says_how_many_tasks_reach_it():
    rows = score(STEPS)["per_step_index"]
    assert [(row["index"], row["n"]) for row in rows] == [(0, 3), (1, 2), (2, 2), (3, 1)]
    assert rows[1]["right"] == {"action": 1, "action_target": 0}


def test_memory_and_answers_are_counted():
    memory = {"short_term": {"last_action": "CLICK"}, "long_term": {}}
    metrics = score([*make_task("a", [RIGHT], memory_after=memory), *make_task("b", [("CLICK", None)])])
    assert metrics["memory"]["n_changed"] == 1
    assert metrics["memory"]["n_unreadable"] == 1
    assert metrics["memory"]["max_chars"] == len('{"short_term":{"last_action":"CLICK"},"long_term":{}}')
    assert metrics["answers"]["parse_status"] == {"no_json": 1, "ok": 1}
    assert metrics["answers"]["n_answer_tokens"] == 20


def test_all_right_scores_one_and_nothing_right_scores_zero():
    replay = score([*make_task("a", [RIGHT, ("COMPLETE", "COMPLETE")]), *make_task("b", [RIGHT])])
    empty = score([*make_task("a", [("CLICK", None), ("COMPLETE", None)]), *make_task("b", [("CLICK", None)])])
    for name in ("action", "action_target"):
        assert replay["matchers"][name]["swa"] == Rate(1, 1, 1)
        assert empty["matchers"][name]["swa"] == Rate(0, 0, 0)
        assert replay["matchers"][name]["ta"] == Rate(1, pytest.approx(0.1581, abs=5e-5), 1)
        assert empty["matchers"][name]["ta"] == Rate(0, 0, pytest.approx(0.8419, abs=5e-5))
    assert empty["outcomes"]["unparsable"] == empty["n_steps"]


def test_interval_of_two_opposite_tasks_spans_everything():
    # Drawing 2 of {all right, all wrong}: 0 with p = 1/4, 1/2 with p = 1/2, 1 with p = 1/4.
    metrics = score([*make_task("a", [RIGHT, RIGHT]), *make_task("b", [WRONG, WRONG])])
    assert metrics["matchers"]["action"]["swa"] == Rate(0.5, 0, 1)
    half = score([*make_task("a", [RIGHT, RIGHT]), *make_task("b", [WRONG, WRONG])], confidence=0.4)
    assert half["matchers"]["action"]["swa"] == Rate(0.5, 0.5, 0.5)


def test_interval_is_over_tasks_not_over_steps():
    # 100 tasks of 10 equal steps: the width is that of 100 draws of p = 1/2, sqrt(1/4/100) = 0.05 a deviation.
    results = [step for i in range(100) for step in make_task(f"t{i}", [RIGHT if i % 2 else WRONG] * 10)]
    swa = score(results)["matchers"]["action"]["swa"]
    assert swa.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.011)
    assert swa.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.011)


def test_margin_over_majority_is_paired_by_task():
    # In every task one step more is right than is CLICK, though no task predicts as many CLICKs as it has: the margin
    # never varies, SWA does.
    easier = [RIGHT, RIGHT, ("CLICK", "ZOOM"), ("TEXT", "TEXT"), ("ZOOM", "ZOOM")]
    harder = [RIGHT, ("CLICK", "TEXT"), ("TEXT", "TEXT"), ("ZOOM", "ZOOM"), ("ZOOM", None)]
    metrics = score([step for i in range(20) for step in make_task(f"t{i}", easier if i % 4 else harder)])
    assert metrics["majority_baseline"]["action"] == "CLICK"
    assert metrics["majority_baseline"]["swa"] == pytest.approx((15 * 3 + 5 * 2) / 100)
    assert metrics["over_majority"] == approx_rate(0.2, 0.2, 0.2)
    swa = metrics["matchers"]["action"]["swa"]
    assert swa.value == pytest.approx((15 * 4 + 5 * 3) / 100)
    assert swa.high - swa.low > 0.05


def test_resampled_sums_are_sums_of_whole_tasks():
    per_task = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    sums = resample_sums(per_task, Bootstrap(n_resamples=500))
    assert sums.shape == (500, 2)
    assert np.array_equal(sums[:, 1], 10 * sums[:, 0])
    assert set(sums[:, 0]) == {3, 4, 5, 6, 7, 8, 9, 10, 12}  # every multiset of three of {1, 2, 4}


def test_interval_is_the_percentiles_of_the_draws():
    draws = np.arange(101) / 100
    assert compute_interval(0.5, draws, 0.9) == approx_rate(0.5, 0.05, 0.95)


@pytest.mark.parametrize(
    ("n_right", "n_tasks", "low", "high"),
    [
        # Tables of Clopper and Pearson, in percent.
        (0, 30, 0, 11.57),
        (1, 30, 0.0844, 17.22),
        (30, 30, 88.43, 100),
        (1, 10, 0.2529, 44.50),
        (5, 10, 18.71, 81.29),
        # 1 of 2: at most one right of two has the chance 1 - p ** 2, at least one 1 - (1 - p) ** 2.
        (1, 2, 100 - 100 * 0.975**0.5, 100 * 0.975**0.5),
    ],
)
def test_exact_interval_is_the_binomial_one(n_right, n_tasks, low, high):
    found = [100 * edge for edge in compute_exact_interval(n_right, n_tasks, 0.95)]
    assert found == [pytest.approx(low, abs=5e-3), pytest.approx(high, abs=5e-3)]


@pytest.mark.parametrize("n_right", [0, 1, 7, 22])
def test_exact_interval_leaves_half_of_the_rest_on_each_side(n_right):
    low, high = compute_exact_interval(n_right, 22, 0.9)

    def chance(share, counts):
        return sum(math.comb(22, k) * share**k * (1 - share) ** (22 - k) for k in counts)

    assert chance(high, range(n_right + 1)) == pytest.approx(0.05 if n_right < 22 else 1)
    assert chance(low, range(n_right, 23)) == pytest.approx(0.05 if n_right else 1)


@pytest.mark.parametrize(
    ("n_right", "shown"), [(0, "0.0 [0.0, 11.6]"), (1, "3.3 [0.1, 17.2]"), (30, "100.0 [88.4, 100.0]")]
)
def test_task_accuracy_has_the_exact_interval_whatever_the_seed(n_right, shown):
    tasks = [s for i in range(30) for s in make_task(f"t{i}", [RIGHT, RIGHT if i < n_right else WRONG], group="one")]
    for seed in (0, 1):
        metrics = score(tasks, seed=seed)
        (part,) = metrics["per_group"].values()
        (rule,) = [v for v in metrics["variants"] if v["name"] == "action_target_fuzzy"]
        assert metrics["matchers"]["action"]["ta"] == part["matchers"]["action"]["ta"] == rule["ta"]
        assert rule["ta"].format() == shown
    assert score(tasks, confidence=0.9)["matchers"]["action"]["ta"].high <= rule["ta"].high


def test_same_seed_same_numbers_whatever_the_order_of_results():
    shuffled = random.Random(0).sample(STEPS, len(STEPS))
    assert score(STEPS, seed=3) == score(shuffled, seed=3)
    assert score(STEPS, seed=3, n_resamples=50) != score(STEPS, seed=4, n_resamples=50)


def test_same_seed_draws_the_same_tasks_and_another_seed_others():
    """Of forty tasks no two draws of a hundred have the same percentiles by chance."""
    steps = [s for i in range(40) for s in make_task(f"t{i}", [RIGHT] * (i % 7) + [WRONG] * (1 + i % 5))]
    once, again, other = (score(steps, seed=seed, n_resamples=100)["matchers"]["action"]["swa"] for seed in (3, 3, 4))
    assert once == again and (once.value, once.low) != (other.value, other.low)


def test_tasks_come_in_natural_order():
    results = [make_step(task_id, 0, "CLICK", "CLICK") for task_id in ("t10", "t2", "t1")]
    assert list(judge(results)) == ["t1", "t2", "t10"]


@pytest.mark.parametrize(
    "results, message",
    [
        ([], "found no step results"),
        ([make_step("t", 0, *RIGHT), make_step("t", 0, *RIGHT)], "task t: found step 0 twice"),
        ([make_step("t", 0, *RIGHT), make_step("t", 2, *RIGHT)], "task t: found step 2 after 1 of its steps"),
        ([make_step("t", 1, *RIGHT)], "task t: found step 1 after 0 of its steps"),
    ],
)
def test_a_set_of_steps_with_a_hole_is_not_scored(results, message):
    with pytest.raises(ValueError, match=message):
        score(results)


@pytest.mark.parametrize("settings", [{"seed": -1}, {"n_resamples": 0}, {"confidence": 0}, {"confidence": 1}])
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        score(STEPS, **settings)


def test_bootstrap_of_315_tasks_takes_well_under_two_seconds():
    per_task = np.random.default_rng(0).integers(0, 13, size=(315, 8)).astype(np.float64)
    started = time.perf_counter()
    resample_sums(per_task, Bootstrap(n_resamples=10_000))
    assert time.perf_counter() - started < 2


def test_validation_scores_have_intervals_and_do_not_depend_on_the_order_of_tasks():
    """Processes gather the counts of their shares in an order of their own."""
    counts = [("t1", 4, 4, 2), ("t2", 2, 0, 0), ("t10", 3, 3, 3)]
    scores = compute_scores(counts)
    assert (scores["swa"], scores["swa_target"]) == (7 / 9, 5 / 9)
    assert scores["swa_low"] == 0 and 7 / 9 < scores["swa_high"] == 1
    assert compute_scores(counts[::-1]) == scores


def test_validation_counts_right_steps_by_action_and_by_action_and_target():
    counts = {task_id: count_right(task) for task_id, task in judge(STEPS).items()}
    assert counts == {"a": (3, 2), "b": (1, 1), "c": (0, 0)}


@pytest.mark.parametrize(("n", "chosen"), [(1, [0]), (3, [0, 3, 6]), (4, [0, 2, 5, 7]), (10, list(range(10)))])
def test_validation_tasks_are_spread_over_the_order_of_the_data(n, chosen):
    """The tasks of an application stand together: the first ones would be of one alone."""
    assert choose_tasks(range(10), n) == chosen


def test_no_more_validation_tasks_are_chosen_than_there_are():
    assert choose_tasks("ab", 5) == ["a", "b"] and choose_tasks("ab", 0) == choose_tasks("", 5) == []
