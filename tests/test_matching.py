"""Matchers: what counts as right."""

import pytest
from rollout_samples import as_action, judge, make_step

from eval.scoring.matching import MATCHERS, normalize_target, normalize_text
from sft.actions import DEFAULT_ACTIONS, POINT, ActionType


def is_right(matcher: str, gold: dict, predicted: dict) -> bool:
    return MATCHERS[matcher].is_right(as_action(gold), as_action(predicted))


def judge_step(step, actions=DEFAULT_ACTIONS):
    ((verdict,),) = judge([step], actions).values()
    return verdict


def click(target: str, **arguments: object) -> dict:
    return {"action": "CLICK", "target": target, **arguments}


def test_action_looks_at_the_type_alone():
    assert is_right("action", click("Studies"), click("Layout"))
    assert not is_right("action", click("Studies"), {"action": "TEXT", "target": "Studies", "text": "x"})


@pytest.mark.parametrize(
    "written",
    [
        "patient name",
        "  Patient\u00a0 Name ",
        '"Patient Name"',
        "Patient Name:",
        "ＰＡＴＩＥＮＴ ＮＡＭＥ",
        "[Patient Name…]",
    ],
)
def test_target_ignores_case_width_space_and_what_surrounds_it(written):
    assert is_right("action_target", click("Patient Name"), click(written))


@pytest.mark.parametrize("written", ["Patient", "Name Patient", "Patient-Name", "", "Patient Names"])
def test_another_target_is_wrong(written):
    assert not is_right("action_target", click("Patient Name"), click(written))


def test_signs_that_are_the_label_are_kept():
    labels = ["+", "-", "<", ">", "?", "…", "*", "Zoom +", "Zoom -", "Zoom"]
    assert len({normalize_target(label) for label in labels}) == len(labels)


def test_normalising_twice_changes_nothing():
    for text in ["ß Straße", "ΐ", "ﬁle…", "“Ünïcode”", "\u1fb3\u0301", "İstanbul"]:
        assert normalize_text(normalize_text(text)) == normalize_text(text)


def test_target_of_another_action_type_is_wrong():
    assert not is_right("action_target", click("OK"), {"action": "SEGMENT", "target": "OK"})


def test_complete_needs_no_target():
    for gold, predicted in [("", "the report"), ("the report", ""), ("a", "b")]:
        actions = [{"action": "COMPLETE", "target": target} for target in (gold, predicted)]
        assert judge_step(make_step("t", 0, *actions)).outcomes["action_target"] == "right"


@pytest.mark.parametrize(
    "argument, written, right",
    [
        ({"text": "DOE^J"}, {"text": "doe^j "}, True),
        ({"text": "DOE^J"}, {"text": "DOE J"}, False),
        ({"text": "DOE^J"}, {}, False),
        ({"text": "5."}, {"text": "5"}, False),
        ({"text": "007"}, {"text": 7}, False),
        ({"text": "12"}, {"text": 12}, True),
        ({"text": "2"}, {"text": 2.0}, True),
        ({"scale": 2}, {"scale": "2.0"}, True),
        ({"scale": 2}, {"scale": 2.5}, False),
        ({"scale": 2}, {"scale": "double"}, False),
        ({"direction": "down"}, {"direction": "up"}, False),
        ({"direction": "down"}, {"direction": "down"}, True),
        ({}, {"direction": "up"}, True),
    ],
)
def test_arguments_of_the_gold_action_count(argument, written, right):
    assert is_right("action_target", click("Field", **argument), click("Field", **written)) is right


def test_a_step_has_one_outcome_whatever_went_wrong():
    def outcome(predicted, **fields):
        return judge_step(make_step("t", 0, "CLICK", predicted, **fields)).outcomes["action"]

    assert outcome("CLICK") == "right"
    assert outcome("TEXT") == "wrong"
    assert outcome(None) == "unparsable"
    assert outcome(None, parse_status="truncated") == "truncated"
    assert outcome(None, error="out of memory") == "error"
    assert outcome("CLICK", error="out of memory") == "error"
    assert outcome("CLICK", parse_status="not_run") == "not_run"


def test_an_unreadable_answer_to_complete_is_not_right():
    step = make_step("t", 0, {"action": "COMPLETE", "target": ""}, None)
    assert list(judge_step(step).outcomes.values()) == ["unparsable", "unparsable"]


def test_final_action_is_that_of_the_vocabulary():
    own = (ActionType("DONE", "the goal is reached", is_final=True), ActionType("COMPLETE", "fill the form in"))
    for kind, expected in (("DONE", "right"), ("COMPLETE", "wrong")):
        actions = [{"action": kind, "target": target} for target in ("the report", "")]
        assert judge_step(make_step("t", 0, *actions), own).outcomes["action_target"] == expected
        assert judge_step(make_step("t", 0, *actions)).outcomes["action_target"] != expected


def test_verdict_has_an_answer_only_where_the_step_is_right_or_wrong():
    assert judge_step(make_step("t", 0, "CLICK", "TEXT")).answer == as_action("TEXT")
    assert judge_step(make_step("t", 0, "CLICK", "TEXT", error="out of memory")).answer is None


def test_points_are_taken_by_the_types_that_name_them():
    own = (ActionType("CLICK", "press", {POINT: ()}), ActionType("ZOOM", "zoom"))
    takes = [judge_step(make_step("t", 0, kind, kind), own).takes_point for kind in ("CLICK", "ZOOM", "TEXT")]
    assert takes == [True, False, False]


def test_every_matcher_names_its_version_and_rule():
    assert [(m.name, m.version) for m in MATCHERS.values()] == [("action", "1"), ("action_target", "1")]
    assert all(m.description for m in MATCHERS.values())
