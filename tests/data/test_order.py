"""The order of samples: properties for every world size, each with a mutant that breaks it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from capsdist.data import Index
from capsdist.data.format.fields import Field
from capsdist.data.format.index import Shard
from capsdist.data.format.order import Order, permutation, rank_slice
from capsdist.errors import DataError
from order_reference import specified_epoch

WORLDS = [1, 2, 3, 4, 7]
# (samples a shard, global batch, lanes, window): one shard or many, even or not, windows small and large
CASES = [
    ([103], 21, 7, 8),
    ([30, 30, 30, 13], 21, 3, 1000),
    ([5, 1, 9, 2, 40], 15, 5, 4),
    ([64, 64], 32, 8, 16),
    ([11, 11], 1, 1, 3),
    ([3, 4], 35, 5, 2),
]

Ranks = list[list[np.ndarray]]  # per rank, per step: sample ids
Sampler = Callable[[Order, int, int], Ranks]


def make(case, *, seed: int = 0, digest: str = "set") -> Order:
    sizes, global_batch_size, lanes, window = case
    shards = tuple(Shard(f"shard-{n:05d}.tar", 0, size, "", "", ()) for n, size in enumerate(sizes))
    fields = (Field("image", "|u1", (1, 2, 2)), Field("label", "<i8"))
    index = Index(fields, ("a", "b"), 4, shards, digest=digest)
    return Order(index, seed, global_batch_size, lanes, window)


def steps_of(order: Order, epoch: int) -> list[np.ndarray]:
    """All steps of an epoch over all ranks, the short one last."""
    steps = list(order.steps(epoch, 0, order.num_full_steps))
    return [*steps, order.short_step(epoch)] if order.num_short else steps


def ours(order: Order, epoch: int, world_size: int) -> Ranks:
    steps = steps_of(order, epoch)
    return [[step[rank_slice(len(step), rank, world_size)] for step in steps] for rank in range(world_size)]


def every_sample_once(sampler: Sampler, order: Order, world_size: int, epoch: int = 0) -> bool:
    ids = [ids for rank in sampler(order, epoch, world_size) for ids in rank]
    return sorted(np.concatenate(ids)) == list(range(order.index.num_samples))


def equal_steps(sampler: Sampler, order: Order, world_size: int) -> bool:
    return len({len(rank) for rank in sampler(order, 0, world_size)}) == 1


def same_steps_for_any_world(sampler: Sampler, order: Order, world_size: int) -> bool:
    def union(world: int) -> list[list[int]]:
        return [sorted(np.concatenate(parts)) for parts in zip(*sampler(order, 0, world), strict=False)]

    return union(world_size) == union(1)


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("holds", [every_sample_once, equal_steps, same_steps_for_any_world])
def test_properties(holds, case, world_size):
    assert holds(ours, make(case), world_size)


@pytest.mark.parametrize("case", CASES)
def test_places_are_the_steps_one_after_the_other(case):
    order = make(case)
    whole, total = np.concatenate(steps_of(order, 2)), order.index.num_samples
    for first in range(0, total, 3):
        for last in (first + 1, (first + total + 1) // 2, total):
            assert np.array_equal(make(case).places(2, first, last), whole[first:last])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("epoch", [1, 2, 50])
def test_later_epochs_are_permutations_too(case, epoch):
    assert every_sample_once(ours, make(case, seed=epoch), 3, epoch)


def interleaved_drop_tail(order: Order, epoch: int, world_size: int) -> Ranks:
    """Mutant: every rank takes each W-th sample and drops what does not fill its batch."""
    shuffled = permutation(order.index.num_samples, order.seed, epoch)
    share = order.global_batch_size // world_size
    ranks = [shuffled[rank::world_size] for rank in range(world_size)]
    return [list(ids[: len(ids) // share * share].reshape(-1, share)) for ids in ranks]


def shuffled_a_rank(order: Order, epoch: int, world_size: int) -> Ranks:
    """Mutant: every rank shuffles with a seed of its own and reads its part of that."""
    parts = []
    for rank in range(world_size):
        shuffled = permutation(order.index.num_samples, order.seed, epoch, rank)
        mine = shuffled[rank_slice(len(shuffled), rank, world_size)]
        parts.append(np.array_split(mine, -(-len(mine) // 5)))
    return parts


def split_by_shard(order: Order, epoch: int, world_size: int) -> Ranks:
    """Mutant: shards are dealt to ranks, as webdataset's split_by_node does."""
    starts = order.index.shard_starts
    ranks = []
    for rank in range(world_size):
        mine = [np.arange(starts[n], starts[n + 1]) for n in range(rank, len(starts) - 1, world_size)]
        ids = np.concatenate([*mine, np.empty(0, np.int64)])
        ranks.append([ids[start : start + 7] for start in range(0, len(ids), 7)])
    return ranks


def keyed_by_world(order: Order, epoch: int, world_size: int) -> Ranks:
    """Mutant: the world size enters the shuffle."""
    return ours(make(CASES[1], seed=world_size), epoch, world_size)


@pytest.mark.parametrize(
    ("holds", "mutant"),
    [
        (every_sample_once, interleaved_drop_tail),
        (every_sample_once, shuffled_a_rank),
        (equal_steps, split_by_shard),
        (same_steps_for_any_world, keyed_by_world),
        (same_steps_for_any_world, shuffled_a_rank),
    ],
)
def test_mutants_break_the_properties(holds, mutant):
    assert not holds(mutant, make(CASES[1]), 3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_any_start_gives_the_tail_of_the_whole(case, start):
    """From any step on, however the steps are asked for, and by an order object that saw nothing before."""
    whole = make(case)
    first = min(start, whole.num_full_steps)
    expected = whole.steps(0, 0, whole.num_full_steps)[first:]
    assert np.array_equal(make(case).steps(0, first, whole.num_full_steps), expected)
    singly = make(case)
    for step in range(whole.num_full_steps - 1, first - 1, -1):
        assert np.array_equal(singly.steps(0, step, step + 1)[0], expected[step - first])


def flat(order: Order, epoch: int = 0) -> list[int]:
    return list(np.concatenate(steps_of(order, epoch)))


@pytest.mark.parametrize(
    "other",
    [
        lambda: flat(make(CASES[1]), epoch=1),
        lambda: flat(make(CASES[1], seed=1)),
        lambda: flat(make(CASES[1], digest="other")),
        lambda: flat(make(([30, 30, 30, 13], 21, 7, 1000))),
        lambda: flat(make(([30, 30, 30, 13], 42, 3, 1000))),
        lambda: flat(make(([30, 30, 30, 13], 21, 3, 10))),
    ],
    ids=["epoch", "seed", "digest", "lanes", "batch", "window"],
)
def test_everything_that_names_an_order_changes_it(other):
    order = flat(make(CASES[1]))
    assert order == flat(make(CASES[1]))
    assert other() != order
    assert sorted(other()) == sorted(order)


def test_another_tail_every_epoch():
    """With a dropped tail, different samples are left out: over epochs every sample is seen."""
    order = make(([50], 20, 5, 100))
    dropped = [frozenset(order.short_step(epoch)) for epoch in range(20)]
    assert len(set(dropped)) > 10
    assert not frozenset.intersection(*dropped)


def test_a_step_reads_every_lane_alike():
    """Lane-major: rank r of W = C ranks reads lane r only, which is one contiguous part of the shards."""
    order = make(([100], 20, 4, 7))
    for rank in range(4):
        ids = np.concatenate([step[rank_slice(20, rank, 4)] for step in order.steps(3, 0, 5)])
        assert set(ids) == set(range(25 * rank, 25 * rank + 25))


@pytest.mark.parametrize("seed", range(3))
def test_permutations_are_uniform(seed):
    """Every value is equally likely in every place: chi-square over 5 x 5 cells, 16 degrees of freedom."""
    counts = np.zeros((5, 5))
    for trial in range(2000):
        counts[np.arange(5), permutation(5, "uniform", seed, trial)] += 1
    chi2 = ((counts - 400) ** 2 / 400).sum()
    assert 3 < chi2 < 50, f"seed {seed}: {chi2}"  # beyond with probability below 1e-4


@pytest.mark.parametrize("case", CASES)
def test_the_specification_says_the_same(case):
    """An independent, slow implementation of the five rules of that docstring."""
    sizes, global_batch_size, lanes, window = case
    steps = specified_epoch(sizes, "set", 11, global_batch_size, lanes, window, 3)
    assert [step.tolist() for step in steps_of(make(case, seed=11), 3)] == steps


def test_the_order_does_not_drift():
    """Golden: an order that changes between versions would break every resume."""
    assert permutation(8, "digest", 1, 2).tolist() == [3, 2, 7, 1, 0, 5, 4, 6]
    assert flat(make(([6, 5], 4, 2, 3)), epoch=2) == [2, 1, 7, 6, 0, 4, 5, 9, 3, 10, 8]


@pytest.mark.parametrize(("global_batch_size", "lanes"), [(21, 2), (8, 0), (4, 8)])
def test_lanes_must_divide_the_batch(global_batch_size, lanes):
    with pytest.raises(
        DataError,
        match=f"lanes={lanes} does not divide global_batch_size={global_batch_size}; choose a divisor",
    ):
        make(([50], global_batch_size, lanes, 5))


@pytest.mark.parametrize(("num", "world_size"), [(128, 7), (5, 7), (0, 3), (9, 1)])
def test_rank_slices_cover_a_step(num, world_size):
    slices = [rank_slice(num, rank, world_size) for rank in range(world_size)]
    assert [i for part in slices for i in range(num)[part]] == list(range(num))
    sizes = [part.stop - part.start for part in slices]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == -(-num // world_size)
