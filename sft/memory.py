"""Which memory is a step shown? That of the answers before it, never its own: for training, rollout and data alike.

Pure functions from memory and answer to memory; knows no files.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sft.actions import Action
from sft.agent import MemoryWriter
from sft.answers import Answer
from sft.json_text import dump_json


@dataclass(frozen=True)
class Memory:
    """What the agent carries from one step to the next. Keys beyond the published ones are kept."""

    short_term: Mapping[str, Any] = field(default_factory=dict)
    long_term: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as results hold it."""
        return {"short_term": dict(self.short_term), "long_term": dict(self.long_term)}


EMPTY_MEMORY = Memory()


def lagged(
    answers: Iterable[Answer | None],
    writer: MemoryWriter,
    budget_chars: int | None,
    before: Memory = EMPTY_MEMORY,
) -> Iterator[Memory]:
    """Yield the memory that each step is shown, and last the one that the last answer leaves.

    Lagged by one: entry t is made of `before` and the answers of steps < t alone, so entry 0 is `before`. An answer is
    asked for only when the memory after it is: a rollout may add to `answers` what the model says to each memory.
    """
    yield (memory := before)
    for answer in answers:
        yield (memory := update(memory, answer, writer, budget_chars))


def written(shown: Sequence[Memory]) -> list[Memory]:
    """Return the memory after each step, where data tells what each step was shown: the inverse of `lagged`.

    Nobody is shown what the last step leaves: it is taken to leave what it was shown, and nothing where it is alone.
    """
    return [*shown[1:], shown[-1] if len(shown) > 1 else EMPTY_MEMORY]


def update(memory: Memory, answer: Answer | None, writer: MemoryWriter, budget_chars: int | None) -> Memory:
    """Return the memory for the next step.

    `writer` "model" takes what the answer carries; a part the answer lacks stays as it was. `writer` "rule" derives it
    from the action alone. `answer` None (unparsable) keeps the memory. The result has at most `budget_chars` of JSON,
    None for any number.
    """
    if answer is None:
        return memory
    if writer == "rule":
        memory = _memory_by_rule(memory, answer.action)
    else:
        short_term = memory.short_term if answer.short_term is None else answer.short_term
        long_term = memory.long_term if answer.long_term is None else answer.long_term
        memory = Memory(short_term, long_term)
    return memory if budget_chars is None else fit_memory(memory, budget_chars)


def fit_memory(memory: Memory, budget_chars: int) -> Memory:
    """Shorten a memory to at most `budget_chars` characters of JSON; the oldest entries go first.

    Lists lose their first items, longest list first; then texts lose their beginning, longest text first; then whole
    keys go, long-term first. Short-term memory and long-term memory share the budget.
    """
    short_term, long_term = dict(memory.short_term), dict(memory.long_term)
    excess = memory_chars(memory) - budget_chars
    if excess > 0:
        excess = _drop_oldest_items(excess, long_term, short_term)
    if excess > 0:
        excess = _cut_longest_texts(excess, long_term, short_term)
    for part in (long_term, short_term):
        for key in list(part):
            if excess <= 0:
                break
            comma = len(part) > 1
            excess -= len(dump_json({key: part.pop(key)})) - 2 + comma
    return Memory(short_term, long_term)


def memory_chars(memory: Memory) -> int:
    """Return the length of the memory as JSON, in characters."""
    return len(dump_json(memory.short_term)) + len(dump_json(memory.long_term))


def _memory_by_rule(memory: Memory, action: Action) -> Memory:
    done = memory.long_term.get("completed_subtasks")
    done = list(done) if isinstance(done, (list, tuple)) else []
    short_term = {"last_action": action.kind, "last_target": action.target}
    return Memory(short_term, {"completed_subtasks": [*done, f"{action.kind} {action.target}".strip()]})


def _drop_oldest_items(excess: int, *parts: dict[str, Any]) -> int:
    """Drop first items, each from the list that is then longest as JSON; return how many characters are still over."""
    keys = [(part, key) for part in parts for key, value in part.items() if isinstance(value, list) and value]
    # an item takes its own characters and a comma; the comma of the last one left was never there
    sizes = [[len(dump_json(item)) + 1 for item in part[key]] for part, key in keys]
    dropped = [0] * len(keys)
    longest = [(-sum(size), i) for i, size in enumerate(sizes)]  # a list before another of its length keeps its place
    heapq.heapify(longest)
    while excess > 0 and longest:
        negative, i = longest[0]
        size = sizes[i][dropped[i]]
        dropped[i] += 1
        is_empty = dropped[i] == len(sizes[i])
        excess -= size - is_empty
        if is_empty:
            heapq.heappop(longest)
        else:
            heapq.heapreplace(longest, (negative + size, i))
    for (part, key), n in zip(keys, dropped):
        part[key] = part[key][n:]
    return excess


def _cut_longest_texts(excess: int, *parts: dict[str, Any]) -> int:
    """Cut the beginnings of texts, longest text first; return how many characters are still over."""
    texts = [(part, key) for part in parts for key, value in part.items() if isinstance(value, str) and value]
    for part, key in sorted(texts, key=lambda text: -len(text[0][text[1]])):
        if excess <= 0:
            break
        kept = part[key][excess:]
        excess -= len(dump_json(part[key])) - len(dump_json(kept))
        part[key] = kept
    return excess
