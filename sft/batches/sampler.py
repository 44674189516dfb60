"""Which steps are one batch, packed or padded, in an epoch. Knows token counts only: nothing of text or models."""

import heapq
import random
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from sft.errors import UserError

# Raised whenever the same seed and epoch give other packs: a checkpoint of another rule's is then not resumed from,
# since the rest of its epoch would repeat some steps and leave others out.
PACKING_RULE = 2


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step costs in tokens, alone and in one sequence with others.

    The `n_system` before the screenshot are the same for all steps, the `n_image` of the screenshot for those on the
    same `image`. `shared` are parts of the prompt behind it that other steps have too, as (name, tokens): steps with
    the same name hold that part once (see `sft.batches.packing.find_shared_parts`). `n_own` is the rest.
    """

    image: str
    n_system: int
    n_image: int
    n_own: int
    shared: tuple[tuple[int, int], ...] = ()

    @property
    def n_tokens(self) -> int:
        """All tokens of the step where it stands alone."""
        return self.n_system + self.n_image + sum(n for _, n in self.shared) + self.n_own


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

    One pack can be longer than `tokens_per_batch`: where every step fills a batch alone and their number is no
    multiple of the processes', which must have as many batches each, the two shortest are put together.

    Raises:
        UserError: a step is longer than `tokens_per_batch`, or there are fewer steps than processes.
    """

    N_TRIALS = 8

    def __init__(
        self, sizes: Sequence[StepSize], tokens_per_batch: int, seed: int, n_ranks: int = 1, accumulation: int = 1
    ):
        longest = max(size.n_tokens for size in sizes)
        if longest > tokens_per_batch:
            raise UserError(
                f"tokens_per_batch: found {tokens_per_batch}, but the longest step has {longest} tokens; "
                "expected at least that many"
            )
        self.sizes, self.tokens_per_batch, self.seed = sizes, tokens_per_batch, seed
        self.packs_per_step = n_ranks * accumulation
        by_image: dict[str, list[int]] = defaultdict(list)
        for index, size in enumerate(sizes):
            by_image[size.image].append(index)
        self._groups = [(self.count_tokens(group), group) for group in by_image.values()]
        self._trials = [f"{seed}/{trial}" for trial in range(self.N_TRIALS)]
        most = max(len(self._fill(random.Random(trial))) for trial in self._trials)
        self._n_batches = count_batches(most, len(sizes), n_ranks, accumulation)

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the packs of an epoch, in the order in which they are trained on."""
        rng = random.Random(f"{self.seed}/{epoch}")
        packs = self._fill(rng)
        for trial in self._trials:
            if len(packs) <= self._n_batches:
                break
            packs = self._fill(random.Random(trial))
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
        """Count the tokens of a pack, as `sft.batches.packing.pack_sequences` makes it: each shared part once."""
        sizes = [self.sizes[i] for i in pack]
        images = {size.image: size.n_image for size in sizes}
        parts = dict(part for size in sizes for part in size.shared)
        return sizes[0].n_system + sum(images.values()) + sum(parts.values()) + sum(size.n_own for size in sizes)

    @cached_property
    def packing_factor(self) -> float:
        """How many times fewer tokens the first epoch has than its steps one by one."""
        n_alone = sum(size.n_tokens for size in self.sizes)
        return n_alone / sum(self.count_tokens(pack) for pack in self.plan(0))

    def _fill(self, rng: random.Random) -> list[list[int]]:
        """Put each group of steps on one screenshot into the fullest pack that still has room."""
        packs: list[list[int]] = []
        with_room: dict[int, list[int]] = defaultdict(list)  # tokens left: packs
        rooms: list[int] = []  # the keys of `with_room`, sorted
        for n_tokens, group in self._group(rng):
            n_added = n_tokens - self.sizes[group[0]].n_system  # a pack has the system message once
            at = bisect_left(rooms, n_added)
            if at == len(rooms):
                packs.append(list(group))
                left, pack = self.tokens_per_batch - n_tokens, len(packs) - 1
            else:
                room = rooms[at]
                left, pack = room - n_added, with_room[room].pop()
                if not with_room[room]:
                    del rooms[at], with_room[room]
                packs[pack] += group
            if left not in with_room:
                insort(rooms, left)
            with_room[left].append(pack)
        return packs

    def _group(self, rng: random.Random) -> list[tuple[int, list[int]]]:
        """Return the steps of each screenshot with their tokens; those beyond the budget split.

        Their order is random, but large groups tend to come first: on the demonstration data packs are fuller then,
        by 2 % of a budget of 1,024 tokens.
        """
        groups: list[tuple[int, list[int]]] = []
        for n_tokens, group in self._groups:
            groups += [(n_tokens, group)] if n_tokens <= self.tokens_per_batch else self._split(group, rng)
        return sorted(groups, key=lambda group: group[0] * rng.uniform(1.0, 1.3), reverse=True)

    def _split(self, indices: Sequence[int], rng: random.Random) -> list[tuple[int, list[int]]]:
        """Cut the steps of one screenshot, in random order, into groups that the budget holds."""
        groups: list[tuple[int, list[int]]] = []
        group: list[int] = []
        n_tokens, held = 0, set[int]()
        for index in rng.sample(indices, len(indices)):
            size = self.sizes[index]
            n_more = size.n_own + sum(n for name, n in size.shared if name not in held)
            if not group or n_tokens + n_more > self.tokens_per_batch:
                group, n_tokens, held = [], 0, set()
                groups.append((0, group))
                n_more = size.n_tokens
            group.append(index)
            n_tokens += n_more
            held.update(name for name, _ in size.shared)
            groups[-1] = (n_tokens, group)
        return groups

    def _adjust(self, packs: list[list[int]]) -> list[list[int]]:
        """Split the largest or join the smallest packs until there are as many as in every other epoch."""
        by_size = [(-self.count_tokens(pack), i) for i, pack in enumerate(packs) if len(pack) > 1]
        heapq.heapify(by_size)
        while len(packs) < self._n_batches:
            _, i = heapq.heappop(by_size)
            half = len(packs[i]) // 2
            packs.append(packs[i][half:])
            packs[i] = packs[i][:half]
            for j in (i, len(packs) - 1):
                if len(packs[j]) > 1:
                    heapq.heappush(by_size, (-self.count_tokens(packs[j]), j))
        while len(packs) > self._n_batches:
            packs.sort(key=self.count_tokens)
            packs[:2] = [packs[0] + packs[1]]
        return packs
