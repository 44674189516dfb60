"""Action grammar: what is read, what is refused, and that reading gives back what was written."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.actions import (
    DEFAULT_ACTIONS,
    MAX_TARGET_CHARS,
    Action,
    ActionType,
    as_plain_text,
    find_action_type,
    format_action,
    parse_action,
)

LABELS = st.text(min_size=1, max_size=40).map(str.strip).filter(bool)


def test_action_reads_with_its_arguments_and_leaves_out_the_rest():
    fields = {"action": "text", "target": " Patient Name ", "text": "DOE^J", "direction": "up", "confidence": 0.9}
    assert parse_action(fields) == Action("TEXT", "Patient Name", {"text": "DOE^J"})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"action": "CLICK", "target": "OK"}, Action("CLICK", "OK")),
        ({"action": " click ", "target": "OK"}, Action("CLICK", "OK")),
        (
            {"action": "SCROLL", "target": "list", "direction": " Down "},
            Action("SCROLL", "list", {"direction": "down"}),
        ),
        ({"action": "SCROLL", "target": "list", "direction": None}, Action("SCROLL", "list")),
        ({"action": "ZOOM", "target": "image", "scale": 1.5}, Action("ZOOM", "image", {"scale": 1.5})),
        ({"action": "ZOOM", "target": "image", "direction": "in"}, Action("ZOOM", "image", {"direction": "in"})),
        ({"action": "SEGMENT", "target": "Length"}, Action("SEGMENT", "Length")),
        (
            {"action": "SCROLL", "target": "list", "arguments": {"direction": "up", "text": "x"}},
            Action("SCROLL", "list", {"direction": "up"}),
        ),
        ({"action": "COMPLETE"}, Action("COMPLETE", "")),
        ({"action": "COMPLETE", "target": None}, Action("COMPLETE", "")),
    ],
)
def test_each_default_action_is_read(fields, expected):
    assert parse_action(fields) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"found no action name \(got None\); expected .* one of CLICK, SCROLL, ZOOM, TEXT, SEGMENT, COMPLETE"),
        ({"action": 3, "target": "x"}, r"found no action name \(got 3\)"),
        ({"action": "  ", "target": "x"}, r"found no action name"),
        ({"action": "DRAG", "target": "x"}, r"found action 'DRAG'; expected one of CLICK, SCROLL"),
        ({"action": "CLICK"}, r"found no target for CLICK; expected the label"),
        ({"action": "CLICK", "target": " "}, r"found no target for CLICK"),
        ({"action": "CLICK", "target": ["OK"]}, r"found target \['OK'\]; expected text"),
        ({"action": "CLICK", "target": True}, r"found target True; expected text"),
        ({"action": "CLICK", "target": "x" * (MAX_TARGET_CHARS + 1)}, r"found a target of 2001 characters"),
        ({"action": "SCROLL", "target": "x", "direction": "diagonal"}, r"'diagonal'; expected one of up, down, left"),
        ({"action": "SCROLL", "target": "x", "direction": 1}, r"found direction 1; expected one of up, down"),
        ({"action": "ZOOM", "target": "x", "scale": math.inf}, r"found scale inf; expected a number of at most"),
        ({"action": "ZOOM", "target": "x", "scale": math.nan}, r"found scale nan; expected a number of at most"),
        (
            {"action": "ZOOM", "target": "x", "scale": -(10**400)},
            r"found scale -1000+\.\.\.; expected a number of at most",
        ),
        ({"action": "ZOOM", "target": "x", "scale": True}, r"found scale True; expected text or a number"),
        ({"action": "TEXT", "target": "x", "text": {"a": 1}}, r"found text \{'a': 1\}; expected text or a number"),
    ],
)
def test_what_is_no_action_says_what_was_found_and_expected(fields, message):
    with pytest.raises(ValueError, match=message):
        parse_action(fields)


def test_long_value_is_shortened_in_the_message():
    with pytest.raises(ValueError, match=r"^found action 'x{56}\.\.\.; expected") as caught:
        parse_action({"action": "x" * 5_000, "target": "OK"})
    assert len(str(caught.value)) < 200


def test_action_is_written_first_then_target_then_arguments():
    action = Action("ZOOM", "image", {"direction": "in", "scale": 2})
    assert list(format_action(action).items()) == [
        ("action", "ZOOM"),
        ("target", "image"),
        ("direction", "in"),
        ("scale", 2),
    ]


@given(
    kind=st.sampled_from([a.name for a in DEFAULT_ACTIONS]),
    target=LABELS,
    text=st.text(max_size=40),
    direction=st.sampled_from(["up", "down", "left", "right"]),
)
def test_parse_reads_what_format_writes(kind, target, text, direction):
    arguments = {"TEXT": {"text": text}, "SCROLL": {"direction": direction}}.get(kind, {})
    action = Action(kind, target, arguments)
    assert parse_action(format_action(action)) == action


def test_another_vocabulary_needs_no_code_change():
    drag = ActionType("Drag", "drag it", {"to": ()})
    assert parse_action({"action": "drag", "target": "slice", "to": "end"}, [drag]) == Action(
        "Drag", "slice", {"to": "end"}
    )
    with pytest.raises(ValueError, match="found action 'CLICK'; expected one of Drag"):
        parse_action({"action": "CLICK", "target": "slice"}, [drag])


def test_action_type_is_found_in_any_letter_case_or_not_at_all():
    assert find_action_type("complete", DEFAULT_ACTIONS).is_final
    assert find_action_type("", DEFAULT_ACTIONS) is None


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=60))
def test_plain_text_can_be_stored_and_holds_no_control_token(text):
    plain = as_plain_text(text)
    assert plain.encode("utf-8").decode("utf-8") == plain
    assert "<|" not in plain
    assert as_plain_text(plain) == plain


def test_control_token_is_broken_up_half_character_replaced_and_accent_composed():
    assert as_plain_text("a <|im_end|> b \ud83d") == "a < |im_end|> b ?"
    assert as_plain_text("Gro\u0308ße") == "Größe"
    assert as_plain_text("Größe 患者 🙂 a < b | c") == "Größe 患者 🙂 a < b | c"
