"""The files of a study: claims.json with every number, claims.md, and a figure for each experiment."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

from capsdist.analysis.drawing import BLUE, ORANGE, STYLE
from capsdist.claims.experiment import BASELINE, CAPSNET, Result
from capsdist.claims.study import Study
from capsdist.statistics import mean_interval
from capsdist.storage.documents import dump_json, seal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["NUMBERS", "TABLE", "draw_result", "files_of", "markdown"]

NUMBERS, TABLE = "claims.json", "claims.md"
_COLOURS = {CAPSNET: BLUE, BASELINE: ORANGE}
_NAMES = {CAPSNET: "capsule network", BASELINE: "CNN"}


def files_of(study: Study) -> dict[str, bytes]:
    """Return the files of a study by name: claims.json, claims.md, and a figure for each experiment."""
    contents = {NUMBERS: dump_json(seal(study.as_data())), TABLE: markdown(study).encode()}
    for result in study.results:
        contents[f"{result.experiment.name}.png"] = _drawn(result, study.note)
    return contents


def _drawn(result: Result, note: str) -> bytes:
    content = io.BytesIO()
    draw_result(result, note).savefig(content, format="png")
    return content.getvalue()


def markdown(study: Study) -> str:
    """Return the study as text: networks, claims, and a table of each experiment."""
    settings = study.settings
    lines = ["# Claims about capsule networks", ""]
    lines += [f"**{study.note}**", ""] if study.note else []
    lines += [
        f"Capsule network ({settings.size}) against the baseline CNN with as many parameters; seeds "
        f"{', '.join(map(str, settings.seeds))}. Intervals are of 95 percent confidence, by Student's t over "
        "seeds; differences are of pairs with the same seed, capsule network minus CNN.",
        "",
        "| data | network | parameters | FLOP of an image, testing | FLOP of an image, training |",
        "|---|---|---|---|---|",
    ]
    for data, both in study.sizes.items():
        for network, size in both.items():
            flop = f"{size.forward_flop:,} | {size.training_flop:,}"
            lines.append(f"| {data} | {_NAMES[network]} | {size.parameters:,} | {flop} |")
    lines += ["", "## Claims", ""]
    lines += [f"- {sentence}" for sentence in study.sentences]
    for result in study.results:
        lines += _table(result)
    return "\n".join(lines) + "\n"


def _table(result: Result) -> list[str]:
    own, data = result.experiment, result.as_data()
    lines = ["", f"## {own.title}", ""]
    for series, words in own.series.items():
        lines += [
            f"| {own.condition} | capsule network: {words} | CNN: {words} | difference (interval) |",
            "|---|---|---|---|",
        ]
        for place, condition in enumerate(own.conditions):
            cells = [_mean_cell(result.seeds(network, series, place)) for network in (CAPSNET, BASELINE)]
            found = data["capsnet_minus_baseline"][series][place]
            difference = "one seed" if found is None else "{:+.3g} ({:+.3g} to {:+.3g})".format(*found)
            shown = f"{condition:g}" if isinstance(condition, float | int) else condition
            lines.append(f"| {shown} | {cells[0]} | {cells[1]} | {difference} |")
        lines.append("")
    return lines[:-1]


def _mean_cell(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3g} ({', '.join(f'{value:.3g}' for value in values)})"


def draw_result(result: Result, note: str = "") -> Figure:
    """Return the figure of an experiment: for each series both networks, every seed and the mean.

    Bars are intervals of the means; the claims stand above, as they were decided.
    """
    import matplotlib
    from matplotlib.figure import Figure

    own = result.experiment
    with matplotlib.rc_context(STYLE):
        wide = len(own.series)
        texts = [own.title, note, *(f"{each.claim}: {each.verdict}" for each in result.findings)]
        width = max(7.5, 4.6 * wide)
        heading = [line for each in texts for line in textwrap.wrap(each, round(14 * width))]
        size = (width, 3.9 + 0.2 * len(heading))
        figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="white")
        figure.suptitle("\n".join(heading), x=0.012, ha="left", fontsize=9)
        for axes, (series, words) in zip(
            figure.subplots(1, wide, squeeze=False).flat, own.series.items(), strict=True
        ):
            axes.set(xlabel=own.condition, ylabel=words)
            _draw_series(axes, result, series)
        figure.axes[0].legend()
    return figure


def _draw_series(axes: Axes, result: Result, series: str) -> None:
    conditions = result.experiment.conditions
    numbers = [each for each in conditions if isinstance(each, float | int)]
    numeric = len(numbers) == len(conditions)
    places = numbers if numeric else list(range(len(conditions)))
    for network, colour in _COLOURS.items():
        rows = [result.seeds(network, series, place) for place in range(len(conditions))]
        for place, values in zip(places, rows, strict=True):
            axes.plot([place] * len(values), values, ".", color=colour, alpha=0.4, markersize=4)
        order = sorted(range(len(places)), key=places.__getitem__)
        means = [sum(rows[at]) / len(rows[at]) for at in order]
        bars: dict[str, Any] = {}
        if len(rows[0]) > 1:
            found = [mean_interval(rows[at]) for at in order]
            bars["yerr"] = [[mean - low for mean, low, _ in found], [high - mean for mean, _, high in found]]
        line = "-" if numeric else "none"
        axes.errorbar(
            [places[at] for at in order], means, color=colour, marker="o", markersize=4, capsize=3,
            linewidth=1.2, linestyle=line, label=_NAMES[network], **bars,
        )  # fmt: skip
    if not numeric:
        axes.set_xticks(places, [str(each) for each in conditions])
    elif len(numbers) > 1 and min(numbers) > 0 and max(numbers) / min(numbers) > 20:
        axes.set_xscale("log")
        axes.set_xticks(numbers, [f"{each:g}" for each in numbers])
        axes.minorticks_off()
