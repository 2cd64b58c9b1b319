"""How well the scores of predicted classes agree with how often the predictions are right.

Lengths of capsules are no probabilities: the margin loss asks for a length of 0.9 where a class is present,
whatever the share of such images is. A network that reaches just this length and is always right has an
expected error of 0.1. So the table says what a length means in this network, and not which of two is better.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

__all__ = ["Calibration", "ReliabilityBin", "Share", "calibration"]

Share = Annotated[float, Field(ge=0, le=1)]
NUM_BINS = 15
"""Bins of equal width, as in Guo et al. 2017."""


class ReliabilityBin(BaseModel):
    """Predictions with scores above `low`, up to `high`; None: there are none.

    mean_score: of these predictions; right: the share that is right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: Share
    high: Share
    num: NonNegativeInt
    mean_score: Share | None
    right: Share | None


class Calibration(BaseModel):
    """A reliability table, and the expected calibration error: a share, 0 where scores are frequencies.

    expected_error: mean over all predictions of ``abs(right - mean_score)`` of their bin (Guo et al. 2017,
    equation 3).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    expected_error: Share
    bins: list[ReliabilityBin]


def calibration(scores: np.ndarray, right: np.ndarray, num_bins: int = NUM_BINS) -> Calibration:
    """Return the calibration of N predictions in bins of equal width; a score of 0 is in the first.

    scores: floating [N], in [0, 1], N > 0; right: bool [N].

    Raises:
        ValueError: there are no scores, one is outside of [0, 1], or `num_bins` is below 1.

    Example:
        >>> found = calibration(np.array([0.9, 0.9, 0.7]), np.array([True, True, False]), num_bins=2)
        >>> round(found.expected_error, 6)
        0.166667
    """
    scores = np.asarray(scores, np.float64)
    if num_bins < 1 or not len(scores) or not (scores.min() >= 0 and scores.max() <= 1):
        raise ValueError(f"{len(scores)} scores in {num_bins} bins: give at least one of both, from 0 to 1")
    edges = np.arange(num_bins + 1) / num_bins
    member = np.searchsorted(edges[1:-1], scores, side="left")
    nums, sums, hits = (
        np.bincount(member, weights, num_bins) for weights in (None, scores, np.asarray(right, np.float64))
    )
    bins = []
    for low, high, num, total, hit in zip(edges, edges[1:], nums, sums, hits, strict=False):
        means = (min(total / num, 1.0), hit / num) if num else (None, None)
        bins.append(ReliabilityBin(low=low, high=high, num=num, mean_score=means[0], right=means[1]))
    return Calibration(expected_error=float(np.abs(hits - sums).sum() / len(scores)), bins=bins)
