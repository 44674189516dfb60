"""Pre-training examples: conversations about screens and practice steps, to padded batches. Knows no optimiser."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from demo.practice import build_step, generate_task
from demo.pretraining_pairs import Screen, build_chat
from sft.collator import pad
from sft.packing import IGNORED_LABEL
from sft.prompts import AgentConfig, Message
from sft.screenshots import open_screenshot

MAX_LABEL_CHARS = 24


@dataclass(frozen=True)
class Example:
    """A conversation; the loss is on the assistant's turns. `image` is the screenshot of its one image part."""

    messages: Sequence[Message]
    image: Path | None = None


class ExampleMaker:
    """Makes up examples without end from a seed.

    Practice tasks act on short element labels and on single words of the vocabulary, so that every token is copied
    somewhere.
    """

    def __init__(self, screens: Sequence[Screen], vocabulary: Sequence[str], seed: int):
        self.screens, self.rng = screens, random.Random(seed)
        self.labels = sorted({e.name for screen in screens for e in screen.elements})
        words = {word.strip() for word in vocabulary if word.strip().isalnum()}
        self.short_labels = [x for x in self.labels if len(x) <= MAX_LABEL_CHARS] + sorted(words)

    def make_practice(self, progress: float) -> Example:
        """Make one practice step. The first tenth of the training is one plan item and the bare action: copying."""
        rng = self.rng
        if progress < 0.1:
            task = generate_task(rng, self.short_labels, max_items=1)
            return Example(self._as_messages(*build_step(rng, task, AgentConfig(memory_writer="rule")), False, False))
        task = generate_task(rng, self.short_labels)
        prompt, answer = build_step(rng, task, AgentConfig())
        is_whole = rng.random() < 0.3
        image = rng.choice(self.screens).image if is_whole else None
        return Example(self._as_messages(prompt, answer, is_whole, is_whole), image)

    def make_screen_chat(self) -> Example:
        """Make questions about one screen."""
        screen = self.rng.choice(self.screens)
        return Example(build_chat(self.rng, screen, self.labels, n_questions=6), screen.image)

    def _as_messages(self, prompt: list[Message], answer: str, has_system: bool, has_image: bool) -> list[Message]:
        system, user = prompt
        content = [part for part in user["content"] if has_image or part["type"] == "text"]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        return [system, *turns] if has_system else turns


class ExampleEncoder:
    """Turns examples into padded batches, images processed once."""

    def __init__(self, processor: Any):
        self.processor, self.tokenizer = processor, processor.tokenizer
        self._answer_start = self.tokenizer.encode("<|im_start|>assistant\n")
        self._pixels: dict[Path, tuple[torch.Tensor, torch.Tensor]] = {}

    def encode(self, example: Example) -> tuple[list[int], list[int]]:
        """Return token ids and labels; labels are -100 outside the assistant's words and their end-of-turn token."""
        text = self.processor.apply_chat_template(example.messages, tokenize=False)
        if example.image is not None:
            n_tokens = int(self._load_pixels(example.image)[1].prod()) // self.processor.image_processor.merge_size**2
            text = text.replace(self.processor.image_token, self.processor.image_token * n_tokens)
        ids = self.tokenizer.encode(text)
        return ids, self._mask(ids)

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Build a right-padded batch, of the shapes that `sft.collator` documents."""
        encoded = [self.encode(example) for example in examples]
        ids = pad([ids for ids, _ in encoded], self.tokenizer.pad_token_id)
        batch = {
            "input_ids": ids,
            "labels": pad([labels for _, labels in encoded], IGNORED_LABEL),
            "attention_mask": pad([[1] * len(ids) for ids, _ in encoded], 0),
            "mm_token_type_ids": (ids == self.processor.image_token_id).long(),
        }
        if images := [self._load_pixels(e.image) for e in examples if e.image is not None]:
            batch["pixel_values"] = torch.cat([pixels.float() for pixels, _ in images])
            batch["image_grid_thw"] = torch.cat([grid for _, grid in images])
        return batch

    def _mask(self, ids: list[int]) -> list[int]:
        labels, n, is_answer = [], len(self._answer_start), False
        for i, token in enumerate(ids):
            labels.append(token if is_answer else IGNORED_LABEL)
            if ids[i - n + 1 : i + 1] == self._answer_start:
                is_answer = True
            elif token == self.tokenizer.eos_token_id:
                is_answer = False
        return labels

    def _load_pixels(self, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        if path not in self._pixels:
            fields = self.processor.image_processor(open_screenshot(path), return_tensors="pt")
            self._pixels[path] = (fields["pixel_values"].half(), fields["image_grid_thw"])  # half the memory
        return self._pixels[path]
