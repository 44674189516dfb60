"""Packs of an epoch: every step once, within the budget, the same after a resume."""

import random

import pytest
from conftest import ROOT

from sft.batches.collator import PackingCollator
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_step_rows, read_step_sizes
from sft.batches.sampler import PackSampler, PaddedSampler, StepSize
from sft.data.load import load_trajectories
from sft.errors import UserError
from sft.models.processors import load_processor
from sft.recipe.recipe import parse_recipe


def build_sizes(n_images=40, seed=0):
    rng = random.Random(seed)
    return [
        StepSize(f"image{i}", 100, 200 + 10 * (i % 7), rng.randint(60, 200))
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


def test_no_epoch_exceeds_the_budget_though_its_own_order_would_take_more_packs():
    """Of 200 epochs some fill more packs than the first orders tried did; they take one of those then."""
    sizes = build_sizes(30, seed=5)
    sampler = PackSampler(sizes, 900, seed=0)
    n_more = sum(len(sampler._fill(random.Random(f"0/{epoch}"))) > len(sampler) for epoch in range(200))
    assert n_more > 0
    for epoch in range(200):
        packs = sampler.plan(epoch)
        assert len(packs) == len(sampler) and max(map(sampler.count_tokens, packs)) <= 900


def test_shared_parts_are_counted_once_a_pack_and_split_groups_stay_within_the_budget():
    """By hand: 100 system, 400 screenshot, two goals of 50, and 20 of each step's own."""
    sizes = [StepSize("one", 100, 400, 20, ((i % 2, 50),)) for i in range(12)]
    sampler = PackSampler(sizes, 660, seed=0)
    assert sampler.count_tokens([0]) == 570
    assert sampler.count_tokens([0, 2, 4]) == 610
    assert sampler.count_tokens([0, 1, 2]) == 660
    for epoch in range(20):
        packs = sampler.plan(epoch)
        assert sorted(i for pack in packs for i in pack) == list(range(12))
        assert max(map(sampler.count_tokens, packs)) <= 660
    assert sampler.packing_factor == 12 * 570 / sum(map(sampler.count_tokens, sampler.plan(0)))


@pytest.mark.slow
def test_packs_of_the_demo_have_the_tokens_that_were_counted_and_are_nearly_full():
    recipe = parse_recipe([str(ROOT / "recipes/demo.yaml")])
    agent, budget = recipe.agent, recipe.batch.tokens_per_batch
    encoder = StepEncoder(load_processor(ROOT / "demo/base", agent.min_pixels, agent.max_pixels), agent)
    tasks = load_trajectories(ROOT / "demo/data/train.csv", show_progress=False)
    rows = build_step_rows(tasks, "train.csv", encoder, show_progress=False).dataset
    sampler = PackSampler(read_step_sizes(rows), budget, recipe.data_seed)
    collate = PackingCollator(encoder)
    counts = []
    for pack in sampler.plan(0):
        counts.append(collate([rows[i] for i in pack])["input_ids"].numel())
        assert counts[-1] == sampler.count_tokens(pack) <= budget
    assert sum(counts) / len(counts) > 0.92 * budget
    n_alone = sum(rows["n_prompt_tokens"]) + sum(rows["n_answer_tokens"])
    assert sampler.packing_factor == n_alone / sum(counts)


def test_steps_on_one_screenshot_are_together():
    sizes = [StepSize(f"image{i % 5}", 100, 400, 50) for i in range(25)]
    for pack in PackSampler(sizes, 800, seed=0).plan(0):
        assert len({sizes[i].image for i in pack}) == 1 and len(pack) == 5


def test_a_group_larger_than_the_budget_is_split():
    sizes = [StepSize("one", 100, 400, 100) for _ in range(10)]
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
    sizes = [StepSize(f"image{i}", 100, 300, 100 + i) for i in range(10)]
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
        PackSampler([StepSize("a", 100, 500, 100)], 500, seed=0)


def test_fewer_steps_than_processes_are_refused():
    message = "found 1 steps for 2 processes"
    with pytest.raises(UserError, match=message):
        PackSampler([StepSize("a", 0, 10, 10)], 500, seed=0, n_ranks=2)
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


@pytest.mark.parametrize(("accumulation", "n_last"), [(1, 0), (3, 4), (4, 4), (24, 4), (64, 100)])
def test_packs_stay_within_the_budget_when_each_step_fills_one(accumulation, n_last):
    """100 packs of one step each cannot be made a multiple of 2 a time: a step that is not full has the shortest."""
    sizes = [StepSize(f"image{i}", 50, 350, 199 - i) for i in range(100)]
    sampler = PackSampler(sizes, 600, seed=0, n_ranks=2, accumulation=accumulation)
    assert len(sampler) == 100
    for epoch in range(4):
        rows = [row for (row,) in sampler.plan(epoch)]  # one step each: two would exceed the budget
        assert sorted(rows) == list(range(100))
        steps = [rows[at : at + 2 * accumulation] for at in range(0, 100, 2 * accumulation)]
        assert len(steps[-1]) == (n_last or 2 * accumulation)
        if n_last:
            assert sorted(steps[-1]) == list(range(100 - n_last, 100))
        for step in steps:  # packs of about one size, whichever step comes when
            assert max(step) - min(step) == len(step) - 1


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
