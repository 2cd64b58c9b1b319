"""Numbers of reports as people read them."""

from __future__ import annotations

import math

__all__ = ["duration", "percent", "short"]

_UNITS = (("min", "s", 1, 60, 3600), ("h", "min", 60, 60, 1440), ("d", "h", 3600, 24, math.inf))
"""Large and small unit, seconds of the small one, how many of it are a large one, from how many the next."""
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def duration(seconds: float) -> str:
    """Return seconds in their two largest units: 12.3 s, 2 min 34 s, 3 h 12 min, 4 d 1 h."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    large, small, size, ratio, _ = next(unit for unit in _UNITS if round(seconds / unit[2]) < unit[4])
    whole, rest = divmod(round(seconds / size), ratio)
    return f"{whole:,} {large} {rest} {small}"


def short(number: float, unit: str = "") -> str:
    """Return a number in three digits with a decimal prefix: 8.22 M, 14.2 PFLOP with the unit FLOP."""
    exponent = min(max(int(math.log10(abs(number)) // 3), 0), len(_PREFIXES) - 1) if number else 0
    if exponent < len(_PREFIXES) - 1 and float(f"{number / 1000**exponent:.3g}") >= 1000:
        exponent += 1
    return f"{number / 1000**exponent:.3g} {_PREFIXES[exponent]}{unit}".rstrip()


def percent(value: float | None) -> str:
    """Return a percentage in two digits behind the point, or a dash."""
    return "–" if value is None else f"{value:.2f} %"
