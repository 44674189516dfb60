"""Pre-train the demo's base model from random weights, on the CPU, and write it to demo/base.

python -m demo.pretrain [--steps N] [--output_dir DIR]

It reads screenshots of training tasks and the elements on them, and makes up practice tasks. The model never sees a
goal or an answer of a recorded task; only its vocabulary is taken from the training tasks' text.
"""

import argparse
import csv
import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from demo.practice import build_step, generate_task
from demo.pretraining_pairs import Element, Screen, build_chat
from demo.tiny_qwen3vl import SPECIAL_TOKENS, TinySize, build_model, build_tokenizer, save_checkpoint
from sft.collator import pad
from sft.packing import IGNORED_LABEL
from sft.processors import load_processor
from sft.prompts import AgentConfig, Message, build_system_text
from sft.screenshots import hash_screenshot, open_screenshot

DATA = Path(__file__).with_name("data")
SIZE = TinySize(
    vocab=1536,
    hidden=192,
    layers=4,
    heads=6,
    kv_heads=2,
    head_dim=32,
    intermediate=512,
    vision_hidden=128,
    vision_depth=4,
    vision_heads=4,
    vision_intermediate=256,
    vision_grid=32,
    deepstack=(1,),
)
MAX_LABEL_CHARS = 24
POOL_BATCHES = 8
MIN_PIXELS, MAX_PIXELS = 65_536, 98_304  # 12 x 7 tokens for a screenshot of 1280x800


@dataclass(frozen=True)
class Example:
    """A conversation; the loss is on the assistant's turns. `image` is the screenshot of its one image part."""

    messages: Sequence[Message]
    image: Path | None = None


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    screens, texts = load_training_split(DATA)
    inputs = describe_inputs(screens, texts)
    tokenizer = build_tokenizer(texts, SIZE.vocab)
    model = build_model(tokenizer, "qwen3_vl", SIZE, args.seed)
    save_checkpoint(args.output_dir, model, tokenizer, "qwen3_vl")
    encoder = ExampleEncoder(load_processor(args.output_dir, MIN_PIXELS, MAX_PIXELS))
    vocabulary = [tokenizer.decode([i]) for i in range(len(tokenizer) - len(SPECIAL_TOKENS))]
    examples = ExampleMaker(screens, vocabulary, args.seed)
    started = time.perf_counter()
    losses = train(model, encoder, examples, args)
    seconds = time.perf_counter() - started
    model.to(torch.bfloat16)
    save_checkpoint(args.output_dir, model, tokenizer, "qwen3_vl")
    numbers = {"steps": args.steps, "seconds": round(seconds), "final_loss": round(sum(losses[-50:]) / 50, 4)}
    n_parameters = sum(p.numel() for p in model.parameters())
    record = {
        **numbers,
        "parameters": n_parameters,
        "arguments": {**vars(args), "output_dir": str(args.output_dir)},
        **inputs,
    }
    (args.output_dir / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).with_name("base"))
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps")
    parser.add_argument("--practice_batch", type=int, default=12, help="practice steps in an optimiser step")
    parser.add_argument("--screen_batch", type=int, default=4, help="screens asked about in an optimiser step")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def load_training_split(folder: Path) -> tuple[list[Screen], list[str]]:
    """Read the screens that training tasks show, and the training text for the tokenizer."""
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    application = {row["Image_id"]: row["Application"] for row in rows}
    screens = []
    for line in (folder / "elements.jsonl").read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        if fields["image"] in application and fields["elements"]:
            elements = tuple(Element(e["role"], e["name"], tuple(e["bbox"])) for e in fields["elements"])
            screens.append(Screen(folder / fields["image"], application[fields["image"]], elements))
    texts = [text for row in rows for text in (row["Instruction"], row["Output"])]
    texts += [e.name for screen in screens for e in screen.elements]
    return screens, [*texts, *[build_system_text(AgentConfig())] * 20]


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


def train(
    model: PreTrainedModel, encoder: ExampleEncoder, examples: ExampleMaker, args: argparse.Namespace
) -> list[float]:
    """Train every parameter with AdamW, linear warm-up and cosine decay; return the loss of each step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    losses: list[float] = []
    practice = _iterate_batches(encoder, lambda: examples.make_practice(len(losses) / args.steps), args.practice_batch)
    screens = _iterate_batches(encoder, examples.make_screen_chat, args.screen_batch)
    bar = tqdm(range(args.steps), desc="Pre-training", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * _schedule(step, args.steps)
        losses.append(0.0)
        for batches, weight in ((practice, 0.6), (screens, 0.4)):
            loss = compute_loss(model, next(batches)) * weight
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}")
    return losses


def compute_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean loss of the labelled tokens; the head is applied to those only."""
    labels = batch.pop("labels")[:, 1:]
    hidden = model.model(**batch).last_hidden_state[:, :-1]
    is_labelled = labels != IGNORED_LABEL
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[is_labelled]), labels[is_labelled])


def _iterate_batches(
    encoder: ExampleEncoder, make: Callable[[], Example], batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches without end, each of examples of about the same length; a pool at a time, in random order."""
    while True:
        pool = sorted((make() for _ in range(POOL_BATCHES * batch_size)), key=lambda e: len(encoder.encode(e)[0]))
        for i in torch.randperm(POOL_BATCHES).tolist():
            yield encoder.collate(pool[i * batch_size : (i + 1) * batch_size])


def _schedule(step: int, n_steps: int, n_warmup: int = 100) -> float:
    return min(1.0, (step + 1) / n_warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / n_steps)))


def describe_inputs(screens: Sequence[Screen], texts: Sequence[str]) -> dict[str, Any]:
    """Return the hashes of all that is read, after checking that nothing of it is a validation or test task's own.

    Raises:
        AssertionError: a goal of such a task is among the texts, or a screenshot that no training task shows.
    """
    goals, shown = {}, {}
    for name in ("train", "val", "test"):
        with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        goals[name], shown[name] = {row["Instruction"] for row in rows}, {row["Image_id"] for row in rows}
    seen = {str(screen.image.relative_to(DATA)): hash_screenshot(screen.image) for screen in screens}
    assert not (goals["val"] | goals["test"]) & set(texts), "a goal of a validation or test task would be read"
    assert set(seen) <= shown["train"], "a screenshot that no training task shows would be used"
    return {
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "pillow")},
        "read": {"train.csv": hashlib.sha256((DATA / "train.csv").read_bytes()).hexdigest()},
        "screens": seen,
    }


if __name__ == "__main__":
    main()
