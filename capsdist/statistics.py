"""Intervals and tests for errors that were measured. Pure; nothing heavy is imported before it is needed.

Which one answers which question:

- one network on n images: `wilson_interval` of its error;
- two networks on the same images: `mcnemar`, the exact test of the images that only one reads wrongly;
- two methods, each trained with several seeds: `paired_interval` of the errors of equal seeds. Images of
  different seeds are never pooled: they are no independent trials of the method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

__all__ = ["error_interval", "mcnemar", "mean_interval", "paired_interval", "wilson_interval"]


def wilson_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the ends of Wilson's score interval of a proportion (Wilson 1927), both in [0, 1].

    count: of `total` independent trials; it may be 0 or all. In closed form, because every validation of a
    run calls it, and scipy.stats takes more than a second to import.

    Raises:
        ValueError: `count` is not in 0 .. `total`, or `total` is 0.

    Example:
        >>> "{:.4f} {:.4f}".format(*wilson_interval(25, 10_000))
        '0.0017 0.0037'
    """
    if not 0 <= count <= total or total == 0:
        raise ValueError(f"{count} of {total}: an interval needs 0 <= count <= total, and total above 0")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 + z * z / total
    centre = (count / total + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(count * (total - count) / total**3 + z * z / (4 * total * total))
    # exact ends: rounding would leave 1e-19 and 1 - 1e-16
    return (centre - half if count else 0.0), (centre + half if count < total else 1.0)


def error_interval(error_percent: float, num_images: int) -> list[float]:
    """Return the ends of the 95 % Wilson interval of an error on `num_images` images, all in percent."""
    low, high = wilson_interval(round(error_percent * num_images / 100), num_images)
    return [100 * low, 100 * high]


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of `values` and the ends of its interval by Student's t.

    Raises:
        ValueError: there are fewer than two values.
    """
    from scipy.stats import t  # late: it takes a second to import

    num = len(values)
    if num < 2:
        raise ValueError(f"{num} value: an interval needs two")
    mean = math.fsum(values) / num
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num - 1))
    half = float(t.ppf((1 + confidence) / 2, num - 1)) * deviation / math.sqrt(num)
    return mean, mean - half, mean + half


def paired_interval(
    first: Sequence[float], second: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the mean of the differences first[i] - second[i], and its interval by Student's t.

    The values of a pair share what they depend on besides the method: the seed.

    Raises:
        ValueError: there are fewer than two pairs, or a value without a partner.
    """
    return mean_interval([a - b for a, b in zip(first, second, strict=True)], confidence)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar 1947, the binomial form).

    only_first, only_second: images that the first network alone, or the second alone, reads wrongly. If both
    err equally often, each such image is a fair coin; images that both read alike say nothing. 1.0 where
    there are none.
    """
    from scipy.stats import binomtest  # late: it takes a second to import

    different = only_first + only_second
    return float(binomtest(only_first, different).pvalue) if different else 1.0
