"""Which steps are packed together in an epoch. Knows token counts only: nothing of text, images or models."""

import random
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from sft.errors import UserError


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step costs in tokens: `n_prefix` for what steps on its screenshot share, `n_own` for the rest."""

    image: str
    n_prefix: int
    n_own: int


class PackSampler:
    """Batch sampler whose batches are packs: lists of row indices that fit into `tokens_per_batch` when packed.

    Every step is in exactly one pack of an epoch. Packs are drawn anew each epoch from seed and epoch alone, so a
    resumed run sees the same ones; their number is the same in every epoch and a multiple of `n_ranks`, and packs
    that ranks work on at the same time have about the same number of tokens. The largest pack of all comes first in
    the first epoch, so that a budget the memory cannot hold shows at once.
    """

    N_TRIALS = 8

    def __init__(self, sizes: Sequence[StepSize], tokens_per_batch: int, seed: int, n_ranks: int = 1):
        longest = max(s.n_prefix + s.n_own for s in sizes)
        if longest > tokens_per_batch:
            raise UserError(
                f"tokens_per_batch: found {tokens_per_batch}, but the longest step has {longest} tokens; "
                "expected at least that many"
            )
        if len(sizes) < n_ranks:
            raise UserError(f"found {len(sizes)} training steps for {n_ranks} processes; expected at least one each")
        self.sizes, self.tokens_per_batch, self.seed, self.n_ranks = sizes, tokens_per_batch, seed, n_ranks
        self._epoch = 0
        most = max(len(self._fill(random.Random(f"{seed}/{trial}"))) for trial in range(self.N_TRIALS))
        self._n_packs = min(-(-most // n_ranks) * n_ranks, len(sizes) // n_ranks * n_ranks)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose packs are drawn next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._n_packs

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan(self._epoch))

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the packs of an epoch, in the order in which they are trained on."""
        rng = random.Random(f"{self.seed}/{epoch}")
        packs = self._fill(rng)
        for _ in range(self.N_TRIALS):
            if len(packs) <= self._n_packs:
                break
            packs = self._fill(rng)
        packs = self._adjust(packs)
        packs.sort(key=self.count_tokens, reverse=True)
        rounds = [packs[i : i + self.n_ranks] for i in range(0, len(packs), self.n_ranks)]
        rest = rounds[1:] if epoch == 0 else rounds
        rng.shuffle(rest)
        rounds = rounds[:1] + rest if epoch == 0 else rest
        return [pack for packs_of_ranks in rounds for pack in packs_of_ranks]

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
        while len(packs) < self._n_packs:
            largest = max((p for p in packs if len(p) > 1), key=self.count_tokens)
            packs.remove(largest)
            packs += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
        while len(packs) > self._n_packs:
            packs.sort(key=self.count_tokens)
            packs[:2] = [packs[0] + packs[1]]
        return packs
