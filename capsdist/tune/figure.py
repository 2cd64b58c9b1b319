"""The figure of a search: error against routing depth, against capacity, and against images/s.

Pure, in the style of a run's overview (`capsdist.analysis.drawing`); matplotlib is imported late.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from capsdist.analysis.drawing import BLUE, GREEN, GREY, ORANGE, STYLE, label_percents, place_of_zero
from capsdist.runs.files import RunFiles
from capsdist.tune.journal import FINISHED
from capsdist.tune.report import SearchResult, TrialRow, in_words, pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_search", "save_figure"]

FIGURE_NAME = "search.png"
DEPTH = "routing.iterations"


def save_figure(result: SearchResult, files: RunFiles) -> str:
    """Draw search.png among the files of the search and return its path."""
    content = io.BytesIO()
    draw_search(result).savefig(content, format="png")
    files.write(FIGURE_NAME, content.getvalue())
    return files.path(FIGURE_NAME)


def draw_search(result: SearchResult) -> Figure:
    """Return the figure: each trial a point, filled if it finished, hollow if it was stopped early."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in result.trials if row.error_percent is not None]
    depth = result.config["routing"]["iterations"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14, 4.6), dpi=110, layout="constrained", facecolor="white")
        left, middle, right = figure.subplots(1, 3, sharey=True)
        errors = [row.error_percent or 0.0 for row in rows]
        zero = place_of_zero(errors)
        depths = [row.values.get(DEPTH, depth) for row in rows]
        _scatter(left, rows, depths, result.best, zero)
        left.set(title="Error against routing depth", xlabel="routing iterations", ylabel="error in percent")
        left.set_xticks(sorted(set(depths)))
        _draw_lowest(left, rows, depths, zero)
        _scatter(middle, rows, [row.num_parameters / 1e6 for row in rows], result.best, zero)
        middle.set(title="Error against capacity", xlabel="million parameters")
        measured = [row for row in rows if row.images_per_s]
        _scatter(right, measured, [row.images_per_s or 0.0 for row in measured], result.best, zero)
        right.set(title="Error against speed", xlabel="images/s, beside the other trials")
        _draw_front(right, [row for row in pareto(rows) if row.images_per_s], zero)
        left.set_yscale("log")
        for axes in (left, middle, right):
            axes.margins(0.08, 0.12)
        label_percents(left, zero if min(errors, default=1.0) == 0 else None)
        best = next(row for row in result.trials if row.name == result.best)
        words = f"{result.name}   |   {len(rows)} trials   |   best: error {result.error_percent:.2f} %"
        figure.suptitle(f"{words} with {in_words(best.values)}", x=0.012, ha="left", fontsize=13)
    return figure


def _scatter(axes: Axes, rows: Sequence[TrialRow], places: Sequence[float], best: str, zero: float) -> None:
    """Draw trials at `places`, those without any error at `zero`."""
    groups = (
        ("stopped early", GREY, "none", [row.status != FINISHED for row in rows]),
        ("finished", BLUE, BLUE, [row.status == FINISHED and row.name != best for row in rows]),
        ("best", ORANGE, ORANGE, [row.name == best for row in rows]),
    )
    for label, edge, face, chosen in groups:
        pairs = [
            (place, max(row.error_percent or 0.0, zero))
            for place, row, take in zip(places, rows, chosen, strict=True)
            if take
        ]
        if pairs:
            axes.scatter(
                *zip(*pairs, strict=True), s=42, edgecolors=edge, facecolors=face, label=label, zorder=3
            )


def _draw_lowest(axes: Axes, rows: Sequence[TrialRow], depths: Sequence[int], zero: float) -> None:
    """Connect the lowest errors of finished trials of each depth."""
    lowest: dict[int, float] = {}
    for row, depth in zip(rows, depths, strict=True):
        if row.status == FINISHED:
            lowest[depth] = min(lowest.get(depth, math.inf), max(row.error_percent or 0.0, zero))
    axes.plot(
        *zip(*sorted(lowest.items()), strict=True), color=BLUE, linewidth=0.8, alpha=0.5, label="lowest"
    )
    axes.legend()


def _draw_front(axes: Axes, front: Sequence[TrialRow], zero: float) -> None:
    if front:
        speeds = [row.images_per_s or 0.0 for row in front]
        errors = [max(row.error_percent or 0.0, zero) for row in front]
        axes.plot(
            speeds, errors, "o-", color=GREEN, linewidth=1.2, markersize=11, fillstyle="none",
            label="Pareto front",
        )  # fmt: skip
    axes.legend()
