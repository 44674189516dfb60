"""Matchers: what counts as right."""

import pytest
from rollout_samples import make_step

from eval.scoring.matching import MATCHERS, judge_step, normalize_target, normalize_text


def is_right(matcher: str, gold: dict, predicted: dict) -> bool:
    return MATCHERS[matcher].is_right(gold, predicted)


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
        assert is_right(
            "action_target", {"action": "COMPLETE", "target": gold}, {"action": "COMPLETE", "target": predicted}
        )


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
    action = MATCHERS["action"]
    assert judge_step(make_step("t", 0, "CLICK", "CLICK"), action) == "right"
    assert judge_step(make_step("t", 0, "CLICK", "TEXT"), action) == "wrong"
    assert judge_step(make_step("t", 0, "CLICK", None), action) == "unparsable"
    assert judge_step(make_step("t", 0, "CLICK", None, parse_status="truncated"), action) == "truncated"
    assert judge_step(make_step("t", 0, "CLICK", None, error="out of memory"), action) == "error"
    assert judge_step(make_step("t", 0, "CLICK", "CLICK", error="out of memory"), action) == "error"


def test_an_unreadable_answer_to_complete_is_not_right():
    step = make_step("t", 0, {"action": "COMPLETE", "target": ""}, None)
    assert [judge_step(step, matcher) for matcher in MATCHERS.values()] == ["unparsable", "unparsable"]


def test_every_matcher_names_its_version_and_rule():
    assert [(m.name, m.version) for m in MATCHERS.values()] == [("action", "1"), ("action_target", "1")]
    assert all(m.description for m in MATCHERS.values())
