"""Copying exercises: questions whose answer stands in the question, word for word. Knows no screens and no actions."""

import random
from collections.abc import Sequence

from demo.practice import pick_label
from sft.prompts import Message

NAMES = ("code", "name", "date", "filter", "note", "word", "value", "label", "field", "page", "user", "file")


def build_copying(rng: random.Random, labels: Sequence[str], words: Sequence[str]) -> list[Message]:
    """Return a question and its answer, a part of the question. `labels` and `words` are what may have to be copied.

    A small model learns to copy from dense practice only, and everything an agent types is copied from its goal.
    """
    items = [_pick_item(rng, labels, words) for _ in range(rng.randint(3, 8))]
    question, answer = rng.choice((_ask_all, _ask_named, _ask_next))(rng, items)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _pick_item(rng: random.Random, labels: Sequence[str], words: Sequence[str]) -> str:
    kind = rng.randrange(3)
    if kind == 0:
        return pick_label(rng, labels)
    return " ".join(rng.choices(words, k=1 if kind == 1 else 3))


def _ask_all(rng: random.Random, items: Sequence[str]) -> tuple[str, str]:
    text = " ".join(items)
    return f"Repeat: {text}", text


def _ask_named(rng: random.Random, items: Sequence[str]) -> tuple[str, str]:
    names = rng.sample(NAMES, len(items))
    i = rng.randrange(len(items))
    listed = "; ".join(f"{name} {item}" for name, item in zip(names, items))
    return f"{listed}. {names[i]}?", items[i]


def _ask_next(rng: random.Random, items: Sequence[str]) -> tuple[str, str]:
    i = rng.randrange(len(items) - 1)
    return f"{' > '.join(items)}. After {items[i]}?", items[i + 1]
