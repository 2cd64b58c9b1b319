"""Line plots as HTML with SVG inside, which follow the width and the colours of the page.

The SVG is stretched to its box and holds lines and dots only, whose widths are not stretched; ticks and
legend are text of the page, so that they have one size on a phone and on a desk. plots.js reads the data
beside it, and shows the values under the pointer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from capsdist.analysis.drawing import (
    Row,
    curve,
    of_kind,
    percent_ticks,
    place_of_zero,
    smoothed,
    validated_on,
)

__all__ = ["Curve", "Plot", "drawn", "plots_of_run"]

MAX_POINTS = 300
"""Points of a curve; of more values each point sums up equally many."""
SIDE = 1000  # of the SVG's box, in its own units
_TICKS = 5
_WIDE_RANGE = 30.0  # largest over smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """Values over steps, [n] each. style: a line, dots that are joined, or single dots.

    number: of its colour, see style.css. rough: draw the values as they are, pale, behind their running mean.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    number: int
    style: Literal["line", "joined", "dots"] = "line"
    rough: bool = False


@dataclass(frozen=True)
class Plot:
    """Curves on common axes. log: a logarithmic axis, where it must be; unit: behind the last values."""

    title: str
    curves: Sequence[Curve]
    log: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Drawn:
    """A plot, ready for its template: places are in percent of the box, from its left and its top.

    paths: (class, path of SVG); ticks: (place, label); legend: (name, last value, colour); data: of plots.js.
    """

    title: str
    unit: str
    paths: list[tuple[str, str]] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    legend: list[tuple[str, str, int]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


def plots_of_run(rows: Sequence[Row]) -> list[Plot]:
    """Return loss, error, learning rate and images per second of a run, without those that no row has."""
    train, validated = of_kind(rows, "train"), validated_on(rows)

    def curves(name: str) -> list[Curve]:
        return [
            Curve("training", *curve(train, name), number=1, rough=True),
            Curve(validated, *curve(of_kind(rows, "validation"), name), number=2, style="joined"),
            Curve("test", *curve(of_kind(rows, "test"), name), number=3, style="dots"),
        ]

    def one(name: str, *, rough: bool) -> list[Curve]:
        return [Curve("last", *curve(train, name), number=1, rough=rough)]

    rates = curve(train, "learning_rate")[1]
    wide = bool(len(rates)) and rates.min() > 0 and rates.max() > _WIDE_RANGE * rates.min()
    plots = [
        Plot("Loss", curves("loss"), log=True),
        Plot("Error", curves("error_percent"), log=True, unit=" %"),
        Plot("Learning rate", one("learning_rate", rough=False), log=wide),
        Plot("Images per second", one("images_per_s", rough=True)),
    ]
    shown = [(plot, [each for each in plot.curves if len(each.values)]) for plot in plots]
    return [Plot(plot.title, found, plot.log, plot.unit) for plot, found in shown if found]


def drawn(plot: Plot) -> Drawn:
    """Return the paths, ticks and legend of a plot of at least one curve of at least one value."""
    values = np.concatenate([each.values for each in plot.curves])
    steps = np.concatenate([each.steps for each in plot.curves])
    zero = place_of_zero(values) if plot.log else None
    y = _Axis.of(values if zero is None else np.maximum(values, zero), log=plot.log)
    x = _Axis(min(float(steps.min()), 0.0), max(float(steps.max()), 1.0), log=False)
    found = Drawn(plot.title, plot.unit)
    ticks = _ticks(y, zero if (values == 0).any() else None)
    found.y_ticks.extend((100 - 100 * y.place(at), "0" if at == zero else f"{at:g}") for at in ticks)
    found.x_ticks.extend((100 * x.place(at), f"{at:,.0f}") for at in _round_ticks(x.low, x.high, whole=True))
    for each in plot.curves:
        _draw_curve(found, each, x, y, zero)
    return found


@dataclass(frozen=True)
class _Axis:
    """A range of values; `place` returns where in it they are, 0 to 1."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: np.ndarray, *, log: bool) -> _Axis:
        """Return the axis that shows all values, with some room; a linear one begins at 0."""
        low, high = float(values.min()), float(values.max())
        if log:
            room = max((high / low) ** 0.06, 1.1)
            return cls(low / room, high * room, log)
        return cls(min(low, 0.0), 1.08 * high if high > 0 else 1.0, log)

    def place(self, values: Any) -> Any:
        """Return the places of values; on a logarithmic axis they are above 0."""
        if self.log:
            return np.log(values / self.low) / np.log(self.high / self.low)
        return (values - self.low) / (self.high - self.low)


def _ticks(axis: _Axis, zero: float | None) -> list[float]:
    """Return the ticks of a vertical axis; zero: where a value of 0 is drawn on a logarithmic one."""
    return percent_ticks(axis.low, axis.high, zero) if axis.log else _round_ticks(axis.low, axis.high)


def _round_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    from matplotlib.ticker import MaxNLocator  # late: 0.3 s

    found = MaxNLocator(_TICKS, integer=whole).tick_values(low, high)
    return [float(tick) for tick in found if low <= tick <= high]


def _draw_curve(found: Drawn, each: Curve, x: _Axis, y: _Axis, zero: float | None) -> None:
    """Add the paths, the legend and the data of one curve."""
    shown = smoothed(each.values) if each.rough else each.values
    parts = np.array_split(np.arange(len(shown)), min(len(shown), MAX_POINTS))
    last = [part[-1] for part in parts]

    def points(steps: np.ndarray, values: np.ndarray) -> list[str]:
        heights = values if zero is None else np.maximum(values, zero)
        across, down = SIDE * x.place(steps), SIDE - SIDE * y.place(heights)
        return [f"{a:.1f} {b:.1f}" for a, b in zip(across, down, strict=True)]

    steps, values = each.steps[last], shown[last]
    if each.rough and len(shown) > 1:
        high, low = (np.array([pick(each.values[part]) for part in parts]) for pick in (np.max, np.min))
        band = [*points(steps, high), *reversed(points(steps, low))]
        found.paths.append((f"band c{each.number}", f"M{'L'.join(band)}Z"))
    places = points(steps, values)
    if each.style != "dots" and len(places) > 1:
        found.paths.append((f"line c{each.number}", f"M{'L'.join(places)}"))
    if each.style != "line" or len(places) == 1:
        found.paths.append((f"dot c{each.number}", "".join(f"M{place}h0" for place in places)))
    found.legend.append((each.name, number_text(float(values[-1])) + found.unit, each.number))
    found.data.setdefault("curves", []).append(
        {
            "name": each.name,
            "number": each.number,
            "steps": [int(step) for step in steps],
            "x": [round(float(100 * place), 2) for place in x.place(steps)],
            "values": [number_text(float(value)) for value in values],
        }
    )


def number_text(value: float) -> str:
    """Return a number in four digits, with commas from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
