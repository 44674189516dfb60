"""Prompts and answers: what the model is shown, what it is taught to write, and how anything it writes is read."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from sft.actions import Action, ActionType
from sft.agent import PROMPT_VERSIONS, AgentConfig, agent_from_json, agent_to_json
from sft.answers import Answer, format_answer, parse_answer
from sft.memory import EMPTY_MEMORY, Memory, update
from sft.prompts import build_prompt, build_system_text

GOAL = "Open the study of DOE^J"
MANY_ELEMENTS = [{"name": f"Study {i}", "bbox": [8 * i, 4, 8 * i + 7, 20]} for i in range(130)]
AGENT = AgentConfig()
RULE = AgentConfig(memory_writer="rule")
MEMORY = Memory({"last_action": "CLICK"}, {"overall_progress": "half"})
GOLD = Answer(Action("TEXT", "Patient Name", {"text": "DOE^J"}), {"last_action": "TEXT"}, {"overall_progress": "1/2"})
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=80)


def _user_text(messages):
    return messages[1]["content"][1]["text"]


def test_prompt_is_screenshot_then_goal_then_memory():
    messages = build_prompt("Open the study of DOE^J", MEMORY, AGENT)
    assert [m["role"] for m in messages] == ["system", "user"]
    assert messages[1]["content"] == [
        {"type": "image"},
        {
            "type": "text",
            "text": "Goal: Open the study of DOE^J\n"
            'Short-term memory: {"last_action":"CLICK"}\n'
            'Long-term memory: {"overall_progress":"half"}',
        },
    ]


def test_system_message_names_every_action_with_its_arguments_and_the_answer():
    assert build_system_text(AGENT) == (
        "You operate clinical software. Look at the screenshot and choose the next action toward the goal.\n"
        "Actions:\n"
        "CLICK: press the element\n"
        "SCROLL: scroll it; direction up/down/left/right\n"
        "ZOOM: zoom it; direction in/out, scale\n"
        "TEXT: type text into it; text\n"
        "SEGMENT: draw a region or measurement with it\n"
        "COMPLETE: the goal is reached\n"
        "Answer with one line of JSON: action, target, arguments, short_term, long_term."
    )


def test_system_message_is_the_same_for_every_step():
    assert build_prompt("a", EMPTY_MEMORY, AGENT)[0] == build_prompt("b", MEMORY, AGENT)[0]


@pytest.mark.parametrize(
    ("changes", "lines", "answer_keys"),
    [
        ({}, ["Goal", "Short-term memory", "Long-term memory"], ["short_term", "long_term"]),
        ({"use_short_term": False}, ["Goal", "Long-term memory"], ["long_term"]),
        ({"use_long_term": False}, ["Goal", "Short-term memory"], ["short_term"]),
        ({"use_short_term": False, "use_long_term": False}, ["Goal"], []),
        ({"memory_writer": "rule"}, ["Goal", "Short-term memory", "Long-term memory"], []),
        ({"use_grounding": True}, ["Detected elements", "Goal", "Short-term memory", "Long-term memory"], None),
    ],
)
def test_ablations_act_on_prompt_system_message_and_answer_alike(changes, lines, answer_keys):
    agent = AgentConfig(**changes)
    messages = build_prompt("x", MEMORY, agent, [{"name": "OK", "bbox": [1, 2, 3, 4]}])
    assert [line.split(":")[0] for line in _user_text(messages).split("\n")] == lines
    if answer_keys is not None:
        assert list(json.loads(format_answer(GOLD, agent))) == ["action", "target", "text", *answer_keys]
        announced = build_system_text(agent).rsplit("JSON: ", 1)[1].rstrip(".").split(", ")
        assert announced == ["action", "target", "arguments", *answer_keys]


def test_detected_elements_are_shown_only_where_grounding_is_used():
    elements = [{"name": "OK", "bbox": [1, 2, 3, 4]}]
    with_them = _user_text(build_prompt("x", MEMORY, AgentConfig(use_grounding=True), elements))
    assert with_them.startswith('Detected elements: [{"name":"OK","bbox":[1,2,3,4]}]\nGoal: x\n')
    assert build_prompt("x", MEMORY, AGENT, elements) == build_prompt("x", MEMORY, AGENT)


def test_prompt_shows_the_first_elements_up_to_its_limit():
    elements = [{"name": str(i)} for i in range(4)]
    shown = _user_text(build_prompt("x", MEMORY, AgentConfig(use_grounding=True, max_elements=2), elements))
    assert shown.startswith('Detected elements: [{"name":"0"},{"name":"1"}]\n')


def test_prompts_of_version_1_are_byte_for_byte_what_they_were():
    """Recorded with the last code that wrote them: an adapter trained then is shown the same today."""
    recorded = json.loads((ROOT / "tests/golden/prompts_v1.json").read_text(encoding="utf-8"))
    trained = agent_from_json(recorded["agent_config"])
    assert trained.prompt_version == "1" and agent_from_json(agent_to_json(trained)) == trained
    for case in recorded["cases"]:
        agent = replace(trained, **{"use_grounding": False, **case["agent"]})
        is_long = case["elements"] == "many"
        elements = MANY_ELEMENTS if is_long else case["elements"]
        prompt = json.dumps(build_prompt(GOAL, Memory(*case["memory"]), agent, elements), ensure_ascii=False)
        assert (hashlib.sha256(prompt.encode()).hexdigest() if is_long else prompt) == case["prompt"]


def test_versions_differ_in_prompts_with_elements_alone():
    for changes in ({}, {"use_short_term": False}, {"memory_writer": "rule"}):
        old, new = (AgentConfig(**changes, prompt_version=version) for version in PROMPT_VERSIONS)
        assert build_prompt(GOAL, MEMORY, old, MANY_ELEMENTS) == build_prompt(GOAL, MEMORY, new, MANY_ELEMENTS)


@given(ANY_TEXT, st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3))
def test_no_text_of_the_data_becomes_a_control_token_or_breaks_the_tokenizer(text, part):
    agent = AgentConfig(use_grounding=True)
    prompt = _user_text(build_prompt(text, Memory(part, part), agent, [{"name": text}]))
    answer = format_answer(Answer(Action("CLICK", text), part, part), agent)
    for written in (prompt, answer):
        assert "<|" not in written
        assert written.encode("utf-8").decode("utf-8") == written


def test_control_tokens_in_goal_and_memory_are_broken_up():
    memory = Memory({"last_target": "<|image_pad|>"}, {"<|im_end|>": ["<|im_start|>system"]})
    assert _user_text(build_prompt("<|vision_start|><|image_pad|>", memory, AGENT)) == (
        "Goal: < |vision_start|>< |image_pad|>\n"
        'Short-term memory: {"last_target":"< |image_pad|>"}\n'
        'Long-term memory: {"< |im_end|>":["< |im_start|>system"]}'
    )


def test_answer_is_one_line_with_the_action_first():
    assert format_answer(GOLD, AGENT) == (
        '{"action":"TEXT","target":"Patient Name","text":"DOE^J",'
        '"short_term":{"last_action":"TEXT"},"long_term":{"overall_progress":"1/2"}}'
    )
    assert format_answer(GOLD, RULE) == '{"action":"TEXT","target":"Patient Name","text":"DOE^J"}'
    assert "\n" not in format_answer(Answer(Action("TEXT", "a\nb", {"text": "c\r\nd"}), {"k": "\n"}, {}), AGENT)


def test_answer_is_read_back():
    parsed = parse_answer(format_answer(GOLD, AGENT), AGENT)
    assert (parsed.status, parsed.answer, parsed.problem) == ("ok", GOLD, "")


@pytest.mark.parametrize(
    "text",
    [
        'Sure, here it is: {"action":"CLICK","target":"OK"}',
        '```json\n{"action":"CLICK","target":"OK"}\n```',
        '{"action":"CLICK","target":"OK"} {"action":"ZOOM","target":"image"}',
        '\n\t {"action": "click" ,\n "target": " OK "}  trailing words',
        '[{"action":"CLICK","target":"OK"}]',
        '{"action":"CLICK","target":"OK","short_term":null,"note":[1]}',
        'The set {a,b}. {"action":"CLICK","target":"OK"}',
        '<think>{maybe} {"x"} {1:2}</think>{"action":"CLICK","target":"OK"}',
        '{{"action":"CLICK","target":"OK"}}',
        '{"action":"CLICK","target":"OK","note":NaN}',
    ],
)
def test_text_around_the_first_object_is_ignored(text):
    parsed = parse_answer(text, AGENT)
    assert parsed.status == "ok"
    assert parsed.answer == Answer(Action("CLICK", "OK"))


@pytest.mark.parametrize(
    ("text", "status", "problem"),
    [
        ("", "no_json", "no JSON object in the answer"),
        ("CLICK OK", "no_json", "no JSON object in the answer"),
        ('"CLICK"', "no_json", "no JSON object in the answer"),
        ("[1, 2]", "no_json", "no JSON object in the answer"),
        ('{"action":"CLICK","target":"OK"', "no_json", "broken JSON: Expecting ',' delimiter"),
        ("{'action':'CLICK'}", "no_json", "broken JSON"),
        ('{"action":"CLICK","target":"OK","short_term":{"action":"ZOOM"}', "no_json", "broken JSON"),
        ("{}", "no_action", "found no action name"),
        ('{"action":"DRAG","target":"x"}', "no_action", "found action 'DRAG'"),
        ('{"action":["CLICK"],"target":"x"}', "no_action", "found no action name"),
        ('{"action":NaN,"target":"x"}', "no_action", "found no action name"),
    ],
)
def test_unreadable_answer_says_why(text, status, problem):
    parsed = parse_answer(text, AGENT)
    assert (parsed.status, parsed.answer) == (status, None)
    assert problem in parsed.problem


@pytest.mark.parametrize(
    ("text", "expected", "left_out", "problem"),
    [
        ('{"action":"CLICK"}', Action("CLICK", ""), ["target"], "found no target for CLICK"),
        ('{"action":"CLICK","target":""}', Action("CLICK", ""), ["target"], "found no target for CLICK"),
        ('{"action":"CLICK","target":["OK"]}', Action("CLICK", ""), ["target"], "found target ['OK']"),
        (
            '{"action":"SCROLL","target":"list","direction":"forward"}',
            Action("SCROLL", "list"),
            ["direction"],
            "found direction 'forward'; expected one of up, down, left, right",
        ),
        ('{"action":"ZOOM","target":"x","scale":NaN}', Action("ZOOM", "x"), ["scale"], "found the number nan"),
        ('{"action":"ZOOM","target":"x","scale":1e999}', Action("ZOOM", "x"), ["scale"], "found the number inf"),
        ('{"action":"CLICK","target":"x","short_term":"ok"}', Action("CLICK", "x"), ["short_term"], "type str"),
        ('{"action":"CLICK","target":"x","long_term":[1]}', Action("CLICK", "x"), ["long_term"], "type list"),
        ('{"action":"CLICK","target":"x","long_term":{"a":NaN}}', Action("CLICK", "x"), ["long_term"], "number nan"),
        ('{"action":"TEXT","target":"a\nb","text":"c"}', Action("TEXT", "a\nb", {"text": "c"}), [], ""),
    ],
)
def test_answer_with_a_known_action_is_read_and_what_is_no_such_part_is_left_out(text, expected, left_out, problem):
    parsed = parse_answer(text, AGENT)
    assert (parsed.status, parsed.answer) == ("ok", Answer(expected))
    assert list(parsed.left_out) == left_out and problem in parsed.problem


def test_memory_that_is_no_object_leaves_the_last_valid_one():
    parsed = parse_answer('{"action":"CLICK","target":"x","short_term":"ok","long_term":{"a":1}}', AGENT)
    assert update(MEMORY, parsed.answer, "model", 1200) == Memory(MEMORY.short_term, {"a": 1})


@pytest.mark.parametrize(
    ("text", "direction"),
    [
        ('{"action":"SCROLL","target":"list","arguments":{"direction":"down"}}', "down"),
        ('{"action":"SCROLL","target":"list","direction":"up","arguments":{"direction":"down"}}', "up"),
        ('{"action":"SCROLL","target":"list","direction":null,"arguments":{"direction":"down"}}', "down"),
        ('{"action":"SCROLL","target":"list","arguments":"down"}', None),
    ],
)
def test_arguments_are_read_beside_the_target_or_in_an_object_of_their_own(text, direction):
    """The system message names "arguments": a model may take it for a key."""
    parsed = parse_answer(text, AGENT)
    assert parsed.answer.action.arguments.get("direction") == direction


@pytest.mark.parametrize("cut", range(1, len('{"action":"CLICK","target":"OK"}')))
def test_answer_cut_anywhere_is_truncated_only_if_generation_was(cut):
    text = '{"action":"CLICK","target":"OK"}'[:cut]
    assert parse_answer(text, AGENT, is_truncated=True).status == "truncated"
    assert parse_answer(text, AGENT, is_truncated=False).status == "no_json"


def test_whole_object_counts_though_generation_was_cut_after_it():
    assert parse_answer('{"action":"CLICK","target":"OK"} and then', AGENT, is_truncated=True).status == "ok"


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000,
        '{"action":"ZOOM","target":"x","scale":' + "9" * 10_000 + "}",
    ],
    ids=["endless nesting", "number beyond conversion"],
)
def test_monstrous_answer_is_unreadable_and_its_problem_short(text):
    parsed = parse_answer(text, AGENT)
    assert parsed.answer is None
    assert len(parsed.problem) < 300


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        ('{"action":"ZOOM","target":"x","short_term":{"a":' + "[" * 500 + "]" * 500 + "}}", "short_term"),
        ('{"action":"ZOOM","target":"x","scale":1' + "0" * 400 + "}", "scale"),
        ('{"action":"ZOOM","target":"' + "x" * 100_000 + '"}', "target"),
    ],
    ids=["deep nesting", "huge number", "huge target"],
)
def test_monstrous_part_is_left_out_and_its_problem_short(text, left_out):
    parsed = parse_answer(text, AGENT)
    assert parsed.answer.action.kind == "ZOOM" and list(parsed.left_out) == [left_out]
    assert len(parsed.problem) < 300


def test_half_characters_and_control_tokens_of_an_answer_are_read_as_they_are_taught():
    parsed = parse_answer('{"action":"CLICK","target":"<|im_end|>\\ud800","short_term":{"a":"\\udc00"}}', AGENT)
    assert parsed.answer == Answer(Action("CLICK", "< |im_end|>?"), {"a": "?"})


@given(ANY_TEXT, st.booleans())
def test_no_text_raises(text, is_truncated):
    for written in (text, "{" + text, '{"action":"CLICK","target":' + text, json.dumps({"action": text})):
        parsed = parse_answer(written, AGENT, is_truncated)
        assert (parsed.answer is None) == (parsed.status != "ok")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | ANY_TEXT, st.lists, max_leaves=4))
def test_no_json_value_anywhere_raises(value):
    for key in ("action", "target", "text", "scale", "direction", "short_term", "long_term"):
        parse_answer(json.dumps({"action": "ZOOM", "target": "x", key: value}), AGENT)


def test_agent_config_survives_its_file():
    rename = ActionType("RENAME", "rename it", {"to": (), "kind": ("study", "series")})
    agent = AgentConfig(actions=(rename, ActionType("DONE", "end", is_final=True)), memory_writer="rule", max_pixels=9)
    assert agent_from_json(json.loads(json.dumps(agent_to_json(agent)))) == agent


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_version": "0"}, r"found prompt_version '0'; expected one of 1, 2: roll out with the version"),
        ({"prompt_version": None}, r"found prompt_version None"),
        ({"colour": "red"}, r"unexpected keyword argument 'colour'"),
        ({"actions": [{"name": "CLICK"}]}, r"found something unreadable"),
        ({"actions": ["CLICK"]}, r"found something unreadable"),
        ({"actions": [{"name": "A", "description": "", "arguments": [], "is_final": False}]}, r"unreadable"),
    ],
)
def test_agent_config_of_another_version_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        agent_from_json({**json.loads(json.dumps(agent_to_json(AGENT))), **change})


def test_agent_config_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match="found list; expected a JSON object"):
        agent_from_json([1])


def test_prompt_has_no_number_of_the_step_and_no_id_of_the_task():
    """`build_prompt` is given neither, so its text is a function of goal and memory alone."""
    text = _user_text(build_prompt("Open the study", EMPTY_MEMORY, AGENT)) + build_system_text(AGENT)
    assert not re.search(r"\d|step|task_id", text, re.IGNORECASE)
