"""Which steps are one batch, packed or padded, in an epoch. Knows token counts only: nothing of text or models."""

import random
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from sft.errors import UserError


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step costs in tokens: `n_prefix` for what steps with its `image` share, `n_own` for the rest.

    `image` names the screenshot and, where prompts show them, its elements.
    """

    image: str
    n_prefix: int
    n_own: int


def count_batches(n_batches: int, n_rows: int, n_ranks: int, accumulation: int) -> int:
    """Return the number of batches of an epoch, at least `n_batches` where rows allow it.

    Every optimiser step is full where there are rows enough; else processes have as many batches each.

    Raises:
        UserError: fewer rows than processes.
    """
    if n_rows < n_ranks:
        raise UserError(f"found {n_rows} steps for {n_ranks} processes; expected at least one each")
    for multiple in (n_ranks * accumulation, n_ranks):
        rounded = -(-n_batches // multiple) * multiple
        if rounded <= n_rows:
            return rounded
    return n_rows // n_ranks * n_ranks


class _EpochSampler:
    """Batch sampler that plans one epoch at a time; `_n_batches` is the same in every epoch."""

    _n_batches: int
    _epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches are drawn next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan(self._epoch))

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch, in the order in which they are trained on."""
        raise NotImplementedError


class PaddedSampler(_EpochSampler):
    """Batch sampler of padded batches: at most `batch_size` rows each, every row in exactly one batch of an epoch.

    Stock samplers repeat rows, or drop some, where the last batches are too few for all processes. Here batches
    differ by one row at most, and their number fills every optimiser step, as in `PackSampler`.
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int, n_ranks: int = 1, accumulation: int = 1):
        self.n_rows, self.seed = n_rows, seed
        self._n_batches = count_batches(-(-n_rows // batch_size), n_rows, n_ranks, accumulation)

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch, in the order in which they are trained on."""
        rows = list(range(self.n_rows))
        random.Random(f"{self.seed}/{epoch}").shuffle(rows)
        bounds = [i * self.n_rows // self._n_batches for i in range(self._n_batches + 1)]
        return [rows[start:end] for start, end in zip(bounds, bounds[1:])]


class PackSampler(_EpochSampler):
    """Batch sampler whose batches are packs: lists of row indices that fit into `tokens_per_batch` when packed.

    Every step is in exactly one pack of an epoch. Packs are drawn anew each epoch from seed and epoch alone, so a
    resumed run sees the same ones; their number is the same in every epoch and fills every optimiser step (`n_ranks`
    times `accumulation` packs, of about the same number of tokens) where there are steps enough. The packs of an
    optimiser step are the same however they are spread over processes and accumulation. The largest pack of all
    comes first in the first epoch, so that a budget the memory cannot hold shows at once.

    Raises:
        UserError: a step is longer than `tokens_per_batch`, or there are fewer steps than processes.
    """

    N_TRIALS = 8

    def __init__(
        self, sizes: Sequence[StepSize], tokens_per_batch: int, seed: int, n_ranks: int = 1, accumulation: int = 1
    ):
        longest = max(s.n_prefix + s.n_own for s in sizes)
        if longest > tokens_per_batch:
            raise UserError(
                f"tokens_per_batch: found {tokens_per_batch}, but the longest step has {longest} tokens; "
                "expected at least that many"
            )
        self.sizes, self.tokens_per_batch, self.seed = sizes, tokens_per_batch, seed
        self.packs_per_step = n_ranks * accumulation
        most = max(len(self._fill(random.Random(f"{seed}/{trial}"))) for trial in range(self.N_TRIALS))
        self._n_batches = count_batches(most, len(sizes), n_ranks, accumulation)

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the packs of an epoch, in the order in which they are trained on."""
        rng = random.Random(f"{self.seed}/{epoch}")
        packs = self._fill(rng)
        for _ in range(self.N_TRIALS):
            if len(packs) <= self._n_batches:
                break
            packs = self._fill(rng)
        packs = self._adjust(packs)
        packs.sort(key=self.count_tokens, reverse=True)
        rounds = [packs[i : i + self.packs_per_step] for i in range(0, len(packs), self.packs_per_step)]
        last = rounds.pop() if len(rounds[-1]) < self.packs_per_step else []  # a step that is not full ends the epoch
        n_fixed = 1 if epoch == 0 else 0
        rest = rounds[n_fixed:]
        rng.shuffle(rest)
        rounds = [*rounds[:n_fixed], *rest, last]
        return [pack for packs_of_step in rounds for pack in packs_of_step]

    def count_tokens(self, pack: Sequence[int]) -> int:
        """Count the tokens of a pack: each screenshot's prefix once, every step's own tokens."""
        prefixes = {self.sizes[i].image: self.sizes[i].n_prefix for i in pack}
        return sum(prefixes.values()) + sum(self.sizes[i].n_own for i in pack)

    @cached_property
    def packing_factor(self) -> float:
        """How many times fewer tokens the first epoch has than its steps one by one."""
        n_alone = sum(size.n_prefix + size.n_own for size in self.sizes)
        return n_alone / sum(self.count_tokens(pack) for pack in self.plan(0))

    def _fill(self, rng: random.Random) -> list[list[int]]:
        """Put groups of steps on one screenshot, in random order, each into the fullest pack that still has room."""
        groups = self._group(rng)
        packs: list[list[int]] = []
        room: list[tuple[int, int]] = []  # (tokens left, pack), sorted
        for group in groups:
            n_tokens = self.count_tokens(group)
            at = bisect_left(room, (n_tokens, -1))
            if at == len(room):
                packs.append(group)
                insort(room, (self.tokens_per_batch - n_tokens, len(packs) - 1))
            else:
                left, pack = room.pop(at)
                packs[pack] = packs[pack] + group
                insort(room, (left - n_tokens, pack))
        return packs

    def _group(self, rng: random.Random) -> list[list[int]]:
        """Group steps by screenshot, in random order, split where a group alone exceeds the budget."""
        by_image: dict[str, list[int]] = defaultdict(list)
        for index, size in enumerate(self.sizes):
            by_image[size.image].append(index)
        groups: list[list[int]] = []
        for indices in by_image.values():
            rng.shuffle(indices)
            group: list[int] = []
            n_tokens = n_prefix = self.sizes[indices[0]].n_prefix
            for index in indices:
                if group and n_tokens + self.sizes[index].n_own > self.tokens_per_batch:
                    groups.append(group)
                    group, n_tokens = [], n_prefix
                group.append(index)
                n_tokens += self.sizes[index].n_own
            groups.append(group)
        rng.shuffle(groups)
        return groups

    def _adjust(self, packs: list[list[int]]) -> list[list[int]]:
        """Split the largest or join the smallest packs until there are as many as in every other epoch."""
        while len(packs) < self._n_batches:
            largest = max((p for p in packs if len(p) > 1), key=self.count_tokens)
            packs.remove(largest)
            packs += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
        while len(packs) > self._n_batches:
            packs.sort(key=self.count_tokens)
            packs[:2] = [packs[0] + packs[1]]
        return packs
