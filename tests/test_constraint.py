"""Constrained decoding: an untrained model, held to the schema, writes answers that can be read."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from trajectory_samples import TINY_AGENT
from transformers import AutoModelForImageTextToText

from eval.policies.answer_store import AnswerStore
from eval.policies.constrained import build_answer_schema
from eval.policies.hf import ModelPolicy
from eval.policies.policy import StepRequest
from sft.actions import ActionType
from sft.agent import AgentConfig
from sft.answers import parse_answer
from sft.batches.encoder import StepEncoder
from sft.memory import EMPTY_MEMORY
from sft.models.processors import load_processor

xgrammar = pytest.importorskip("xgrammar")


@pytest.fixture(scope="module")
def agent():
    """Only actions of one argument and no memory: what an untrained model writes soon comes to an end."""
    actions = (
        ActionType("SCROLL", "scroll it", {"direction": ("up", "down")}),
        ActionType("DONE", "end", is_final=True),
    )
    return replace(TINY_AGENT, actions=actions, use_short_term=False, use_long_term=False, max_answer_tokens=64)


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    path = tmp_path_factory.mktemp("screen") / "0.png"
    Image.effect_noise((320, 192), 50).convert("RGB").save(path)
    return [StepRequest("t", i, f"Open study {i}", EMPTY_MEMORY, path) for i in range(3)]


def answer(folder, agent, requests, is_constrained):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = StepEncoder(load_processor(folder, agent.min_pixels, agent.max_pixels), agent)
    return ModelPolicy(model, encoder, is_constrained).answer(requests)


def test_an_untrained_model_writes_the_schema_and_nothing_else(tiny_checkpoints, agent, requests):
    folder = tiny_checkpoints["qwen3_vl"]
    free = answer(folder, agent, requests, False)
    held = answer(folder, agent, requests, True)
    assert all(parse_answer(a.text, agent).answer is None for a in free)
    for raw in held:
        assert raw.text.startswith(('{"action":"SCROLL","target":"', '{"action":"DONE","target":"'))
        if raw.finish_reason == "stop":
            assert json.loads(raw.text)["action"] in ("SCROLL", "DONE")
        else:
            assert parse_answer(raw.text, agent, is_truncated=True).status == "truncated"
    assert "stop" in {raw.finish_reason for raw in held}


def test_constrained_answers_do_not_depend_on_the_batch(tiny_checkpoints, agent, requests):
    folder = tiny_checkpoints["qwen2_5_vl"]
    together = [a.text for a in answer(folder, agent, requests, True)]
    assert [answer(folder, agent, [request], True)[0].text for request in requests] == together


@pytest.mark.parametrize("n_wrong", [0, 1, 3])
def test_guesses_do_not_change_what_the_schema_allows(tiny_checkpoints, agent, requests, n_wrong):
    """Right guesses; right ones with wrong ones behind, which the schema forbids or the model would not choose."""
    folder = tiny_checkpoints["qwen3_vl"]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = StepEncoder(load_processor(folder, agent.min_pixels, agent.max_pixels), agent)
    policy, written, plain = ModelPolicy(model, encoder, is_constrained=True), [], {}

    class Guesses(AnswerStore):
        def draft(self, prompt, answer, limit):
            ids = plain.get(tuple(prompt), ())[len(answer) :]
            n_right = len(answer) % 7 if n_wrong else len(ids)
            wrong = [encoder.tokenizer.eos_token_id, 5, 6][:n_wrong] if plain else []
            return [*ids[:n_right], *wrong][: max(limit, 0)]

        def add(self, answer):
            written.append(answer)

    policy._store = Guesses()
    expected = policy.answer(requests)
    screenshots = policy.screenshots.load(r.image_path for r in requests)
    for request, ids in zip(requests, written, strict=True):
        source = encoder.build_prompt(request.instruction, request.memory, request.image_path)
        prompt = policy._encode(source, 0, screenshots[request.image_path])
        plain[tuple(prompt.ids[prompt.n_prefix :])] = ids
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for ours, theirs in zip(policy.answer(requests), expected, strict=True):
        assert (ours.text, ours.n_answer_tokens, ours.finish_reason) == (
            theirs.text,
            theirs.n_answer_tokens,
            theirs.finish_reason,
        )
    assert len(calls) < max(map(len, written))


ACCEPTED = [
    '{"action":"CLICK","target":"OK","short_term":{},"long_term":{"a":["x",1,{"b":"c","d":[]}],"e":{}}}',
    '{"action":"ZOOM","target":"Image","scale":1.5,"short_term":{},"long_term":{}}',
    '{"action":"TEXT","target":"Name","text":"DOE^J \\"x\\" \\u00e9","short_term":{},"long_term":{}}',
    '{"action":"COMPLETE","target":"","short_term":{},"long_term":{}}',
]
REFUSED = [
    '{"action":"DANCE","target":"OK","short_term":{},"long_term":{}}',
    '{"target":"OK","action":"CLICK","short_term":{},"long_term":{}}',  # action first, so a cut answer still says it
    '{"action":"CLICK","target":"OK"}',
    '{"action":"SCROLL","target":"OK","direction":"sideways","short_term":{},"long_term":{}}',
    '{"action":"CLICK","target":"OK","short_term":[],"long_term":{}}',
    '{"action":"CLICK", "target":"OK","short_term":{},"long_term":{}}',  # a space
]


def _admits(checkpoint, agent, text):
    """Return whether the schema lets an answer through, token by token."""
    from eval.policies.constrained import SchemaConstraint

    processor = load_processor(checkpoint, 16_384, 65_536)
    constraint = SchemaConstraint(processor.tokenizer, build_answer_schema(agent), 512).start(1)
    for token in processor.tokenizer(text, add_special_tokens=False)["input_ids"]:
        logits = torch.zeros(1, 1, 512)
        constraint.mask_logits(logits, [0], [[]])
        if not torch.isfinite(logits[0, 0, token]):
            return False
        constraint.accept(0, token)
    return True


@pytest.mark.parametrize("text", [*ACCEPTED, *REFUSED])
def test_schema_admits_what_can_be_read_and_is_taught(tiny_checkpoints, text):
    assert _admits(tiny_checkpoints["qwen3_vl"], AgentConfig(), text) is (text in ACCEPTED)


def test_action_without_target_is_held_to_the_empty_one(tiny_checkpoints):
    actions = (ActionType("BACK", "go back", takes_target=False), ActionType("CLICK", "press"))
    agent = AgentConfig(actions=actions, memory_writer="rule")
    assert _admits(tiny_checkpoints["qwen3_vl"], agent, '{"action":"BACK","target":""}')
    assert not _admits(tiny_checkpoints["qwen3_vl"], agent, '{"action":"BACK","target":"Menu"}')
    assert _admits(tiny_checkpoints["qwen3_vl"], agent, '{"action":"CLICK","target":"Menu"}')


@pytest.mark.parametrize(
    ("point", "is_admitted"),
    [
        ('"point":[0,1000],', True),
        ('"point":[200,375],', True),
        ("", True),  # as an answer whose row has no box
        ('"point":[200,1001],', False),
        ('"point":[-1,375],', False),
        ('"point":[200.5,375],', False),
        ('"point":[200],', False),
        ('"point":[200,375,1],', False),
        ('"point":["200",375],', False),
        ('"point":[200, 375],', False),  # a space
        ('"point":[200,375],"point":[1,2],', False),
    ],
)
def test_point_is_two_whole_numbers_in_a_thousand_behind_the_target(tiny_checkpoints, point, is_admitted):
    folder, agent = tiny_checkpoints["qwen3_vl"], AgentConfig(points=True, memory_writer="rule")
    written = f'{{"action":"TEXT","target":"Name",{point}"text":"DOE^J"}}'
    assert _admits(folder, agent, written) is is_admitted
    assert not _admits(folder, agent, '{"action":"COMPLETE","target":"","point":[200,375]}')


def test_rule_written_memory_is_not_in_the_schema():
    schema = build_answer_schema(replace(AgentConfig(), memory_writer="rule"))
    assert json.dumps(schema).count("term") == 0


@pytest.mark.parametrize("special", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"])
def test_no_special_token_stands_within_a_string(tiny_checkpoints, special):
    """`<|endoftext|>` would end the answer there, the others be left out when it is read."""
    assert not _admits(tiny_checkpoints["qwen3_vl"], AgentConfig(), '{"action":"CLICK","target":"' + special)
