"""The depth curve: error and live capsules by the number of capsule layers, a line for each remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from capsdist.analysis.drawing import BLUE, GREEN, GREY, ORANGE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_depths"]

_COLOURS = (GREY, BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9")  # of Okabe and Ito, too
_MARKERS = "osD^vP"


def draw_depths(rows: Sequence[Mapping[str, Any]], limits: Mapping[str, float], title: str) -> Figure:
    """Return the figure.

    Args:
        rows: fields of `capsdist.tune.depth.DepthRow`; those without a number are left out.
        limits: for `error_percent` and `live_percent`, beyond which a depth fails.
        title: stands above it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4), dpi=110, layout="constrained", facecolor="white")
        figure.suptitle(title, x=0.012, ha="left", fontsize=12)
        error, live = figure.subplots(1, 2)
        _draw(error, rows, "error_percent", limits, "Test error (%)")
        _draw(live, rows, "live_percent", limits, "Live capsules, least of all layers (%)")
        error.legend(fontsize=8)
    return figure


def _draw(
    axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, limits: Mapping[str, float], title: str
) -> None:
    for number, remedy in enumerate(dict.fromkeys(row["remedy"] for row in rows)):
        points = [(row["depth"], row[name]) for row in rows if row["remedy"] == remedy]
        points = sorted(point for point in points if point[1] is not None)
        style = {"color": _COLOURS[number % 6], "marker": _MARKERS[number % 6], "linewidth": 1.4}
        axes.plot([x for x, _ in points], [y for _, y in points], label=remedy, markersize=4, **style)
    axes.axhline(limits[name], color=GREY, linestyle=":", linewidth=1)
    axes.set(title=title, xlabel="capsule layers", ylim=(0, 100))
    axes.set_xticks(sorted({row["depth"] for row in rows}))
