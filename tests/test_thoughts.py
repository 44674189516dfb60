"""Thinking variants: an answer is taught, asked for and served behind the same empty thought."""

import json
import shutil

import pytest
import torch
from conftest import ROOT
from PIL import Image
from trajectory_samples import TINY_AGENT
from transformers import AutoModelForImageTextToText, AutoTokenizer

from eval.policies.hf import ModelPolicy
from eval.policies.policy import StepRequest
from sft.answers import parse_answer
from sft.batches.collator import PackingCollator, PaddingCollator, check_answer_only_labels
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_step_rows
from sft.memory import EMPTY_MEMORY
from sft.models.chat_template import close_thought
from sft.models.processors import load_processor, save_processor

BUDGET = (TINY_AGENT.min_pixels, TINY_AGENT.max_pixels)
INSTRUCT = "{{- '<|im_start|>assistant\\n' }}"
CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
SWITCH = """{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}
        {{- '<think>\\n' }}
    {%- endif %}"""
FORMS = {
    "always": "{{- '<|im_start|>assistant\\n<think>\\n' }}",
    "switch": SWITCH,
    "no line break": "{{- '<|im_start|>assistant\\n<think>' }}",
    "plain text": "{{- '<|im_start|>assistant\\n' }}<think>\n",
}


def write_checkpoint(source, folder, form):
    """Copy a tiny checkpoint and let its template open a thought."""
    shutil.copytree(source, folder)
    template = folder / "chat_template.jinja"
    written = template.read_text()
    assert INSTRUCT in written
    template.write_text(written.replace(INSTRUCT, form))
    return folder


@pytest.fixture(params=FORMS)
def checkpoint(request, tiny_checkpoints, tmp_path):
    return write_checkpoint(tiny_checkpoints["qwen3_vl"], tmp_path / "thinking", FORMS[request.param])


def test_answer_is_taught_and_asked_for_behind_the_same_empty_thought(checkpoint, tasks):
    encoder = StepEncoder(load_processor(checkpoint, *BUDGET), TINY_AGENT)
    rows = list(build_step_rows(tasks[:1], "tasks.csv", encoder, show_progress=False).dataset)
    assert check_answer_only_labels(encoder, rows) == rows[0]["completion"] + "<|im_end|>"
    prompt = encoder.build_prompt(tasks[0].instruction, EMPTY_MEMORY, tasks[0].steps[0].image_path)
    assert prompt.text.endswith(CLOSED) and prompt.text.count("think>") == 2
    assert rows[0]["prompt"] == prompt.text
    policy = ModelPolicy(None, encoder)
    loaded = policy.screenshots.load([tasks[0].steps[0].image_path])
    asked = policy._encode(prompt, tasks[0].steps[0].image_path, next(iter(loaded.values()))).ids
    for collate in (PaddingCollator(encoder), PackingCollator(encoder)):
        batch = collate(rows[:1])
        n_prompt = int((batch["labels"][0] != -100).nonzero()[0])
        assert batch["input_ids"][0, :n_prompt].tolist() == asked


def test_server_that_is_given_the_saved_folder_asks_alike(checkpoint, tasks, tmp_path):
    """vLLM renders the messages by the folder's template; so do processors that are opened again."""
    processor = load_processor(checkpoint, *BUDGET)
    prompt = StepEncoder(processor, TINY_AGENT).build_prompt("Open it", EMPTY_MEMORY, tasks[0].steps[0].image_path)
    save_processor(processor, tmp_path / "saved")
    served = AutoTokenizer.from_pretrained(tmp_path / "saved")
    messages = json.loads(json.dumps(prompt.messages))
    assert served.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == prompt.text
    again = load_processor(tmp_path / "saved", *BUDGET)
    assert again.chat_template == processor.chat_template


def test_closed_prompt_is_the_one_that_the_template_has_for_no_thought(tiny_checkpoints, tmp_path):
    folder = write_checkpoint(tiny_checkpoints["qwen3_vl"], tmp_path / "switch", SWITCH)
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    published = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    ours = load_processor(folder, *BUDGET).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours == published


def test_template_that_opens_no_thought_stays_as_it_is(tiny_checkpoints):
    thinking = "qwen3_5_moe"  # the one family here whose published template opens a thought
    assert "<think>" in (tiny_checkpoints[thinking] / "chat_template.jinja").read_text(encoding="utf-8")
    for folder in [*(f for name, f in tiny_checkpoints.items() if name != thinking), ROOT / "demo/base"]:
        written = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        assert load_processor(folder, *BUDGET).chat_template.rstrip("\n") == written.rstrip("\n")


@pytest.mark.parametrize(
    ("generation_prompt", "closing"),
    [
        ("assistant\n<think>\n", "\\n</think>\\n\\n"),
        ("assistant\n<think>", "\\n\\n</think>\\n\\n"),
        ("[THINK]", "\\n\\n[/THINK]\\n\\n"),
        ("◁think▷", "\\n\\n◁/think▷\\n\\n"),
        ("<|begin_of_thought|>", "\\n\\n<|end_of_thought|>\\n\\n"),
        ('<thinking effort="low">\n', "\\n</thinking>\\n\\n"),
    ],
)
def test_thought_is_closed_by_its_own_tag(generation_prompt, closing):
    assert (
        close_thought("T\n", generation_prompt) == "T{% if add_generation_prompt %}{{ '" + closing + "' }}{% endif %}"
    )


@pytest.mark.parametrize("prompt", ["assistant\n", "<think>\n\n</think>\n\n", "<think>\nso", "", "```\n{"])
def test_prompt_without_an_open_thought_needs_none(prompt):
    assert close_thought("T", prompt) == "T"


def test_answer_held_to_the_schema_stands_behind_the_thought(tiny_checkpoints, tmp_path):
    pytest.importorskip("xgrammar")
    folder = write_checkpoint(tiny_checkpoints["qwen3_vl"], tmp_path / "thinking", FORMS["always"])
    Image.effect_noise((320, 192), 50).convert("RGB").save(tmp_path / "0.png")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = StepEncoder(load_processor(folder, *BUDGET), TINY_AGENT)
    policy = ModelPolicy(model, encoder, is_constrained=True)
    raw = policy.answer([StepRequest("t", 0, "Open it", EMPTY_MEMORY, tmp_path / "0.png")])[0]
    assert raw.prompt_text.endswith(CLOSED) and raw.text.startswith('{"action":')
    assert parse_answer(raw.text, TINY_AGENT, raw.finish_reason == "length").status in ("ok", "truncated")
