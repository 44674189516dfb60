"""Numbers of live runs, checked by hand, and the page that shows them, in a real browser."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rollout_samples import RUN, approx_rate, judge, make_task
from test_report import HOSTILE

from eval.environments.episode import Episode, LiveStep, append_episode, format_episode, load_episodes, parse_episode
from eval.reporting.film import write_film
from eval.reporting.live import find_grade, place_point, print_live_summary, write_live_report
from eval.scoring.live import compute_agreement, compute_kappa, compute_live_metrics
from sft.actions import Action
from sft.errors import UserError, as_printable
from sft.rates import Rate

NO_MEMORY = {"short_term": {}, "long_term": {}}


def make_live(task_id, outcomes, ending, n_recorded=4, actions=None, images=None, **fields):
    """Make an episode from words, one a step: an outcome, with "+" where the goal is reached then."""
    steps = []
    for i, word in enumerate(outcomes.split()):
        outcome = word.rstrip("+")
        action = None if outcome == "unreadable" else Action("CLICK", f"target {i}")
        steps.append(
            LiveStep(
                index=i,
                image_id=images[i] if images else f"screens/{i}.png",
                description="",
                screen=[200, 100],
                memory_before=NO_MEMORY,
                memory_after=NO_MEMORY,
                raw_text="{}",
                parse_status="ok" if action else "no_json",
                parse_problem="",
                left_out=[],
                predicted=actions[i] if actions else action,
                outcome=outcome,
                is_reached=word.endswith("+"),
            )
        )
    about = {"application": "Viewer", "group": "known", "instruction": f"Goal of {task_id}", **fields}
    return Episode(task_id, n_recorded=n_recorded, ending=ending, steps=tuple(steps), **about)


EPISODES = [
    make_live("a", "done done+ complete+", "complete"),
    make_live("b", "done unreadable done+ done+ not_found+ complete+", "complete", group="new"),
    make_live("c", "done complete", "complete", application="Archive"),
    make_live("d", "done+ done complete", "complete"),
    make_live("e", "done+ done done", "budget"),
    make_live("f", "ambiguous impossible unsettled", "budget"),
    make_live("g", "done error", "error", reason="the program is gone"),
    make_live("h", "", "error", reason="no reset"),
    make_live("i", "", "left_out", reason="no verification is known"),
]


def test_each_result_is_what_the_words_say():
    results = [episode.result for episode in EPISODES]
    assert results[:4] == ["success", "success", "silent_wrong_effect", "silent_wrong_effect"]
    assert results[4:] == ["not_noticed", "budget", "error", "error", None]
    assert [episode.reached_at for episode in EPISODES] == [2, 3, None, 1, 1, None, None, None, None]
    assert [episode.task_id for episode in EPISODES if episode.is_left_again] == ["d", "e"]
    died = make_live("j", "done+ error", "error", reason="the program is gone")
    assert (died.result, died.reached_at, died.is_left_again) == ("error", 1, False)  # nobody looked after the error


def test_numbers_are_those_counted_by_hand():
    metrics = compute_live_metrics(EPISODES, n_resamples=2000)
    assert (metrics["n_tasks"], metrics["n_errors"], metrics["n_steps"], metrics["left_again"]) == (8, 2, 22, 2)
    # 2 of 8: the share of which at most 2 of 8 have a chance of 2.5 %, and that of which at least 2 have it
    assert metrics["success"] == approx_rate(0.25, 0.031854, 0.650856)
    assert metrics["success_without_errors"] == approx_rate(1 / 3, 0.04327187, 0.777222)
    assert metrics["reached"].value == 4 / 8
    assert metrics["results"] == {
        "success": 2,
        "silent_wrong_effect": 2,
        "not_noticed": 1,
        "given_up": 0,
        "budget": 1,
        "error": 2,
    }
    assert sum(metrics["results"].values()) == metrics["n_tasks"]
    assert metrics["step_outcomes"] == {
        "done": 12,
        "complete": 4,
        "given_up": 0,
        "not_found": 1,
        "ambiguous": 1,
        "impossible": 1,
        "unsettled": 1,
        "unreadable": 1,
        "unanswered": 0,
        "error": 1,
    }
    assert metrics["steps_against_recorded"]["ratio"] == approx_rate(9 / 8, 3 / 4, 6 / 4)  # tasks of 3 and 6 for 4
    assert metrics["steps_against_recorded"]["n_to_goal"] == 2 + 3
    assert metrics["by_task"]["g"] == {
        "result": "error",
        "n_steps": 2,
        "n_recorded": 4,
        "reached_at": None,
        "reason": "the program is gone",
    }
    assert metrics["left_out"] == {"i": "no verification is known"}
    assert list(metrics["per_group"]) == ["known", "new"]
    assert metrics["per_group"]["new"]["success"] == approx_rate(1.0, 0.025, 1.0)
    assert metrics["per_application"]["Archive"]["results"]["silent_wrong_effect"] == 1


def test_loop_is_one_action_three_times_on_one_screen():
    again, other = Action("CLICK", "Save"), Action("CLICK", "Close")
    texts = [Action("TEXT", "Label", {"text": text}) for text in ("a", "b", "c")]
    saves = [again, Action("CLICK", "save."), again, other]
    looped = make_live("a", "done done done done", "budget", actions=saves, images=["s"] * 4)
    moved = make_live("b", "done done done", "budget", actions=[again] * 3, images=["s", "s", "t"])
    twice = make_live("c", "done done done", "budget", actions=[again, again, other], images=["s"] * 3)
    typed = make_live("d", "done done done", "budget", actions=texts, images=["s"] * 3)
    silent = make_live("e", "unreadable unreadable unreadable", "budget", images=["s"] * 3)
    loops = compute_live_metrics([looped, moved, twice, typed, silent], n_resamples=100)["loops"]
    assert loops["n_tasks"] == 1 and loops["in_loops"].value == 3 / 16


def test_kappa_by_hand():
    """Cohen: 50 cases, 35 alike; each says yes as often as 25 and 30 of 50: expected 0.5, so (0.7 - 0.5) / 0.5."""
    rows = [[20, 5, 10, 15], [0, 5, 5, 0], [5, 0, 0, 5], [5, 0, 0, 0], [0, 0, 0, 3], [3, 0, 2, 0]]
    values = compute_kappa(np.array(rows))
    assert values[:3] == pytest.approx([0.4, -1.0, 1.0])
    assert np.isnan(values[3:5]).all() and values[5] == 0


def make_offline(right):
    """Make verdicts of tasks of four steps: how many of the first are right."""
    pairs = {task_id: [("CLICK", "CLICK" if i < n else "ZOOM") for i in range(4)] for task_id, n in right.items()}
    return judge([step for task_id, task in pairs.items() for step in make_task(task_id, task)])


def test_agreement_is_counted_by_task():
    offline = make_offline({"a": 4, "b": 3, "c": 4, "d": 0, "e": 1, "f": 0, "g": 4, "h": 4, "z": 4})
    agreement = compute_agreement(EPISODES, offline, n_resamples=2000)
    assert agreement["n_tasks"] == 6  # g and h are errors, i was left out
    found = agreement["matchers"]["action"]
    assert found["counts"] == {"both": 1, "offline_only": 1, "live_only": 1, "neither": 3}
    assert found["agreed"] == approx_rate(4 / 6, 0.222778, 0.956728)
    assert found["kappa"].value == pytest.approx((4 / 6 - 20 / 36) / (1 - 20 / 36))  # (2 * 2 + 4 * 4) / 36 expected
    assert found["kappa"].low < 0 < found["kappa"].high <= 1 and 0 < found["n_undefined"] < 1000
    assert (found["wrong_steps"]["n"], found["wrong_steps"]["of"]) == (1, 8)  # of a and b
    assert found["wrong_steps"]["share"].value == 1 / 8
    assert agreement["by_task"]["b"] == {
        "live": True,
        "n_steps": 4,
        "n_right_offline": {"action": 3, "action_target": 3},
    }


def test_kappa_of_drawn_tasks_leaves_out_draws_of_one_kind():
    """Of two tasks, one right and one wrong in both: half of the draws hold one of them twice."""
    agreement = compute_agreement([EPISODES[0], EPISODES[5]], make_offline({"a": 4, "f": 0}), n_resamples=4000)
    found = agreement["matchers"]["action"]
    assert found["kappa"] == Rate(1.0, 1.0, 1.0)
    assert 1800 < found["n_undefined"] < 2200
    alike = compute_agreement([EPISODES[0]], make_offline({"a": 4}), n_resamples=100)["matchers"]["action"]
    assert alike["kappa"] is None and alike["n_undefined"] == 100


def test_run_without_a_task_that_can_be_done_is_refused():
    with pytest.raises(UserError, match="all 1 were left out; the first: no verification is known"):
        compute_live_metrics(EPISODES[-1:])


def test_line_of_a_task_holds_everything_and_the_first_try_that_began_counts(tmp_path):
    odd = replace(EPISODES[1], instruction=HOSTILE + "\ud83d", last_image_id="screens/9.png")
    assert parse_episode(format_episode(odd)) == odd
    path = tmp_path / "episodes.jsonl"
    tries = [replace(EPISODES[6], steps=()), EPISODES[0], EPISODES[6], replace(EPISODES[6], ending="complete")]
    with path.open("ab", buffering=0) as file:
        for episode in tries:
            append_episode(file, episode)
        file.write(b'{"task_id": "half')
    loaded = [replace(tries[2], n_tries=2), EPISODES[0]]
    assert load_episodes(path) == loaded, "the first in which the agent was asked, its error included"
    path.write_text(format_episode(EPISODES[0]) * 2)
    with pytest.raises(UserError, match=":2: found task a again"):
        load_episodes(path)
    path.write_text("{}\n")
    with pytest.raises(UserError, match=":1: found a line that is no task"):
        load_episodes(path)


def test_terminal_shows_every_number_and_folds_none(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    metrics = compute_live_metrics([replace(EPISODES[0], n_tries=2), *EPISODES[1:]], n_resamples=200)
    metrics["agreement"] = compute_agreement(EPISODES, make_offline(dict.fromkeys("abcdef", 4)), n_resamples=200)
    print_live_summary(metrics)
    printed = capsys.readouterr().out
    for text in (
        "success, of all tasks",
        "25.0 [3.2, 65.1]",
        "without 2 that ended in an error",
        "silent wrong effect",
    ):
        assert text in printed
    assert re.search(r"tasks that did not begin and were tried again\W+1\b", printed)
    assert "Left out: i: no verification is known" in printed and "Cohen's kappa" in printed and "…" not in printed


@pytest.mark.slow
def test_page_shows_live_screens_points_and_outcomes_in_a_real_browser(browser, tmp_path):
    (tmp_path / "screens").mkdir()
    for i in range(7):
        Image.new("RGB", (200, 100), (40 * i, 90, 200)).save(tmp_path / f"screens/{i}.png")
    steps = list(EPISODES[1].steps)
    hostile = Action("TEXT", HOSTILE, {"text": HOSTILE})
    steps[0] = replace(steps[0], point=[50.0, 25.0], predicted=hostile, verdict=HOSTILE, description=HOSTILE)
    steps[4] = replace(steps[4], reason=HOSTILE)
    episodes = [replace(EPISODES[1], steps=tuple(steps), instruction=HOSTILE), *EPISODES[2:]]
    episodes[-1] = replace(episodes[-1], reason=HOSTILE)
    episodes[4] = replace(episodes[4], last_image_id="screens/6.png")  # f, whose budget is used up
    metrics = compute_live_metrics(episodes, n_resamples=100)
    metrics["agreement"] = compute_agreement(episodes, make_offline(dict.fromkeys("bcdef", 4)), n_resamples=100)
    info = replace(RUN, mode="live", environment={"module": HOSTILE})
    path = write_live_report(tmp_path, episodes, metrics, info)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    assert page.title().startswith("Live run: ")
    tasks = page.locator(".task")
    assert tasks.nth(0).locator(".strip .cell").all_inner_texts() == ["•", "?", "✓", "✓", "✓", "✓"]
    tasks.nth(0).locator("summary").first.click()
    step = tasks.nth(0).locator(".step")
    assert step.locator(".action bdi").first.text_content() == HOSTILE
    assert step.nth(4).locator(".verdict").first.inner_text() == "not found, goal reached"
    assert step.nth(4).locator(".note").first.text_content() == HOSTILE
    box = step.nth(0).locator(".shot").bounding_box()
    point = step.nth(0).locator(".executed-point").bounding_box()
    assert abs(point["x"] + point["width"] / 2 - box["x"] - box["width"] / 4) < 3
    assert abs(point["y"] + point["height"] / 2 - box["y"] - box["height"] / 4) < 3
    step.nth(0).locator("button.shot").click()
    assert "done" in page.locator("#viewer-caption").inner_text()
    page.keyboard.press("Escape")
    tasks.nth(4).locator("summary").first.click()
    end = tasks.nth(4).locator(".step").nth(3)  # behind the steps, the screen that the last one left
    assert end.inner_text().strip() == "After the last step"
    assert end.locator("img").evaluate("async (image) => (await image.decode(), image.naturalWidth)") == 200
    tasks.nth(4).locator("button.shot").nth(2).click()
    for caption in ("Step 3 of 3. CLICK target 2: unsettled", "After the last step. budget, 3 steps, 4 recorded"):
        assert caption in page.locator("#viewer-caption").inner_text()
        page.keyboard.press("ArrowRight")
    assert "After the last step" in page.locator("#viewer-caption").inner_text()  # nothing is behind it
    page.keyboard.press("Escape")
    assert tasks.nth(1).locator(".step h4", has_text="After the last step").count() == 0
    for value, count in (("silent_wrong_effect", 2), ("error", 2), ("", 7)):
        page.select_option("[name=result]", value)
        assert page.locator(".task:not([hidden])").count() == count
    page.check("input[name=verdict][value=right]")
    assert page.locator("#shown").inner_text() == "1 of 7 tasks"
    assert "Cohen's kappa" in page.locator("main").inner_text()
    assert complaints == [] and page.title().startswith("Live run: ")
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    page.close()


def test_film_of_a_screen_that_is_very_high_can_be_written(tmp_path):
    (tmp_path / "screens").mkdir()
    for i in range(3):
        Image.new("RGB", (100, 2000), (90 * i, 90, 200)).save(tmp_path / f"screens/{i}.png")
    with Image.open(write_film(tmp_path, 1, EPISODES[0])) as film:
        assert (film.size, film.n_frames) == ((960, 4064), 4)


def test_reasons_move_no_cursor():
    assert as_printable("no element is named '\x1b[2J\n\u202e患者'") == "no element is named '?[2J??患者'"


def test_grade_and_place_of_a_step():
    first = EPISODES[1].steps[0]
    assert [find_grade(step) for step in EPISODES[1].steps] == ["done", "unreadable", *["right"] * 4]
    assert find_grade(EPISODES[2].steps[1]) == "wrong" and find_grade(EPISODES[6].steps[1]) == "unreadable"
    assert place_point(first) is None
    assert place_point(replace(first, point=[50.0, 25.0])) == [250.0, 250.0]
    assert json.loads(format_episode(EPISODES[1]))["steps"][0]["predicted"] == {
        "action": "CLICK",
        "target": "target 0",
    }
