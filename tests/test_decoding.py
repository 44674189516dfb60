"""Batched greedy decoding: the answers of the simple loop, whatever is batched, shared or dropped on the way."""

import time
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from PIL import Image
from trajectory_samples import TINY_AGENT
from transformers import AutoModelForImageTextToText
from transformers.cache_utils import DynamicCache, DynamicLayer

from eval.policies import hf
from eval.policies.answer_store import AnswerStore
from eval.policies.decoding import AnswerEnd, read_end_ids
from eval.policies.hf import ModelPolicy
from eval.policies.policy import StepRequest
from eval.policies.prefix_store import PrefixStore
from sft.answers import parse_answer
from sft.batches.encoder import StepEncoder
from sft.memory import EMPTY_MEMORY, Memory
from sft.models.model import find_family, load_model
from sft.models.processors import load_processor
from sft.models.scored_tokens import find_text_model
from sft.recipe.settings import ModelSettings

N_TOKENS = 24


@pytest.fixture
def encoder(checkpoint):
    processor = load_processor(checkpoint, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels)
    return StepEncoder(processor, TINY_AGENT.__class__(**{**TINY_AGENT.__dict__, "max_answer_tokens": N_TOKENS}))


@pytest.fixture
def model(checkpoint):
    settings = ModelSettings(str(checkpoint), dtype="float32", load_in_4bit=False)
    return load_model(settings, find_family(str(checkpoint))).eval()


@pytest.fixture
def stock(checkpoint):
    """The model as transformers has it."""
    return AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """Seven steps on three screenshots of two sizes: shared prefixes, prefixes and prompts of several lengths."""
    folder = tmp_path_factory.mktemp("screens")
    for i, size in enumerate([(320, 192), (320, 192), (192, 256)]):
        Image.effect_noise(size, 40 + 20 * i).convert("RGB").save(folder / f"{i}.png")
    memory = Memory({"last_action": "CLICK"}, {"completed_subtasks": ["CLICK Search"] * 5})
    return [
        StepRequest("t", i, f"Open study {'DOE ' * i}", memory if i % 2 else EMPTY_MEMORY, folder / f"{i % 3}.png")
        for i in range(7)
    ]


def generate_alone(model, encoder, request):
    """Answer one step with the model's own `generate` and position ids: the simple loop."""
    text = encoder.build_prompt(request.instruction, request.memory, request.image_path).text
    batch = encoder.encode_screenshots([request.image_path])
    ids, types = encoder.encode_prompt(text, batch[encoder.layout.grid_name][0].tolist())
    output = model.generate(
        **encoder.layout.pick_inputs(batch),
        **({"mm_token_type_ids": torch.tensor([types])} if encoder.layout.has_token_types else {}),
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=N_TOKENS,
        do_sample=False,
        eos_token_id=model.generation_config.eos_token_id or encoder.tokenizer.eos_token_id,
    )
    return encoder.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)


@pytest.mark.slow
def test_greedy_answers_are_those_of_generate_one_by_one(model, stock, encoder, requests):
    expected = [generate_alone(stock, encoder, request) for request in requests]
    answers = ModelPolicy(model, encoder).answer(requests)
    assert [a.text for a in answers] == expected
    assert len(set(expected)) > 1  # the model tells the steps apart


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["qwen3_vl"], indirect=True)
def test_seconds_of_a_batch_are_shared_out_among_its_answers(model, encoder, requests):
    policy, started = ModelPolicy(model, encoder), time.perf_counter()
    seconds = [answer.latency_s for answer in policy.answer(requests)]
    assert 0 < sum(seconds) <= time.perf_counter() - started
    assert len(seconds) == 7 and max(seconds) == min(seconds)


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch_they_are_in(model, encoder, requests):
    policy = ModelPolicy(model, encoder)
    together = [a.text for a in policy.answer(requests)]
    assert [policy.answer([request])[0].text for request in requests] == together
    assert [a.text for a in policy.answer(requests[::-1])][::-1] == together


@pytest.mark.slow
def test_the_last_layer_computes_what_is_asked_for_alone(model, encoder, requests, monkeypatch):
    layers, widths, logits = find_text_model(model).layers, [], []
    layers[0].post_attention_layernorm.register_forward_hook(
        lambda module, args, output: widths.append([output.shape[1]])
    )
    layers[-1].post_attention_layernorm.register_forward_hook(
        lambda module, args, output: widths[-1].append(output.shape[1])
    )
    model.register_forward_hook(lambda module, args, output: logits.append(output.logits))
    stock = type(layers[-1])
    answers = [a.text for a in ModelPolicy(model, encoder).answer(requests)]
    alone, n_all, n_asked = logits[:], *zip(*widths)
    logits.clear(), widths.clear()
    with monkeypatch.context() as patch:
        patch.setattr(hf, "asked_alone", lambda _: nullcontext())
        assert [a.text for a in ModelPolicy(model, encoder).answer(requests)] == answers
    assert [tuple(n) for n in widths] == [(n, n) for n in n_all], "without, every layer computes every token"
    for some, whole in zip(alone, logits, strict=True):
        torch.testing.assert_close(some, whole, rtol=1e-5, atol=1e-5)
    assert list(n_asked[1:]) == [values.shape[1] for values in alone[1:]], "the system message has no mask to cut"
    assert sum(n_asked[1:]) < sum(n_all[1:]) / 2
    assert type(layers[-1]) is stock, "outside, the layer is the stock one"


class Guesses(AnswerStore):
    """Guesses what a test says, by the prompt and the number of tokens so far."""

    def __init__(self, guesses):
        super().__init__()
        self.guesses = guesses

    def draft(self, prompt, answer, limit):
        guess = self.guesses.get(tuple(prompt))
        return guess(answer)[: max(limit, 0)] if guess else []


def record_answers(policy, requests):
    """Answer without guesses; return the tokens of each answer by its prompt's own tokens."""
    recorded = {}

    class Recorder(Guesses):
        def draft(self, prompt, answer, limit):
            recorded[tuple(prompt)] = answer
            return []

    policy._store = Recorder({})
    return policy.answer(requests), recorded


def guess_right(ids, seed):
    return lambda answer: ids[len(answer) :]


def guess_wrong(ids, seed):
    return lambda answer: [(token + 1) % 512 for token in ids[len(answer) :]]


def guess_right_then_wrong(ids, seed):
    """Right for a few tokens, of another number in each row and call, then wrong."""

    def guess(answer):
        n = (seed * 5 + len(answer) * 3) % 7
        return [*ids[len(answer) : len(answer) + n], *[seed % 512] * 3]

    return guess


@pytest.mark.slow
@pytest.mark.parametrize("guess", [guess_right, guess_wrong, guess_right_then_wrong])
def test_answers_are_the_same_whatever_is_guessed(model, encoder, requests, guess):
    many = [*requests, *requests, *requests[:2]]
    policy = ModelPolicy(model, encoder)
    expected, recorded = record_answers(policy, many)
    calls = []
    model.register_forward_pre_hook(lambda _, __, kwargs: calls.append(kwargs["input_ids"].shape), with_kwargs=True)
    for batch_size in (1, 3, 16):
        policy = ModelPolicy(model, encoder)
        policy._store = Guesses({own: guess(ids, seed) for seed, (own, ids) in enumerate(recorded.items())})
        calls.clear()
        for start in range(0, 16, batch_size):
            answers = policy.answer(many[start : start + batch_size])
            for ours, plain in zip(answers, expected[start:]):
                assert (ours.text, ours.n_answer_tokens, ours.finish_reason) == (
                    plain.text,
                    plain.n_answer_tokens,
                    plain.finish_reason,
                )
    if guess is guess_right:  # system message, screenshots, and 24 tokens: 13, then 11; or one by one
        has_states = "linear_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ())
        assert len(calls) == (26 if has_states else 4)


@pytest.mark.slow
def test_what_a_rollout_wrote_before_is_not_computed_token_by_token_again(model, encoder, requests):
    policy = ModelPolicy(model, encoder)
    sizes = []
    model.register_forward_pre_hook(lambda _, __, kwargs: sizes.append(kwargs["input_ids"].shape), with_kwargs=True)
    first = policy.answer(requests)
    n_first = len(sizes)
    assert [a.text for a in policy.answer(requests)] == [a.text for a in first]
    has_states = "linear_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ())
    assert (len(sizes) - n_first < n_first) is not has_states


@pytest.mark.parametrize("n_beyond", [1, 3, 8])
def test_guesses_stay_before_the_border_of_the_attention(tiny_checkpoints, requests, n_beyond):
    """Llama-4: a rejected guess takes columns too, and those of the answers must have room."""
    processor = load_processor(tiny_checkpoints["llama4"], TINY_AGENT.min_pixels, TINY_AGENT.max_pixels)
    encoder = StepEncoder(processor, replace(TINY_AGENT, max_answer_tokens=N_TOKENS))
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoints["llama4"], dtype=torch.float32).eval()
    expected, recorded = record_answers(ModelPolicy(model, encoder), requests[:1])
    (prompt,) = [encoder.build_prompt(r.instruction, r.memory, r.image_path) for r in requests[:1]]
    model.config.text_config.attention_chunk_size = prompt.n_tokens + N_TOKENS + n_beyond
    widths = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["attention_mask"].shape[1]), with_kwargs=True
    )
    for guess in (guess_right, guess_wrong, guess_right_then_wrong):
        policy = ModelPolicy(model, encoder)
        policy._store = Guesses({own: guess(ids, 3) for own, ids in recorded.items()})
        assert [a.text for a in policy.answer(requests[:1])] == [a.text for a in expected]
        assert max(widths) < model.config.text_config.attention_chunk_size


@pytest.mark.slow
def test_what_an_earlier_batch_has_run_of_a_prefix_is_not_run_again(model, encoder, requests):
    """Neither the system message nor a screenshot."""
    expected = [ModelPolicy(model, encoder).answer([request])[0].text for request in requests]
    n_images, n_systems, policy = [], [], ModelPolicy(model, encoder)

    def count(_, __, kwargs):
        if "pixel_values" in kwargs:
            n_images.append(len(kwargs["input_ids"]))
        elif kwargs["past_key_values"] is None:
            n_systems.append(len(kwargs["input_ids"]))

    model.register_forward_pre_hook(count, with_kwargs=True)
    batches = [requests[:1], requests[3:5], requests[:3], requests[4:]]  # screenshots 0; 0, 1; 0, 1, 2; 1, 2, 0
    answers = [a.text for batch in batches for a in policy.answer(batch)]
    order = [0, 3, 4, 0, 1, 2, 4, 5, 6]
    assert answers == [expected[i] for i in order]
    assert sum(n_images) == (3 if policy._prefixes._kept else 9)
    assert n_systems == ([1] if policy._prefixes._kept else [1] * len(batches))
    is_kept = {type(layer) for layer in DynamicCache(config=model.config.get_text_config()).layers} == {DynamicLayer}
    assert bool(policy._prefixes._kept) is is_kept


def test_prefixes_that_were_used_longest_ago_make_room():
    cache = DynamicCache()
    cache.update(torch.ones(2, 1, 5, 4), torch.ones(2, 1, 5, 4), 0)  # 32 bytes a token
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    store = PrefixStore(capacity=8 * 32)
    store.add(["five", "three"], cache, mask)
    store.shrink(["five", "three"])
    assert "five" in store and "three" in store
    built, columns = store.build_cache(["three", "five"])
    assert columns.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert built.layers[0].keys[0, 0, :, 0].tolist() == [0, 0, 1, 1, 1]
    store.shrink(["five"])
    cache.crop(-3)
    store.add(["two", "other"], cache, mask[:, 3:])
    store.shrink(["two"])
    assert [key for key in ("five", "three", "two", "other") if key in store] == ["two", "other"]
    assert not store.has_room(9)


class NeverEnding(AnswerEnd):
    """Ends no answer and notes each one's ids as they grow."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.seen = []

    def is_reached(self, ids):
        self.seen.append(list(ids))
        return False


def test_a_shared_prefix_is_run_once(model, encoder, requests):
    seen, policy = [], ModelPolicy(model, encoder)
    policy._end = NeverEnding(encoder.tokenizer)
    model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    policy.answer([requests[0], requests[3], requests[6]])  # all on screenshot 0
    # system message, screenshot, the prompts' own tokens, then the answers
    assert [rows for rows, _ in seen[:4]] == [1, 1, 3, 3]


def test_elements_of_a_screenshot_are_run_with_it_where_they_are_equal(model, encoder, requests):
    """Once for all steps that show them, and the answers are those of each step alone."""
    encoder.agent = replace(encoder.agent, use_grounding=True)
    elements = [{"name": f"Study {i}", "bbox": [i, 2, i + 9, 12]} for i in range(20)]
    asked = [replace(requests[i], elements=elements[:n]) for i, n in ((0, 20), (3, 20), (6, 3))]  # on one screenshot
    seen = []
    alone = [ModelPolicy(model, encoder).answer([request])[0].text for request in asked]
    model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    assert [answer.text for answer in ModelPolicy(model, encoder).answer(asked)] == alone
    assert [rows for rows, _ in seen[:3]] == [1, 2, 3]
    assert seen[1][1] > 20 * 10 > seen[2][1]


def test_an_answer_that_is_complete_leaves_the_batch(model, encoder, requests):
    policy = ModelPolicy(model, encoder)
    policy._end = never = NeverEnding(encoder.tokenizer)
    policy._store, policy._prefixes = Guesses({}), PrefixStore(capacity=0)  # one token a call
    whole = policy.answer(requests[:3])
    answers = never.seen[-3:]
    n = next(n for n in range(2, N_TOKENS) if answers[0][:n] not in (answers[1][:n], answers[2][:n]))

    class AfterFirst(AnswerEnd):
        """Ends the first answer of the batch only, by what its first tokens are."""

        def is_reached(self, ids):
            return list(ids) == answers[0][:n]

    policy._end = AfterFirst(encoder.tokenizer)
    sizes = []
    model.register_forward_pre_hook(lambda _, __, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    again = policy.answer(requests[:3])
    assert (again[0].finish_reason, again[0].n_answer_tokens) == ("stop", n)
    assert [a.text for a in again[1:]] == [a.text for a in whole[1:]]
    n_prefill = len(sizes) - (N_TOKENS - 1)
    assert sizes[n_prefill:] == [3] * (n - 1) + [2] * (N_TOKENS - n)


@pytest.mark.parametrize(
    ("text", "n_chars"),
    [
        ('{"action":"CLICK","target":"OK"} and more', 32),
        ('{"action":"TEXT","text":"}{"} tail', 29),
        ('Answer: {"long_term":{"a":[{}]}}}}', 32),
        ('{"a":' + "[" * 5000 + "}", None),
        ("no object } at all", None),
        ('The set {a,b}. {"action":"CLICK","target":"OK"} and more', 47),
        ('{"action":"CLICK","short_term":{"a":1},"long_term":{"b":{}}', None),
        ('{"action":"CLICK","target":"}', None),
    ],
)
def test_an_answer_ends_where_its_first_object_closes(encoder, text, n_chars):
    end = AnswerEnd(encoder.tokenizer)
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    reached = next((n for n in range(1, len(ids) + 1) if end.is_reached(ids[:n])), None)
    if n_chars is None:
        assert reached is None
        return
    kept = encoder.tokenizer.decode(ids[:reached])
    assert kept.startswith(text[:n_chars]) and len(kept) < n_chars + 3  # a token may hold more than the brace
    assert parse_answer(kept, TINY_AGENT) == parse_answer(text, TINY_AGENT)  # nothing that follows would be read


def test_end_of_turn_ends_an_answer(encoder):
    assert AnswerEnd(encoder.tokenizer).is_reached([encoder.tokenizer.eos_token_id])


# As published with Qwen3-VL-8B-Instruct (and with Qwen2.5-VL-7B-Instruct, other numbers).
PUBLISHED = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def test_published_sampling_defaults_do_not_touch_greedy_answers(model, encoder, requests):
    expected = [a.text for a in ModelPolicy(model, encoder).answer(requests)]
    model.generation_config.update(**PUBLISHED)
    assert [a.text for a in ModelPolicy(model, encoder).answer(requests)] == expected


def test_every_end_that_the_model_names_ends_an_answer(model, encoder, requests):
    """Qwen's generation config names <|endoftext|> beside <|im_end|>; an answer that it ends is no cut one."""
    policy = ModelPolicy(model, encoder)
    policy._end = never = NeverEnding(encoder.tokenizer)
    whole, ids = policy.answer(requests[:1])[0], never.seen[-1]
    n = next(n for n in range(2, N_TOKENS) if ids[n] not in ids[:n])
    model.generation_config.eos_token_id = [encoder.tokenizer.eos_token_id, ids[n]]
    ended = ModelPolicy(model, encoder).answer(requests[:1])[0]
    assert (whole.finish_reason, whole.n_answer_tokens) == ("length", N_TOKENS)
    assert (ended.finish_reason, ended.n_answer_tokens) == ("stop", n + 1)


@pytest.mark.parametrize(("named", "expected"), [(None, []), (7, [7]), ([7, 9], [7, 9])])
def test_ends_of_a_generation_config_are_one_many_or_none(model, named, expected):
    model.generation_config.eos_token_id = named
    assert read_end_ids(model) == expected
    assert read_end_ids(None) == []


def test_a_prompt_that_is_too_long_is_an_error_of_its_step_alone(model, encoder, requests):
    long = StepRequest("t", 9, "word " * 4000, EMPTY_MEMORY, requests[0].image_path)
    answers = ModelPolicy(model, encoder).answer([requests[0], long, requests[1]])
    assert [a.error is None for a in answers] == [True, False, True]
    assert "max_prompt_tokens" in answers[1].error


def test_prompts_that_padding_would_push_across_a_border_of_the_attention_are_answered_apart(
    tiny_checkpoints, requests
):
    """Llama-4: each prompt alone is shorter than a chunk, the padded batch is not."""
    processor = load_processor(tiny_checkpoints["llama4"], TINY_AGENT.min_pixels, TINY_AGENT.max_pixels)
    encoder = StepEncoder(processor, replace(TINY_AGENT, max_answer_tokens=N_TOKENS))
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoints["llama4"], dtype=torch.float32).eval()
    chosen = [requests[1], requests[2], requests[5]]
    prompts = [encoder.build_prompt(r.instruction, r.memory, r.image_path) for r in chosen]
    model.config.text_config.attention_chunk_size = max(p.n_tokens for p in prompts) + N_TOKENS + 1
    expected = [generate_alone(model, encoder, request) for request in chosen]
    rows = []
    model.register_forward_pre_hook(lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    assert [a.text for a in ModelPolicy(model, encoder).answer(chosen)] == expected
    assert max(rows) < len(chosen)
