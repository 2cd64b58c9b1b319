"""Reliability tables and the expected calibration error, held against a loop over bins."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from capsdist.analysis import calibration as calibration_module
from capsdist.analysis.calibration import calibration


@pytest.mark.parametrize(("num", "num_bins"), [(1, 1), (40, 7), (1_001, 15)])
def test_table_and_error_are_those_of_a_loop(num: int, num_bins: int) -> None:
    rng = np.random.default_rng()
    scores, right = rng.beta(4, 1, num), rng.random(num) < 0.6
    found = calibration(scores, right, num_bins)
    total = 0.0
    for number, row in enumerate(found.bins):
        low, high = number / num_bins, (number + 1) / num_bins
        members = [n for n in range(num) if low < scores[n] <= high]
        assert (row.low, row.high, row.num) == (low, high, len(members))
        if members:
            assert row.mean_score == pytest.approx(np.mean(scores[members]))
            assert row.right == pytest.approx(np.mean(right[members]))
            total += len(members) * abs(row.mean_score - row.right)
        else:
            assert (row.mean_score, row.right) == (None, None)
    assert sum(row.num for row in found.bins) == num
    assert found.expected_error == pytest.approx(total / num)


def test_scores_that_are_frequencies_have_no_error() -> None:
    scores = np.repeat([0.25, 0.75], 400)
    right = np.concatenate([np.arange(400) < 100, np.arange(400) < 300])
    assert calibration(scores, right).expected_error == pytest.approx(0)
    assert calibration(np.full(400, 0.9), np.ones(400, bool)).expected_error == pytest.approx(0.1)


def test_edges_belong_to_the_bin_below_and_zero_to_the_first() -> None:
    bins = calibration(np.array([0.0, 0.5, 0.5001, 1.0]), np.ones(4, bool), 2).bins
    assert [row.num for row in bins] == [2, 2]


@pytest.mark.parametrize(
    ("scores", "num_bins"), [([], 3), ([1.1], 3), ([-0.1], 3), ([float("nan")], 3), ([0.5], 0)]
)
def test_what_is_no_score_is_refused(scores: list[float], num_bins: int) -> None:
    with pytest.raises(ValueError, match="give at least one of both, from 0 to 1"):
        calibration(np.array(scores), np.ones(len(scores), bool), num_bins)


def test_the_example_runs() -> None:
    assert doctest.testmod(calibration_module).failed == 0
