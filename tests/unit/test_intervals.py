"""Intervals and tests, held against other formulas: scipy's, and sums over all outcomes."""

from __future__ import annotations

import doctest
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from capsdist import statistics
from capsdist.statistics import error_interval, mcnemar, mean_interval, paired_interval, wilson_interval


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_interval_of_a_proportion_is_that_of_wilson(confidence: float) -> None:
    rng = np.random.default_rng()
    for total in (1, 2, 7, *rng.integers(10, 100_000, 20).tolist()):
        for count in {0, total, int(rng.integers(0, total + 1))}:
            expected = stats.binomtest(count, total).proportion_ci(confidence, method="wilson")
            found = wilson_interval(count, total, confidence)
            assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
            assert 0 <= found[0] <= count / total <= found[1] <= 1


def test_its_ends_solve_the_equation_that_defines_it() -> None:
    """At an end p the count is just 1.96 standard deviations of p away, not of count / total."""
    count, total = 25, 10_000
    for end in wilson_interval(count, total):
        deviation = math.sqrt(end * (1 - end) / total)
        assert abs(count / total - end) / deviation == pytest.approx(1.959964, abs=1e-5)


def test_the_interval_of_an_error_is_in_percent() -> None:
    low, high = error_interval(0.25, 10_000)
    assert [low, high] == pytest.approx([100 * end for end in wilson_interval(25, 10_000)])
    assert error_interval(100 * 7 / 23, 23) == pytest.approx([100 * end for end in wilson_interval(7, 23)])


@pytest.mark.parametrize(("count", "total"), [(-1, 3), (4, 3), (0, 0)])
def test_a_proportion_that_is_none_is_refused(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="an interval needs 0 <= count <= total"):
        wilson_interval(count, total)


def test_an_interval_holds_the_mean_in_95_of_100_cases() -> None:
    samples = np.random.default_rng(1).normal(3, 2, (2_000, 20))
    held = sum(lower <= 3 <= upper for _, lower, upper in map(mean_interval, samples.tolist()))
    assert 0.93 < held / 2_000 < 0.97
    with pytest.raises(ValueError, match="an interval needs two"):
        mean_interval([1.0])


def test_intervals_of_means_and_of_paired_differences_are_those_of_the_t_tests() -> None:
    rng = np.random.default_rng()
    for num in (2, 3, 8):
        first, second = rng.normal(size=(2, num)).tolist()
        expected = stats.ttest_1samp(first, 0).confidence_interval(0.9)
        assert mean_interval(first, 0.9) == pytest.approx((np.mean(first), expected.low, expected.high))
        expected = stats.ttest_rel(first, second).confidence_interval(0.95)
        mean = np.mean(first) - np.mean(second)
        assert paired_interval(first, second) == pytest.approx((mean, expected.low, expected.high))
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="zip"):
        paired_interval([1, 2, 3], [1, 2])


def test_what_seeds_share_does_not_widen_the_interval_of_their_difference() -> None:
    shared = np.random.default_rng(2).normal(0, 100, 5)
    first = (shared + np.array([1.0, 1.1, 0.9, 1.05, 0.95])).tolist()
    mean, low, high = paired_interval(first, shared.tolist())
    assert mean == pytest.approx(1)
    assert 0.8 < low < high < 1.2


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Twice the probability of the shorter tail of a fair coin, as a sum of binomial coefficients."""
    different = only_first + only_second
    tail = sum(math.comb(different, k) for k in range(min(only_first, only_second) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**different)))


def test_mcnemar_is_exact_and_symmetric() -> None:
    rng = np.random.default_rng()
    for only_first, only_second in [(0, 0), (0, 1), (0, 6), (5, 5), *rng.integers(0, 60, (20, 2)).tolist()]:
        found = mcnemar(only_first, only_second)
        assert found == pytest.approx(exact_mcnemar(only_first, only_second), rel=1e-9)
        assert found == mcnemar(only_second, only_first)
    assert mcnemar(0, 6) == pytest.approx(1 / 32)


def test_the_examples_run() -> None:
    assert doctest.testmod(statistics) == doctest.TestResults(failed=0, attempted=1)
