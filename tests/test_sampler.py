"""Packs of an epoch: every step once, within the budget, the same after a resume."""

import random

import pytest

from sft.errors import UserError
from sft.sampler import PackSampler, StepSize


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


def test_ranks_work_on_packs_of_about_the_same_size_at_the_same_time():
    sampler = PackSampler(build_sizes(200), 2000, seed=0, n_ranks=4)
    counts = [sampler.count_tokens(pack) for pack in sampler.plan(1)]
    waiting = sum(4 * max(counts[i : i + 4]) - sum(counts[i : i + 4]) for i in range(0, len(counts), 4))
    assert waiting / sum(counts) < 0.02


def test_a_step_longer_than_the_budget_is_refused_with_its_length():
    with pytest.raises(UserError, match="tokens_per_batch: found 500, but the longest step has 700 tokens"):
        PackSampler([StepSize("a", 600, 100)], 500, seed=0)


def test_fewer_steps_than_processes_are_refused():
    with pytest.raises(UserError, match="found 1 training steps for 2 processes"):
        PackSampler([StepSize("a", 10, 10)], 500, seed=0, n_ranks=2)
