"""Shared-prefix packing: several token sequences to one, every common prefix held once. Knows no files or models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

IGNORED_LABEL = -100


@dataclass(frozen=True)
class TokenSequence:
    """One step as tokens, as it would stand alone.

    `ids`, `labels`, `types`: (T,) int64; `labels` is -100 up to `n_prompt` and the ids after it; `types` is 1 on image
    tokens. `weights`: (T,) float32, each token's weight in the loss. `positions`: (axes, T) int64, three axes of
    Qwen-VL, one of Llama-4. `image_key` identifies the screenshot: two sequences with one key show the same pixels.
    """

    ids: np.ndarray
    labels: np.ndarray
    types: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    n_prompt: int
    image_key: int


@dataclass(frozen=True)
class PackedSequence:
    """Many sequences merged into one of T tokens: a tree of shared prefixes, written branch after branch.

    `ids`, `labels`, `types`, `weights`: (T,); `positions`: (axes, T). `subtree_end`: (T,), token q may see token k
    just when k <= q < subtree_end[k]. `image_sources` names, in the order in which their tokens stand, the sequences
    whose screenshot has to be given to the model.
    """

    ids: np.ndarray
    labels: np.ndarray
    types: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    subtree_end: np.ndarray
    image_sources: list[int]


def pack_sequences(sequences: Sequence[TokenSequence]) -> PackedSequence:
    """Merge sequences so that whatever prefix two of them share is computed once.

    Sorted by their tokens, each sequence shares its longest prefix with the one before it; the rest is appended as a
    branch. A branch sees its prefix and itself, and its positions continue as if it stood alone, so that loss and
    gradients are those of the separate sequences. A shared prefix never reaches a prompt's last token: the first token
    of a branch is then never a label, and the usual shift of labels by one is right.
    """
    keys = [np.where(s.types == 1, -1 - s.image_key, s.ids) for s in sequences]
    order = sorted(range(len(sequences)), key=lambda i: keys[i].tolist())
    n_total = sum(len(s.ids) for s in sequences)
    parts: list[tuple[int, int]] = []  # (sequence, its first token that is not shared)
    subtree_end = np.empty(n_total, dtype=np.int64)
    image_sources: list[int] = []
    slots, n_tokens, previous = np.empty(0, dtype=np.int64), 0, None
    for i in order:
        sequence = sequences[i]
        shared = 0
        if previous is not None:
            limit = min(sequence.n_prompt, sequences[previous].n_prompt) - 1
            shared = _common_prefix(keys[i][:limit], keys[previous][:limit])
        n_new = len(sequence.ids) - shared
        new_slots = np.arange(n_tokens, n_tokens + n_new)
        slots = np.concatenate([slots[:shared], new_slots])
        n_tokens += n_new
        subtree_end[slots] = n_tokens
        parts.append((i, shared))
        if sequence.types[shared:].any():
            image_sources.append(i)
        previous = i
    return PackedSequence(
        ids=np.concatenate([sequences[i].ids[start:] for i, start in parts]),
        labels=np.concatenate([sequences[i].labels[start:] for i, start in parts]),
        types=np.concatenate([sequences[i].types[start:] for i, start in parts]),
        weights=np.concatenate([sequences[i].weights[start:] for i, start in parts]),
        positions=np.concatenate([sequences[i].positions[:, start:] for i, start in parts], axis=1),
        subtree_end=subtree_end[:n_tokens],
        image_sources=image_sources,
    )


def find_shared_parts(prompts: Sequence[np.ndarray], names: Iterator[int]) -> list[tuple[tuple[int, int], ...]]:
    """Return, for each prompt, the parts of it that others begin with too, as (name, tokens), from the first token on.

    Any of these prompts in one packed sequence hold each part once: together they have as many tokens there as their
    distinct parts, and what of each belongs to no part. `names` gives every part a number of its own.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].tolist())
    pairs = [(prompts[i], prompts[j]) for i, j in zip(order, order[1:])]
    # shared[k]: tokens that k and k + 1, as sorted, have in common; never a prompt's last one, as in `pack_sequences`
    shared = np.array([_common_prefix(a[:n], b[:n]) for a, b in pairs for n in [min(len(a), len(b)) - 1]], np.int64)
    parts: list[tuple[tuple[int, int], ...]] = [()] * len(prompts)
    waiting: list[tuple[int, int, int, tuple[tuple[int, int], ...]]] = [(0, len(order) - 1, 0, ())]
    while waiting:
        first, last, depth, above = waiting.pop()  # the prompts `first` to `last` begin with `depth` tokens in common
        if first == last:
            parts[order[first]] = above
            continue
        within = shared[first:last]
        n_common = int(within.min())
        if n_common > depth:
            above = (*above, (next(names), n_common - depth))
        ends = [*(first + np.flatnonzero(within == n_common)).tolist(), last]
        starts = [first, *(end + 1 for end in ends[:-1])]
        waiting += [(start, end, n_common, above) for start, end in zip(starts, ends)]
    return parts


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(np.argmax(differs)) if differs.any() else n
