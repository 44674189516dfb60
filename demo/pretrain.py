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
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from demo.pretraining_examples import Example, ExampleEncoder, ExampleMaker
from demo.pretraining_pairs import Element, Screen
from demo.tiny_qwen3vl import SPECIAL_TOKENS, TinySize, build_model, build_tokenizer, save_checkpoint
from sft.packing import IGNORED_LABEL
from sft.processors import load_processor
from sft.prompts import AgentConfig, build_system_text
from sft.screenshots import hash_screenshot

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
POOL_BATCHES = 8
MIN_PIXELS, MAX_PIXELS = 65_536, 98_304  # 12 x 7 tokens for a screenshot of 1280x800


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
