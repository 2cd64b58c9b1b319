"""Draw the points of the study of shapes with their fits: one picture for memory, one for time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from capsdist.bench.scaling_fit import fit_power
from capsdist.bench.scaling_shapes import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_points", "save_plots"]

_COLORS = ("#0072B2", "#D55E00", "#009E73")  # of Okabe and Ito's palette
_COLUMNS = 3

_Value = Callable[[Point], float | None]


def save_plots(folder: Path, points: Mapping[str, Sequence[Point]]) -> list[Path]:
    """Write memory.png and time.png into `folder`; return their paths, none without points."""
    if not points:
        return []
    pictures = {
        "memory": draw_points(points, "MB", {
            "working": lambda p: p.working_bytes and p.working_bytes / 1e6,
            "total": lambda p: p.total_bytes / 1e6,
        }),
        "time": draw_points(points, "ms", {"": lambda p: 1e3 * p.seconds}),
    }  # fmt: skip
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=90)
    return [folder / f"{name}.png" for name in pictures]


def draw_points(points: Mapping[str, Sequence[Point]], unit: str, kinds: Mapping[str, _Value]) -> Figure:
    """Return a figure with a panel a study; both axes are logarithmic, lines are the fitted powers."""
    from matplotlib.figure import Figure  # late: it takes a second to import

    rows = -(-len(points) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 3 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for panel, (name, found) in zip(panels, points.items(), strict=False):
        for number, backend in enumerate(dict.fromkeys(point.backend for point in found)):
            for (kind, value), marker in zip(kinds.items(), "ox", strict=False):
                pairs = [(p.value, value(p)) for p in found if p.backend == backend]
                drawn = [(size, amount) for size, amount in pairs if amount and amount > 0]
                if len(drawn) > 1:
                    sizes, amounts = zip(*drawn, strict=True)
                    power = fit_power(sizes, amounts)
                    label = f"{backend} {kind}".strip() + f": {power.exponent:.2f} ± {power.error:.2f}"
                    panel.plot(sizes, amounts, marker, color=_COLORS[number], label=label)
                    panel.plot(sizes, [power(size) for size in sizes], color=_COLORS[number], linewidth=0.8)
        panel.set(xscale="log", yscale="log", xlabel=name, ylabel=unit)
        panel.legend(fontsize=7, frameon=False)
    for panel in panels:
        panel.set_axis_off()
    return figure
