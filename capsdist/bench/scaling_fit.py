"""Fit powers to measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Power", "fit_power"]


@dataclass(frozen=True)
class Power:
    """The fit ``value = factor * size**exponent``; error: standard error of the exponent."""

    exponent: float
    error: float
    factor: float

    def __call__(self, size: float) -> float:
        """Return the value that the fit gives for `size`."""
        return self.factor * size**self.exponent


def fit_power(sizes: Sequence[float], values: Sequence[float]) -> Power:
    """Return the power that fits `values` best: least squares of their logarithms.

    Every point has the same weight, so a constant part of the values makes the exponent smaller than that of
    large sizes. With two points the standard error is 0.

    Raises:
        ValueError: fewer than two different sizes, or a number that is not above 0.
    """
    if len(set(sizes)) < 2 or min(*sizes, *values) <= 0:
        raise ValueError(f"sizes {list(sizes)}, values {list(values)}: a fit needs two sizes, all above 0")
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(values, float))
    deviations = x - x.mean()
    spread = float((deviations**2).sum())
    exponent = float((deviations * y).sum()) / spread
    residuals = y - y.mean() - exponent * deviations
    variance = float((residuals**2).sum()) / max(len(x) - 2, 1)
    return Power(
        exponent, math.sqrt(variance / spread), math.exp(float(y.mean()) - exponent * float(x.mean()))
    )
