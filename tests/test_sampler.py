"""Packs of an epoch: every step once, within the budget, the same after a resume."""

import random

import pytest

from sft.batches.sampler import PackSampler, PaddedSampler, StepSize
from sft.errors import UserError


def build_sizes(n_images=40, seed=0):
    rng = random.Random(seed)
    return [
        StepSize(f"image{i}", 300 + 10 * (i % 7), rng.randint(60, 200))
        for i in range(n_images)
        for _ in range(rng.choice([1, 1, 2, 3, 12]))
    ]


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_every_epoch_has_each_step_exactly_once_in_the_same_number_of_packs(n_ranks):
    sizes = build_sizes()
    sampler = PackSampler(sizes, 2000, seed=0, n_ranks=n_ranks)
    for epoch in range(5):
        packs = sampler.plan(epoch)
        assert sorted(i for pack in packs for i in pack) == list(range(len(sizes)))
        assert len(packs) == len(sampler) and len(packs) % n_ranks == 0


def test_packs_stay_within_the_budget_and_are_mostly_full():
    sampler = PackSampler(build_sizes(), 2000, seed=0)
    counts = [sampler.count_tokens(pack) for epoch in range(5) for pack in sampler.plan(epoch)]
    assert max(counts) <= 2000
    assert sum(counts) / len(counts) > 0.85 * 2000


def test_steps_on_one_screenshot_are_together():
    sizes = [StepSize(f"image{i % 5}", 500, 50) for i in range(25)]
    for pack in PackSampler(sizes, 800, seed=0).plan(0):
        assert len({sizes[i].image for i in pack}) == 1 and len(pack) == 5


def test_a_group_larger_than_the_budget_is_split():
    sizes = [StepSize("one", 500, 100) for _ in range(10)]
    packs = PackSampler(sizes, 1000, seed=0).plan(0)
    assert sorted(len(pack) for pack in packs) == [5, 5]


def test_packs_depend_on_seed_and_epoch_alone():
    sizes = build_sizes()
    first, second = PackSampler(sizes, 2000, seed=3), PackSampler(sizes, 2000, seed=3)
    list(first.plan(0))
    assert first.plan(2) == second.plan(2)
    assert first.plan(2) != first.plan(1)
    assert first.plan(2) != PackSampler(sizes, 2000, seed=4).plan(2)
    second.set_epoch(2)
    assert list(second) == first.plan(2)


def test_the_largest_pack_comes_first():
    sampler = PackSampler(build_sizes(), 2000, seed=0)
    counts = [sampler.count_tokens(pack) for pack in sampler.plan(0)]
    assert counts[0] == max(counts)


@pytest.mark.parametrize("seed", range(5))
def test_an_optimiser_step_that_is_not_full_ends_every_epoch(seed):
    """10 packs of one step each, 4 an optimiser step: 4, 4 and 2, and the 2 are the shortest."""
    sizes = [StepSize(f"image{i}", 400, 100 + i) for i in range(10)]
    sampler = PackSampler(sizes, 600, seed=seed, n_ranks=2, accumulation=2)
    for epoch in range(8):
        packs = sampler.plan(epoch)
        steps = [sorted(i for pack in packs[at : at + 4] for i in pack) for at in (0, 4, 8)]
        assert steps[-1] == [0, 1]
        assert sorted(steps[:-1]) == [[2, 3, 4, 5], [6, 7, 8, 9]]


def test_ranks_work_on_packs_of_about_the_same_size_at_the_same_time():
    sampler = PackSampler(build_sizes(200), 2000, seed=0, n_ranks=4)
    counts = [sampler.count_tokens(pack) for pack in sampler.plan(1)]
    waiting = sum(4 * max(counts[i : i + 4]) - sum(counts[i : i + 4]) for i in range(0, len(counts), 4))
    assert waiting / sum(counts) < 0.02


def test_a_step_longer_than_the_budget_is_refused_with_its_length():
    with pytest.raises(UserError, match="tokens_per_batch: found 500, but the longest step has 700 tokens"):
        PackSampler([StepSize("a", 600, 100)], 500, seed=0)


def test_fewer_steps_than_processes_are_refused():
    message = "found 1 steps for 2 processes"
    with pytest.raises(UserError, match=message):
        PackSampler([StepSize("a", 10, 10)], 500, seed=0, n_ranks=2)
    with pytest.raises(UserError, match=message):
        PaddedSampler(1, 4, seed=0, n_ranks=2)


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "accumulation", "sizes"),
    [
        (5, 2, 1, [2, 1, 1, 1]),
        (7, 4, 1, [4, 3]),
        (9, 2, 2, [2, 1, 1, 1, 1, 1, 1, 1]),
        (6, 1, 2, [1, 1, 1, 1, 1, 1]),  # too few rows for two full optimiser steps of four: the second has two batches
    ],
)
def test_padded_batches_hold_each_row_once_and_both_processes_have_as_many(n_rows, batch_size, accumulation, sizes):
    sampler = PaddedSampler(n_rows, batch_size, seed=0, n_ranks=2, accumulation=accumulation)
    for epoch in range(3):
        batches = sampler.plan(epoch)
        assert sorted(map(len, batches), reverse=True) == sizes
        assert sorted(row for batch in batches for row in batch) == list(range(n_rows))
    assert sampler.plan(0) != sampler.plan(1)
    sampler.set_epoch(1)
    assert list(sampler) == sampler.plan(1)
    assert len(sampler) == len(sizes)


@pytest.mark.parametrize("accumulation", [1, 4, 64])
def test_packs_stay_within_the_budget_when_each_step_fills_one(accumulation):
    """100 packs of one step each cannot be made 128: the last optimiser step is not full, and is last."""
    sizes = [StepSize(f"image{i}", 400, 100) for i in range(100)]
    sampler = PackSampler(sizes, 600, seed=0, n_ranks=2, accumulation=accumulation)
    for epoch in range(3):
        packs = sampler.plan(epoch)
        assert [len(pack) for pack in packs] == [1] * 100
        assert sorted(row for pack in packs for row in pack) == list(range(100))


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_an_optimiser_step_has_the_same_packs_on_any_number_of_processes(n_ranks):
    """Rank r gets packs r, r + n, ... of the plan; four packs a step are one process with four, four with one."""
    packs = PackSampler(build_sizes(), 2000, 0, n_ranks, 4 // n_ranks).plan(1)
    assert packs == PackSampler(build_sizes(), 2000, 0, 1, 4).plan(1)
    ranks = [packs[rank::n_ranks] for rank in range(n_ranks)]
    per_rank = 4 // n_ranks
    for step in range(len(packs) // 4):
        found = [pack for rank in ranks for pack in rank[step * per_rank : (step + 1) * per_rank]]
        assert sorted(found) == sorted(packs[4 * step : 4 * step + 4])
