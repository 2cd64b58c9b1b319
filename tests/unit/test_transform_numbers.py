"""The random numbers of transforms: published values, properties, and mutants."""

from __future__ import annotations

import pytest
import torch

from capsdist.data.transforms import uniform
from transform_reference import MASK, number, python_splitmix

SEEDS = [0, 1, 2**31 - 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("draw", [0, 6])
def test_vectorised_hash_is_the_scalar_one(seed, draw):
    ids = torch.tensor([0, 1, 59_999, 2**40 + 3])
    expected = [number(i, draw, seed, 5) for i in ids.tolist()]
    assert uniform(ids, draw, seed, epoch=5).tolist() == expected


def test_the_scalar_hash_is_splitmix64():
    """The first outputs published with the algorithm for seed 1234567."""
    states = [1234567 + n * 0x9E3779B97F4A7C15 & MASK for n in (1, 2, 3)]
    assert [python_splitmix(state) for state in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def looks_uniform(values: torch.Tensor) -> bool:
    """Property: mean, variance and 20 bins as of independent uniform numbers, within about 5 sigma."""
    num = len(values)
    bins = torch.histc(values.float(), 20, 0, 1)
    chi2 = ((bins - num / 20) ** 2 / (num / 20)).sum()
    return (
        abs(values.mean() - 0.5) < 5 * (1 / 12 / num) ** 0.5
        and abs(values.var() - 1 / 12) < 5 * (1 / 180 / num) ** 0.5
        and chi2 < 60
    )


def look_independent(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Property: no correlation, and pairs fill 8 x 8 cells alike (chi-square, 63 degrees of freedom)."""
    num = len(first)
    cells = torch.bincount((first * 8).long() * 8 + (second * 8).long(), minlength=64)
    chi2 = ((cells - num / 64) ** 2 / (num / 64)).sum()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    return bool(abs(correlation) < 5 / num**0.5 and chi2 < 140)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stride", [1, 2, 1024])
def test_numbers_are_uniform(seed, stride):
    values = uniform(torch.arange(0, 20_000 * stride, stride), 0, seed, epoch=0)
    assert looks_uniform(values)
    assert look_independent(values[:-1], values[1:])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "other",
    [{"draw": 1}, {"epoch": 1}, {"seed": 77}, {"draw": 1, "epoch": 1}],
    ids=["draw", "epoch", "seed", "draw and epoch"],
)
def test_numbers_of_other_draws_are_independent(seed, other):
    ids = torch.arange(20_000)
    arguments = {"draw": 0, "seed": seed, "epoch": 0}
    assert look_independent(uniform(ids, **arguments), uniform(ids, **(arguments | other)))


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_over_epochs_are_uniform(seed):
    """One sample over many epochs, and one epoch over many seeds."""
    sample = torch.tensor([17])
    assert looks_uniform(torch.cat([uniform(sample, 0, seed, epoch) for epoch in range(2000)]))
    assert looks_uniform(torch.cat([uniform(sample, 0, seed + n, 3) for n in range(2000)]))


def test_mutant_a_sequence_without_mixing_is_not_independent():
    """Mutant: multiples of the golden ratio are uniform, but each follows from the one before."""
    values = (torch.arange(20_000).double() * 0.6180339887498949) % 1
    assert not look_independent(values[:-1], values[1:])


def test_mutant_the_same_numbers_again_are_not_independent():
    values = uniform(torch.arange(20_000), 0, 1, 2)
    assert not look_independent(values, values)
