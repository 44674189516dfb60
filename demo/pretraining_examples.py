"""Pre-training examples: conversations about screens and practice steps, to padded batches. Knows no optimiser."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from demo.copying import build_copying
from demo.planning import PlanMaker, build_planning
from demo.practice import build_step, generate_task, generate_task_on, remember
from demo.pretraining_pairs import Screen, build_chat, name_usable_elements
from sft.agent import AgentConfig
from sft.batches.collator import pad
from sft.batches.packing import IGNORED_LABEL
from sft.data.screenshots import open_screenshot
from sft.prompts import Message

MAX_LABEL_CHARS = 24


@dataclass(frozen=True)
class Example:
    """A conversation; the loss is on the assistant's turns. `image` is the screenshot of its one image part."""

    messages: Sequence[Message]
    image: Path | None = None


class ExampleMaker:
    """Makes up examples without end from a seed.

    `vocabulary` are the tokenizer's words: whatever it can write is copied somewhere.
    """

    def __init__(self, screens: Sequence[Screen], vocabulary: Sequence[str], seed: int):
        self.screens, self.rng = screens, random.Random(seed)
        self.labels = sorted({e.name for screen in screens for e in screen.elements})
        self.words = sorted({word.strip() for word in vocabulary if word.strip().isalnum()})
        self.short_labels = [x for x in self.labels if len(x) <= MAX_LABEL_CHARS]
        self.plans = PlanMaker(self.short_labels, self.words)
        applications = {screen.application for screen in screens}
        self._labels_of = {
            name: {e.name for s in screens if s.application == name for e in s.elements} & set(self.short_labels)
            for name in applications
        }

    def make_text(self, copying: float, planning: float) -> Example:
        """Make an exercise without a screenshot: copying with the given probability, else planning or practice.

        `planning` is its share in what is not copying.
        """
        rng = self.rng
        kind = rng.random()
        if kind < copying:
            return Example(build_copying(rng, self.short_labels, self.words))
        if kind < copying + (1 - copying) * planning:
            return Example(build_planning(rng, self.plans, AgentConfig()))
        labels = self.short_labels if rng.random() < 0.7 else self.words
        return Example(self._as_messages(*build_step(rng, generate_task(rng, labels), AgentConfig()), has_image=False))

    def make_with_screen(self, practice: float) -> Example:
        """Make a practice step on a screen with the given probability, else questions about one."""
        if self.rng.random() < practice:
            return self.make_step_on_screen()
        screen = self.rng.choice(self.screens)
        return Example(build_chat(self.rng, screen, self.labels, n_questions=6), screen.image)

    def make_step_on_screen(self) -> Example:
        """Make a practice step on a screen that shows its element; two in five come with a memory that is wrong.

        What an agent remembers of its own steps is not always true: it has to read the goal and the screen.
        """
        rng, agent = self.rng, AgentConfig()
        screen = rng.choice(self.screens)
        here = name_usable_elements(screen, MAX_LABEL_CHARS)
        if not here:
            return self.make_step_on_screen()
        elsewhere = sorted(self._labels_of[screen.application] - {e.name for e in screen.elements})
        task, step = generate_task_on(rng, here, elsewhere)
        memory = None
        if rng.random() < 0.4:
            other = generate_task(rng, elsewhere) if rng.random() < 0.5 else task
            memory = remember(other, rng.randrange(len(other.answers)), agent)
        return Example(self._as_messages(*build_step(rng, task, agent, step, memory), has_image=True), screen.image)

    def _as_messages(self, prompt: list[Message], answer: str, has_image: bool) -> list[Message]:
        """Return the whole conversation, or its text alone without system message and image part."""
        system, user = prompt
        content = [part for part in user["content"] if has_image or part["type"] == "text"]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        return [system, *turns] if has_image else turns


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
        """Build a right-padded batch, of the shapes that `sft.batches.collator` documents."""
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
