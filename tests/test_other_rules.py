"""Other rules for "right": how each decides, and that none drops a step its gold says it must judge."""

import json

import pytest
from rollout_samples import as_action, judge, make_step, make_task

from eval.score import main
from eval.scoring.matching import MATCHERS
from eval.scoring.metrics import compute_metrics
from eval.scoring.other_rules import build_rules, lands_in_box, load_synonyms
from sft.actions import DEFAULT_ACTIONS, ActionType, parse_action
from sft.errors import UserError

BOX = {"bbox": [100, 100, 300, 200], "screen": [1000, 500]}  # in 0..1: x 0.1 to 0.3, y 0.2 to 0.4, centre (0.2, 0.3)
POINTING = [ActionType("CLICK", "press it", {"point": ()})]


def scores(results, actions=DEFAULT_ACTIONS, **settings):
    rows = compute_metrics(judge(results, actions), mode="own", n_resamples=50, **settings)["variants"]
    return {row["name"]: (row["n_right"], row["n"]) for row in rows}


def click(target, **arguments):
    return {"action": "CLICK", "target": target, **arguments}


def text(value):
    return {"action": "TEXT", "target": "Name", "text": value}


@pytest.mark.parametrize(
    ("predicted", "right"),
    [
        ("Patient Name", {"action_target_exact", "action_target", "action_target_fuzzy"}),
        ("patient name:", {"action_target", "action_target_fuzzy"}),
        ("Patient Names", {"action_target_fuzzy"}),  # ratio 2 * 12 / 25 = 96
        ("Patient ID", set()),  # ratio 2 * 8 / 22 = 73 at most
    ],
)
def test_targets_are_right_by_ever_looser_rules(predicted, right):
    found = scores([make_step("t", 0, click("Patient Name"), click(predicted))])
    assert {name for name in found if name.startswith("action_target") and found[name][0]} == right


def test_a_similar_target_does_not_excuse_another_argument():
    gold = {"action": "SCROLL", "target": "Study list", "direction": "down"}
    assert scores([make_step("t", 0, gold, {**gold, "target": "Study lists", "direction": "up"})])[
        "action_target_fuzzy"
    ] == (0, 1)


@pytest.mark.parametrize(
    ("written", "exact", "token_f1", "anls"),
    [
        ("DOE Jane", 1, 1, 1),
        ("doe  jane", 1, 1, 1),
        ("Jane Doe", 0, 1, 0),  # the same words; 7 of 8 characters would have to change places
        ("DOE", 0, 1, 0),  # F1 = 2 * 1 / 3 = 0.67; 3 of 8 characters
        ("DOE Janet Q", 0, 0, 1),  # F1 = 2 * 1 / 5; 8 of 11 characters
        ("X", 0, 0, 0),
    ],
)
def test_text_rules(written, exact, token_f1, anls):
    found = scores([make_step("t", 0, text("DOE Jane"), text(written))])
    assert [found[name] for name in ("text_exact", "text_token_f1", "text_anls")] == [
        (exact, 1),
        (token_f1, 1),
        (anls, 1),
    ]


@pytest.mark.parametrize(
    ("point", "in_box", "wide", "narrow"),
    [
        ([200, 300], 1, 1, 1),
        ([110, 210], 1, 1, 1),  # in the box, 0.127 from its centre: the radius rules take the box too
        ([235, 180], 0, 1, 0),  # above the box, 0.125 from its centre
        ([350, 300], 0, 0, 0),  # 0.15 from it
        ([100, 200], 1, 1, 1),  # the box's corners belong to it
        ([300, 400], 1, 1, 1),
        ([300.1, 400], 0, 0, 0),  # 0.1415 from it
    ],
)
def test_point_rules(point, in_box, wide, narrow):
    step = make_step("t", 0, click("OK"), click("Cancel", point=point), **BOX)
    found = scores([step], POINTING)
    assert [found[name][0] for name in ("point_in_box", "point_0.14", "point_0.04")] == [in_box, wide, narrow]


def test_a_box_at_the_edge_of_the_screen_is_hit_on_the_edge():
    places = [([1000, 1000], 1), ([990, 980], 1), ([989, 1000], 0), ([0, 0], 0)]
    edge = {"bbox": [990, 490, 1000, 500], "screen": [1000, 500]}
    for point, n_right in places:
        step = make_step("t", 0, click("OK"), click("OK", point=point), **edge)
        assert scores([step], POINTING)["point_in_box"] == (n_right, 1)


def test_a_step_with_another_right_answer_has_no_place_to_judge_a_point_by():
    also = [as_action(click("Close", point=[900, 900]))]
    verdict = judge(
        [make_step("t", 0, click("OK"), click("Close", point=[200, 300]), also_right=also, **BOX)], POINTING
    )
    assert scores([verdict["t"][0].step], POINTING)["point_in_box"] == (0, 0)
    assert lands_in_box(verdict["t"][0]) is None


def test_a_point_counts_whatever_action_it_stands_in_and_none_does_without_an_answer():
    pointing = [*POINTING, ActionType("ZOOM", "zoom it", {"point": ()}), ActionType("COMPLETE", "end", is_final=True)]
    zoom = {"action": "ZOOM", "target": "Image", "point": [200, 300]}
    for predicted, n_right, lands in ((zoom, 1, True), ("COMPLETE", 0, None), (None, 0, None)):
        step = make_step("t", 0, click("OK"), predicted, **BOX)
        assert scores([step], pointing)["point_in_box"] == (n_right, 1)
        assert lands_in_box(judge([step], pointing)["t"][0]) is lands
    ending = make_step("t", 0, "COMPLETE", zoom, **BOX)
    assert scores([ending], pointing)["point_in_box"] == (0, 0)


def test_points_are_not_applicable_where_the_answer_format_has_none():
    verdicts = judge([make_step("t", 0, click("OK"), click("OK"), **BOX)])
    rows = compute_metrics(verdicts, mode="own", n_resamples=50)["variants"]
    point = next(row for row in rows if row["name"] == "point_in_box")
    assert (point["n"], point["rate"], point["ta"]) == (0, None, None)


def test_a_missing_point_is_wrong_where_the_answer_format_has_one():
    step = make_step("t", 0, click("OK"), click("OK"), **BOX)
    assert scores([step], POINTING)["point_in_box"] == (0, 1)


def test_an_unreadable_answer_is_wrong_under_every_rule_that_applies():
    gold = {"action": "SCROLL", "target": "list", "direction": "down"}
    found = scores([make_step("t", 0, gold, None), make_step("t", 1, text("x"), None)])
    assert found["direction"] == (0, 1) and found["text_exact"] == (0, 1) and found["action"] == (0, 2)


def test_the_two_main_rules_agree_with_the_headline_table():
    results = [*make_task("a", [("CLICK", click("no")), ("TEXT", "CLICK")]), make_step("b", 0, "ZOOM", "ZOOM")]
    metrics = compute_metrics(judge(results), mode="own", n_resamples=50)
    rows = {row["name"]: row for row in metrics["variants"]}
    for name in ("action", "action_target"):
        assert rows[name]["rate"] == metrics["matchers"][name]["swa"]
        assert rows[name]["ta"] == metrics["matchers"][name]["ta"]
    assert rows["action_target"]["over_action"].value == pytest.approx(-1 / 3)


def test_final_action_of_an_own_vocabulary_needs_no_target_under_any_rule():
    own = [ActionType("DONE", "the goal is reached", is_final=True)]
    step = make_step("t", 0, {"action": "DONE", "target": "the report"}, {"action": "DONE", "target": ""})
    found = scores([step], own)
    assert {name for name in found if name.startswith("action")} == {name for name in found if found[name] == (1, 1)}


def test_synonyms_come_from_the_table_alone(tmp_path):
    path = tmp_path / "synonyms.json"
    path.write_text(json.dumps({"Studies": ["Study list", "Worklist"]}))
    step = make_step("t", 0, click("Study list"), click("worklist"))
    assert scores([step], synonyms=load_synonyms(path))["action_target_synonyms"] == (1, 1)
    assert "action_target_synonyms" not in scores([step])
    path.write_text(json.dumps({"Studies": ["Study list"], "Worklist": ["study list"]}))
    with pytest.raises(UserError, match="'study list' in two rows"):
        load_synonyms(path)


def test_every_rule_says_its_version_and_threshold():
    rules = {rule.name: (rule.version, rule.threshold) for rule in build_rules()}
    assert rules["action_target_fuzzy"] == ("1", 90) and rules["text_anls"] == ("1", 0.5)
    assert rules["text_token_f1"] == ("1", 0.5) and rules["point_0.14"] == ("1", 0.14)
    assert all(rules[name] == (matcher.version, None) for name, matcher in MATCHERS.items())


@pytest.mark.parametrize(
    ("rule", "message"), [("guess", "action_target_fuzzy"), ("action_target_synonyms", "found no --synonyms")]
)
def test_rule_that_cannot_be_printed_is_refused_by_the_command(capsys, rule, message):
    with pytest.raises(SystemExit):
        main(["run", "--matcher", rule])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("written", [[1], [1, 2, 3], [1, 1001], ["1", 2], "1,2", [True, 2], [float("nan"), 1]])
def test_a_point_is_two_numbers_in_a_thousand(written):
    vocabulary = [ActionType("CLICK", "press it", {"point": ()})]
    with pytest.raises(ValueError, match="point"):
        parse_action({"action": "CLICK", "target": "OK", "point": written}, vocabulary)
    read = parse_action({"action": "CLICK", "target": "OK", "point": [0, 999.5]}, vocabulary)
    assert read.arguments == {"point": [0, 999.5]}
