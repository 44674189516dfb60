"""Tiny checkpoints: the real classes open them, the tokenizer is Qwen's kind, the template writes Qwen's turns."""

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from demo.tiny_qwen3vl import SPECIAL_TOKENS, TinySize, build_tiny_checkpoint, build_tokenizer

TEXTS = ["Goal: open the study of DOE^JANE", '{"action":"CLICK","target":"Layout"}']


@pytest.mark.parametrize(
    ("family", "model_class"),
    [("qwen3_vl", Qwen3VLForConditionalGeneration), ("qwen2_5_vl", Qwen2_5_VLForConditionalGeneration)],
)
def test_real_model_class_opens_the_folder_without_missing_weights(tmp_path, family, model_class):
    folder = build_tiny_checkpoint(tmp_path, TEXTS, family)
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert model.config.text_config.vocab_size >= len(AutoTokenizer.from_pretrained(folder))


def test_same_seed_gives_the_same_weights(tmp_path):
    folders = [build_tiny_checkpoint(tmp_path / name, TEXTS, seed=3) for name in "ab"]
    first, second = (Qwen3VLForConditionalGeneration.from_pretrained(f).state_dict() for f in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_widths_are_multiples_of_the_nf4_block(tmp_path):
    model = Qwen3VLForConditionalGeneration.from_pretrained(build_tiny_checkpoint(tmp_path, TEXTS))
    assert all(p.numel() % 64 == 0 for p in model.parameters() if p.ndim == 2)


def test_tokenizer_gives_back_any_text():
    tokenizer = build_tokenizer(TEXTS, 512)
    for text in ("CompressedSamples^MR1, 1.2.840", "naïve 患者 \n\t emoji 🙂", "  two  spaces"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_are_one_token_and_follow_the_learned_vocabulary():
    tokenizer = build_tokenizer(TEXTS, 512)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(ids[0], ids[0] + len(SPECIAL_TOKENS)))
    assert ids[-1] == len(tokenizer) - 1
    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos_token_id]


def test_vocabulary_stays_within_its_size():
    assert len(build_tokenizer([f"{a}{b}{a}" for a in "abcdefghij" for b in "klmnopqrst"] * 9, 300)) <= 300


def test_generation_stops_at_end_of_turn(tmp_path):
    folder = build_tiny_checkpoint(tmp_path, TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = GenerationConfig.from_pretrained(folder).eos_token_id
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_end|>", "<|endoftext|>"]


def test_chat_template_writes_qwen_turns(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(build_tiny_checkpoint(tmp_path, TEXTS))
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be exact."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Goal: x"}]},
    ]
    expected = (
        "<|im_start|>system\nBe exact.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Goal: x<|im_end|>\n"
    )
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == expected + "<|im_start|>assistant\n"
    answered = [*messages, {"role": "assistant", "content": "{}"}]
    assert (
        tokenizer.apply_chat_template(answered, tokenize=False) == expected + "<|im_start|>assistant\n{}<|im_end|>\n"
    )


def test_size_sets_the_architecture(tmp_path):
    size = TinySize(layers=3, vision_depth=3, deepstack=(0, 1))
    config = Qwen3VLForConditionalGeneration.from_pretrained(build_tiny_checkpoint(tmp_path, TEXTS, size=size)).config
    assert config.text_config.num_hidden_layers == 3
    assert list(config.vision_config.deepstack_visual_indexes) == [0, 1]
    assert config.text_config.rope_parameters["mrope_interleaved"] is True
