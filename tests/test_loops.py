"""Loops: repeated answers, runs of three, memory that stands still; every number worked out by hand."""

import pytest
from rollout_samples import judge, make_step, make_task

from eval.reporting.tables import describe_loops
from eval.scoring.matching import cut_at_first_error
from eval.scoring.metrics import compute_metrics

OPEN, OTHER = {"action": "CLICK", "target": "Open"}, {"action": "CLICK", "target": "Close"}
EMPTY, KEPT = ({"short_term": {"last_action": kind}, "long_term": {}} for kind in ("", "CLICK"))


def score(steps, mode="own", **agent):
    return compute_metrics(judge(steps), mode=mode, n_resamples=200, agent=agent)


def find_loops(steps, mode="own", **agent):
    return score(steps, mode, **agent)["loops"]


def answer(task_id, answers, golds=None):
    return make_task(task_id, list(zip(golds or ["ZOOM", "TEXT"] * len(answers), answers)))


def test_a_repeat_is_the_same_action_on_the_same_target_as_the_answer_before():
    # a: again at its 2nd, 3rd and 6th step, of 5 pairs. b: an answer that was not read is repeated by nothing.
    steps = answer("a", [OPEN, {**OPEN, "target": " open "}, OPEN, OTHER, OPEN, {**OPEN, "text": "x"}])
    steps += answer("b", [OPEN, None, OPEN, None, None])
    loops = find_loops(steps)
    assert loops["repeats"].value == pytest.approx(3 / 9)
    assert loops["in_long_runs"].value == pytest.approx(3 / 11)
    assert (loops["n_long_runs"], loops["longest_run"]) == (1, 3)


def test_what_the_recording_repeats_stands_beside_it():
    golds = [OPEN, OPEN, OPEN, OPEN, OTHER]
    loops = find_loops(answer("a", [OPEN, OPEN, OTHER, OTHER, OTHER], golds))
    assert loops["repeats"].value == loops["recorded_repeats"].value == pytest.approx(3 / 4)
    assert loops["in_long_runs"].value == pytest.approx(3 / 5)
    assert loops["recorded_in_long_runs"].value == pytest.approx(4 / 5)


def test_runs_do_not_cross_tasks_and_one_step_repeats_nothing():
    loops = find_loops([*answer("a", [OPEN]), *answer("b", [OPEN]), *answer("c", [OPEN])])
    assert loops["repeats"] is None
    assert (loops["in_long_runs"].value, loops["longest_run"]) == (0, 1)
    assert find_loops(answer("a", [None]))["longest_run"] == 0


def test_interval_of_repeats_is_over_tasks():
    loops = find_loops([*answer("a", [OPEN, OPEN]), *answer("b", [OPEN, OTHER])])
    assert (loops["repeats"].value, loops["repeats"].low, loops["repeats"].high) == (0.5, 0, 1)


# The screenshot changes after steps 1, 3 and 4; memory after steps 1, 2 and 4.
SCREENS = ["one", "two", "two", "three", "four"]
AFTER = [KEPT, EMPTY, EMPTY, KEPT, KEPT]
MOVING = [
    make_step("a", i, OPEN, OPEN, image_id=screen, memory_before=AFTER[i - 1] if i else EMPTY, memory_after=AFTER[i])
    for i, screen in enumerate(SCREENS)
]


def test_memory_stands_still_where_the_screenshot_changes_and_the_answer_leaves_it():
    assert find_loops(MOVING)["memory_unchanged"].value == pytest.approx(1 / 3)


def test_memory_that_a_prompt_showed_shortened_is_not_a_change():
    short = {"short_term": {}, "long_term": {}}
    steps = [*MOVING[:2], make_step("a", 2, OPEN, None, image_id="two", memory_before=short, memory_after=EMPTY)]
    steps += [make_step("a", 3, OPEN, None, image_id="three", memory_before=short, memory_after=EMPTY)]
    assert find_loops(steps)["memory_unchanged"].value == pytest.approx(1 / 2)


def test_steps_that_were_not_run_are_in_no_loop():
    steps = answer("a", [OPEN, OTHER, OPEN, OPEN], [OPEN] * 4)
    wrong = [*steps[:1], make_step("a", 1, "ZOOM", OPEN), *steps[2:]]
    loops = find_loops(cut_at_first_error(judge(wrong)), mode="own_stop")
    assert loops["repeats"].value == 1 and loops["longest_run"] == 2
    assert loops["recorded_repeats"].value == 0


@pytest.mark.parametrize(
    ("mode", "agent"), [("teacher", {}), ("own", {"use_short_term": False, "use_long_term": False})]
)
def test_memory_that_is_not_the_models_or_not_shown_is_not_rated(mode, agent):
    metrics = score(MOVING, mode, **agent)
    assert metrics["loops"]["memory_unchanged"] is None
    assert "memory" not in describe_loops(metrics)


def test_loops_are_told_in_one_sentence():
    assert describe_loops(score(answer("a", [OPEN] * 4))) == (
        "Own last action and target again: 100.0 [100.0, 100.0] (recording: 0.0); steps in runs of three or more: "
        "100.0 [100.0, 100.0] (recording: 0.0; longest run: 4)."
    )
    assert describe_loops(score(MOVING[:1])).startswith("Steps in runs of three or more: 0.0")
