"""Which part of what a model says is its answer: the same for whoever reads it, and where generation stops."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trajectory_samples import TINY_AGENT

from eval.policies.decoding import AnswerEnd
from sft.agent import AgentConfig
from sft.answers import parse_answer
from sft.json_text import find_object
from sft.models.processors import load_processor

AGENT = AgentConfig()
ZOOM = '{"action":"ZOOM","target":"viewport","short_term":{"last_action":"ZOOM"},"long_term":{}}'
CLICK = '{"action":"CLICK","target":"Layout"}'
ANALYSIS = "<|channel|>analysis<|message|>"

SAID = {
    "object in a thought": f"<think>Maybe {CLICK}? No.</think>\n{ZOOM}",
    "no action in a thought": '<think>Memory is {"last_action":"CLICK"} so far.</think>\n' + ZOOM,
    "broken object in a thought": '<think>the format is {"action": ... } so</think>\n' + ZOOM,
    "object that a thought leaves open": '<think>the format is {"action": "CLICK, hm</think>\n' + ZOOM,
    "other tags": f"<thinking>{CLICK}</thinking>{ZOOM}",
    "a name before the word": f"<antThinking>{CLICK}</antThinking>{ZOOM}",
    "a name space": f"<seed:think>{CLICK}</seed:think>{ZOOM}",
    "two words": f"<inner_monologue>{CLICK}</inner_monologue>{ZOOM}",
    "a plan": f"<plan>{CLICK}</plan>{ZOOM}",
    "spaces in a tag": f"< think >{CLICK}</ think >{ZOOM}",
    "tag with an attribute": f'<reasoning effort="low">{CLICK}</reasoning>{ZOOM}',
    "letter case": f"<Think>{CLICK}</THINK>{ZOOM}",
    "tags in brackets": f"[THINK]{CLICK}[/THINK]{ZOOM}",
    "tags of Kimi": f"◁think▷{CLICK}◁/think▷{ZOOM}",
    "control tokens": f"<|begin_of_thought|>{CLICK}<|end_of_thought|>{ZOOM}",
    "channel of analysis": f"{ANALYSIS}{CLICK}?<|end|><|start|>assistant<|channel|>final<|message|>{ZOOM}",
    "channels that no message ends": f"{ANALYSIS}{CLICK}{ANALYSIS}Or {CLICK}<|channel|>final<|message|>{ZOOM}",
    "call in a channel of its own": f"<|channel|>commentary to=act <|constrain|>json<|message|>{ZOOM}<|call|>",
    "end of a message behind the answer": f"<|channel|>final<|message|>{ZOOM}<|end|>{CLICK}",
    "field of thought": '{"thought":' + CLICK + ',"action":"ZOOM","target":"viewport"}',
    "two thoughts": f"<think>{CLICK}</think> Hm. <think>{CLICK}</think>{ZOOM}",
    "closed once more": f"<think>{CLICK}</think>{ZOOM}</think>",
    "empty thought": f"<think>\n\n</think>\n\n{ZOOM}",
    "thought after the answer": f"{ZOOM}<think>or {CLICK}?",
    "fence": f"```json\n{ZOOM}\n```",
    "fenced example before": f"The answer should look like this example:\n\n```json\n{CLICK}\n```\nHence:\n{ZOOM}",
    "fenced example in a thought": f"<think>for example\n```json\n{CLICK}\n```\n</think>\n```json\n{ZOOM}\n```",
    "fenced example alone": f"As an example of the next action:\n```json\n{ZOOM}\n```",
    "first of two fenced examples": f"An example:\n```json\n{ZOOM}\n```\nAnother example:\n```json\n{CLICK}\n```",
    "fence that is the answer": f"Here it is:\n```json\n{ZOOM}\n```\nAnother: {CLICK}",
    "tool call": f'<tool_call>\n{{"name":"act","arguments":{ZOOM}}}\n</tool_call>',
    "list": f"[{ZOOM}]",
    "list with a trailing comma": f"[{ZOOM},]",
    "doubled": f"{ZOOM}\n{CLICK}",
    "doubled braces": f"{{{ZOOM}}}",
    "broken object first": f'{{"action":"CLICK",}} {ZOOM}',
    "object with single quotes first": "{'action':'CLICK','short_term':" + CLICK + "} " + ZOOM,
    "braces of prose": f"The set {{a,b}} and an open {{ and so {ZOOM}",
    "tag in a text": '{"action":"ZOOM","target":"viewport","note":"</think>","long_term":{}} ' + CLICK,
}
SAID_BY_OTHERS = {  # the prompt opened the thought: not in a prompt of ours
    "thought that the prompt opened": f"Maybe {CLICK}? No.</think>\n{ZOOM}",
    "thought that begins with an object": f"{CLICK}? No.</think>\n{ZOOM}",
    "thought with a broken object": f'the format is {{"action": "CLICK, hm</think>\n{ZOOM}',
}
NOTHING_SAID = {
    "thought without end": (f"<think>Maybe {CLICK}", "the thought <think> does not end"),
    "channel without end": (
        f"<|channel|>analysis<|message|>{CLICK}",
        "the thought <|channel|>analysis<|message|> does",
    ),
    "thought without answer": (f"<think>Maybe {CLICK}</think> I zoom.", "no JSON object"),
    "thought of the prompt without answer": (f"Maybe {CLICK}</think> I zoom.", "no JSON object"),
    "trailing comma": ('{"action":"ZOOM","short_term":' + CLICK + ',"long_term":{},}', "broken JSON: Expecting pro"),
    "invalid escape": (
        '{"action":"TEXT","text":"C:\\data","long_term":{"a":[' + CLICK + "]}}",
        "broken JSON: Invalid",
    ),
    "single quotes": ("{'action':'ZOOM','a':" + CLICK + ",'long_term':{}}", "broken JSON: Expecting property name"),
    "no quotes": ("{action: ZOOM, short_term: " + CLICK + "}", "broken JSON: Expecting property name"),
    "quote in a text": ('{"target":"the 5" view","text":"a } b","a":' + CLICK + "}", "broken JSON: Expecting ',' del"),
    "object in a text": ('{"action":"TEXT","text":"' + CLICK + '","long_term":{}}', "broken JSON: Expecting ',' del"),
    "text of an object": ('"' + ZOOM.replace('"', '\\"') + '"', "broken JSON: Expecting property name"),
    "no end": ('{"action":"ZOOM","short_term":' + CLICK + ',"long_term":{}', "broken JSON: Expecting ',' delimiter"),
    "no colon": ('{"action" "ZOOM","short_term":' + CLICK + "}", "broken JSON: Expecting ':' delimiter"),
    "Python": ('{"action":"ZOOM","scale":None,"short_term":' + CLICK + "}", "broken JSON: Expecting value"),
    "comment": (
        '{"action":"ZOOM", // it\'s "in"\n"short_term":' + CLICK + "}",
        "broken JSON: Expecting property name",
    ),
    "deep nesting": ('{"a":' + "[" * 5000 + CLICK + "]" * 5000 + "}", "broken JSON: "),
}


@pytest.mark.parametrize("text", [*SAID.values(), *SAID_BY_OTHERS.values()], ids=[*SAID, *SAID_BY_OTHERS])
def test_answer_is_the_first_object_that_is_part_of_nothing_else(text):
    parsed = parse_answer(text, AGENT)
    assert (parsed.status, parsed.answer and parsed.answer.action.kind) == ("ok", "ZOOM")
    assert parsed.answer.action.target == "viewport"


@pytest.mark.parametrize(("text", "problem"), NOTHING_SAID.values(), ids=NOTHING_SAID)
def test_part_of_a_thought_or_of_a_broken_object_is_no_answer_and_the_outer_reason_is_told(text, problem):
    parsed = parse_answer(text, AGENT)
    assert (parsed.status, parsed.answer) == ("no_json", None)
    assert parsed.problem.startswith(problem)
    assert parse_answer(text, AGENT, is_truncated=True).status == "truncated"


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoints):
    return load_processor(tiny_checkpoints["qwen3_vl"], TINY_AGENT.min_pixels, TINY_AGENT.max_pixels).tokenizer


def generate(tokenizer, text):
    """Return what is generated of a text before an answer's end is found, and whether one is."""
    end, ids = AnswerEnd(tokenizer), tokenizer(text, add_special_tokens=False)["input_ids"]
    n = next((n for n in range(1, len(ids) + 1) if end.is_reached(ids[:n])), None)
    return tokenizer.decode(ids[:n], skip_special_tokens=True), n is not None


@pytest.mark.parametrize("text", SAID.values(), ids=SAID)
def test_generation_stops_at_the_answer_and_is_read_as_the_whole_text_is(tokenizer, text):
    is_example = text in (SAID["fenced example alone"], SAID["first of two fenced examples"])
    kept, is_ended = generate(tokenizer, text + (" And more." if is_example else " And more {}."))
    assert is_ended is not is_example
    assert parse_answer(kept, AGENT) == parse_answer(text, AGENT)


@pytest.mark.parametrize("text", [text for text, _ in NOTHING_SAID.values()], ids=NOTHING_SAID)
def test_generation_does_not_stop_in_a_thought_or_a_broken_object(tokenizer, text):
    if "</think>" in text and "<think>" not in text:
        text = "<think>" + text  # as our prompts close what they open
    kept, is_ended = generate(tokenizer, text)
    assert not is_ended
    assert parse_answer(kept, AGENT) == parse_answer(text, AGENT)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"name":"act","arguments":{"action":"CLICK","target":"OK"}}', "CLICK"),
        ('{"name":"act","parameters":{"action":"CLICK","target":"OK"}}', "CLICK"),
        ('{"name":"click","arguments":{"target":"OK"}}', "CLICK"),
        ('{"name":"act","arguments":"{\\"action\\":\\"CLICK\\",\\"target\\":\\"OK\\"}"}', "CLICK"),
        ('{"type":"function","function":{"name":"act","arguments":{"action":"CLICK","target":"OK"}}}', "CLICK"),
        ('{"action":"CLICK","target":"OK","name":"act","arguments":{"action":"ZOOM"}}', "CLICK"),
        ('{"name":"act","arguments":{"target":"OK"}}', None),
        ('{"name":"act","arguments":"{broken"}', None),
        ('{"name":"act","arguments":{"action":"left_click","coordinate":[1,2]}}', None),
        ('{"arguments":{"action":"CLICK","target":"OK"}}', None),
    ],
)
def test_tool_call_is_taken_off_the_answer(text, kind):
    parsed = parse_answer(text, AGENT)
    assert parsed.status == ("ok" if kind else "no_action")
    assert kind is None or (parsed.answer.action.kind, parsed.answer.action.target) == (kind, "OK")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"\\ud800"', "[" * 500 + "]" * 500])
def test_value_that_cannot_be_taken_leaves_the_action(value):
    assert parse_answer(f'{{"action":"CLICK","target":"OK","note":{value}}}', AGENT).answer.action.target == "OK"


def test_long_text_without_an_answer_is_searched_in_no_time():
    for text in ("{" * 9_000, '{"a' * 9_000, "<think>" * 9_000, '{"a": "' * 9_000, "``` {,} " * 9_000):
        assert find_object(text).fields is None


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "```", "example", "\n", "{", "}", '"', "'", "a", ":", ",", "1"])
)


@settings(max_examples=400)
@given(PIECES, PIECES)
def test_what_is_generated_later_never_changes_an_object_that_was_found(before, after):
    found = find_object("".join(before), is_whole=False)
    if found.fields is not None:
        assert find_object("".join([*before, *after]), is_whole=False) == found
