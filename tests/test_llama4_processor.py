"""Llama-4's processor and chat template: reopened as saved, and the assistant's span marked, not a byte changed."""

import json

import pytest
import torch
from PIL import Image
from transformers.models.llama4.processing_llama4 import chat_template

from sft.errors import UserError
from sft.models.llama4_template import mark_assistant_span
from sft.models.processors import load_processor, save_processor


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoints):
    return tiny_checkpoints["llama4"]


def render(template, tokenizer, messages, **arguments):
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **arguments)


MESSAGES = [
    {"role": "system", "content": [{"type": "text", "text": "You operate clinical software.\n"}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Goal: open"}]},
    {"role": "assistant", "content": [{"type": "text", "text": '{"action":"CLICK"}'}]},
    {"role": "user", "content": "Goal: close"},
    {"role": "assistant", "content": '{"action":"COMPLETE"}'},
]


@pytest.mark.parametrize("n_messages", [2, 3, 5])
@pytest.mark.parametrize("with_system", [True, False])
@pytest.mark.parametrize("prompt", [True, False])
def test_marked_template_renders_the_official_bytes(checkpoint, n_messages, with_system, prompt):
    tokenizer = load_processor(checkpoint, 1, 10**6).tokenizer
    messages = MESSAGES[not with_system : n_messages]
    official = render(chat_template, tokenizer, messages, add_generation_prompt=prompt)
    assert render(mark_assistant_span(chat_template), tokenizer, messages, add_generation_prompt=prompt) == official


def test_marked_span_is_the_answers_and_their_ends_of_turn(checkpoint):
    tokenizer = load_processor(checkpoint, 1, 10**6).tokenizer
    encoded = tokenizer.apply_chat_template(
        MESSAGES,
        chat_template=mark_assistant_span(chat_template),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    marked = [i for i, is_marked in zip(encoded["input_ids"], encoded["assistant_masks"]) if is_marked]
    assert tokenizer.decode(marked) == '{"action":"CLICK"}<|eot|>{"action":"COMPLETE"}<|eot|>'


def test_template_of_another_family_is_not_marked(tiny_checkpoints):
    with pytest.raises(UserError, match="found one that is not Llama-4's"):
        mark_assistant_span((tiny_checkpoints["qwen3_vl"] / "chat_template.jinja").read_text())


def test_saved_processor_reopens_with_equal_inputs_and_the_official_class_names(checkpoint, tmp_path):
    processor = load_processor(checkpoint, 1, 5 * 56**2)
    save_processor(processor, tmp_path)
    fields = json.loads((tmp_path / "processor_config.json").read_text())
    assert fields["processor_class"] == "Llama4Processor"
    assert fields["image_processor"]["image_processor_type"] == "Llama4ImageProcessor"
    assert fields["image_processor"]["max_patches"] == 5
    image = Image.effect_noise((320, 200), 60).convert("RGB")
    before, after = (
        p(text=["<|image|>Goal"], images=[image], return_tensors="pt")
        for p in (processor, load_processor(tmp_path, 1, 5 * 56**2))
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
