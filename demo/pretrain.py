r"""Pre-train the demo's base model from random weights, on the CPU, and write it to demo/base.

python -m demo.pretrain --output_dir STAGE_1
python -m demo.pretrain --output_dir STAGE_2 --start_from STAGE_1 --steps 1000 --text_batch 20 --copying 0.6 0.4 \
    --learning_rate 1.5e-3 --seed 1
python -m demo.pretrain --output_dir STAGE_3 --start_from STAGE_2 --steps 900 --screen_batch 4 --copying 0.3 0.2 \
    --planning 0.3 --learning_rate 1.5e-3 --seed 2
python -m demo.pretrain --output_dir STAGE_4 --start_from STAGE_3 --steps 700 --text_batch 26 --screen_batch 1 \
    --copying 0.1 0.1 --planning 0.88 --learning_rate 1.5e-3 --seed 3 --threads 1
python -m demo.pretrain --output_dir STAGE_5 --start_from STAGE_4 --steps 1150 --text_batch 24 --screen_batch 1 \
    --copying 0.06 0.06 --planning 0.9 --learning_rate 5e-4 --seed 4 --threads 1
python -m demo.pretrain --output_dir STAGE_6 --start_from STAGE_5 --steps 1100 --text_batch 24 --screen_batch 2 \
    --copying 0.06 0.06 --planning 0.85 --learning_rate 5e-4 --seed 5 --threads 1
python -m demo.pretrain --output_dir STAGE_7 --start_from STAGE_6 --steps 1500 --text_batch 24 --screen_batch 2 \
    --copying 0.06 0.06 --planning 0.85 --learning_rate 5e-4 --seed 6 --threads 1
python -m demo.pretrain --output_dir demo/base --start_from STAGE_7 --steps 1500 --text_batch 24 --screen_batch 2 \
    --copying 0.06 0.06 --planning 0.85 --learning_rate 5e-4 --seed 7 --threads 1

demo/base was made in these eight stages. After the first the model planned but copied badly, which is what the second
is for; the third has more practice steps. The last five practise planning: after the third the base had one first
plan of the 42 validation goals right. The first three were made with fewer clauses, and the fourth with more prompts
that hold a memory and more answers in the agent's format than `demo.planning` makes now.

`pretraining.json` in the output folder says what was read, with hashes, and what each stage took.

The program reads screenshots of training tasks and the elements on them, and makes up exercises. The model never sees
a goal or an answer of a recorded task; only its vocabulary is taken from the training tasks' text.
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
from transformers import AutoModelForImageTextToText, PreTrainedModel

from demo.pretraining_examples import Example, ExampleEncoder, ExampleMaker
from demo.pretraining_pairs import Element, Screen
from demo.tiny_qwen3vl import SPECIAL_TOKENS, TinySize, build_model, build_tokenizer, save_checkpoint
from sft.agent import AgentConfig
from sft.batches.packing import IGNORED_LABEL
from sft.data.screenshots import hash_screenshot
from sft.models.processors import load_processor
from sft.prompts import build_system_text

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
    tie_embeddings=True,  # as in Qwen3-VL-2B and 4B; copying a token is then one skill instead of one a token
)
RECORD_NAME = "pretraining.json"
POOL_BATCHES = 8
BLANK = "\u0120"  # how byte-level vocabularies write a blank
MIN_PIXELS, MAX_PIXELS = 65_536, 98_304  # 12 x 7 tokens for a screenshot of 1280x800


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    screens, texts = load_training_split(DATA)
    inputs = describe_inputs(screens, texts)
    tokenizer = build_tokenizer(texts, SIZE.vocab)
    if args.start_from:
        model = AutoModelForImageTextToText.from_pretrained(args.start_from, dtype=torch.float32)
        stages = json.loads((args.start_from / RECORD_NAME).read_text(encoding="utf-8"))["stages"]
    else:
        model, stages = build_model(tokenizer, "qwen3_vl", SIZE, args.seed), []
        relate_word_starts(model.get_input_embeddings().weight, tokenizer)
    save_checkpoint(args.output_dir, model, tokenizer, "qwen3_vl")
    encoder = ExampleEncoder(load_processor(args.output_dir, MIN_PIXELS, MAX_PIXELS))
    vocabulary = [tokenizer.decode([i]) for i in range(len(tokenizer) - len(SPECIAL_TOKENS))]
    examples = ExampleMaker(screens, vocabulary, args.seed)
    started = time.perf_counter()
    losses = train(model, encoder, examples, args)
    seconds = time.perf_counter() - started
    model.to(torch.bfloat16)
    save_checkpoint(args.output_dir, model, tokenizer, "qwen3_vl")
    arguments = {name: value for name, value in vars(args).items() if name not in ("output_dir", "start_from")}
    stage = {**arguments, "seconds": round(seconds), "final_loss": round(sum(losses[-50:]) / 50, 4)}
    record = {"parameters": sum(p.numel() for p in model.parameters()), "stages": [*stages, stage], **inputs}
    (args.output_dir / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).with_name("base"))
    parser.add_argument("--start_from", type=Path, help="the output folder of an earlier stage")
    parser.add_argument("--steps", type=int, default=2600, help="optimiser steps")
    parser.add_argument("--text_batch", type=int, default=14, help="exercises without a screenshot in a step")
    parser.add_argument("--screen_batch", type=int, default=3, help="exercises with a screenshot in a step")
    parser.add_argument(
        "--copying",
        type=float,
        nargs=2,
        default=(0.9, 0.1),
        help="share of copying among exercises without a screenshot: at first, and from half-way on",
    )
    parser.add_argument("--planning", type=float, default=0.6, help="share of planning among the rest of these")
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
    """Train every parameter, linear warm-up and cosine decay; return the loss of each step."""
    model.train()
    optimizers = build_optimizers(model, args.learning_rate)
    losses: list[float] = []
    first, last = args.copying

    def make_text() -> Example:
        return examples.make_text(max(last, first - 2 * (first - last) * len(losses) / args.steps), args.planning)

    def make_with_screen() -> Example:
        return examples.make_with_screen(0.2 + 0.7 * len(losses) / args.steps)

    texts = _iterate_batches(encoder, make_text, args.text_batch)
    screens = _iterate_batches(encoder, make_with_screen, args.screen_batch)
    bar = tqdm(range(args.steps), desc="Pre-training", unit="step")
    for step in bar:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * _schedule(step, args.steps)
        losses.append(0.0)
        for batches, weight in ((texts, 0.5), (screens, 0.5)):
            loss = compute_loss(model, next(batches)) * weight
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}")
    return losses


def build_optimizers(model: PreTrainedModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices and AdamW for the rest, which is embeddings, norms, biases and convolution.

    After 300 steps of copying exercises the loss was 2.16 with Muon at AdamW's rate and tied embeddings, 3.11 with
    AdamW and untied ones.
    """
    is_block_matrix = {n: p.ndim == 2 and ("layers." in n or "blocks." in n) for n, p in model.named_parameters()}
    matrices = [p for n, p in model.named_parameters() if is_block_matrix[n]]
    others = [p for n, p in model.named_parameters() if not is_block_matrix[n]]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, 2 * learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, learning_rate, betas=(0.9, 0.98), weight_decay=0.05),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


@torch.no_grad()
def relate_word_starts(embeddings: torch.Tensor, tokenizer: Any) -> None:
    """Let a word with a leading blank begin near the same word without one; `embeddings`: (vocabulary, hidden).

    A goal says " Layout" and the answer says "Layout": two tokens, which a base of this size would have to learn to
    relate word by word.
    """
    vocabulary = tokenizer.get_vocab()
    blank = embeddings[vocabulary[BLANK]].clone()
    for token, row in vocabulary.items():
        if token.startswith(BLANK) and (plain := vocabulary.get(token[len(BLANK) :])) is not None:
            embeddings[row] = 0.8 * embeddings[plain] + blank + 0.4 * embeddings[row]


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
