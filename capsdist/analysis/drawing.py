"""Draw the overview of a run: learning curves, reconstructions of test images, confusions.

Pure: from rows and arrays to a matplotlib figure, without files and without pyplot's global state.
Colours are of Okabe and Ito's palette, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Row = Mapping[str, Any]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLUMNS = 12
_NO_CLASSES = "none: the network names no classes"
MAX_WRITTEN_CLASSES = 12
"""Up to so many classes the confusion table has its counts written into its cells."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Samples:
    """Images to show, of the test split or before the test of that for validation, one column each.

    images [N, H, W] or [N, H, W, 3] in [0, 1]; reconstructions alike, or None without decoder;
    labels, predictions and targets [N]: the class, the class that was read, and the class whose capsule
    was decoded (paper, figure 3: l, p, r); [N, K] for up to K classes of an image, -1 where it has fewer
    (figure 5). ids [N]: numbers of the images in their split.
    """

    images: np.ndarray
    reconstructions: np.ndarray | None
    labels: np.ndarray
    predictions: np.ndarray
    targets: np.ndarray
    ids: np.ndarray | None = None


def draw_overview(rows: Sequence[Row], samples: Samples, classes: Sequence[str]) -> Figure:
    """Return the figure of a run.

    Args:
        rows: event rows of the run in order; those of kind train and validation are drawn, the start row
            and the test, or else the last validation, are put into words.
        samples: test images; any number, 12 in a line.
        classes: name of each class.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        bands = max(1, -(-len(samples.labels) // COLUMNS))
        lines = 1 if samples.reconstructions is None else 2
        heights = [0.5, 4.3, 0.4 + bands * (1.12 * lines + 0.45)]
        figure = Figure(figsize=(14, sum(heights)), dpi=110, layout="constrained", facecolor="white")
        head, middle, bottom = figure.subfigures(3, 1, height_ratios=heights, squeeze=False).flat
        head.text(0.012, 0.3, headline(rows), fontsize=14)
        loss, error, confusion = middle.subplots(1, 3, width_ratios=(1, 1, 1.02))
        _draw_loss(loss, rows)
        _draw_error(error, rows)
        _draw_confusion(confusion, rows, classes)
        _draw_samples(bottom, samples, classes, shown_split(rows))
    return figure


def headline(rows: Sequence[Row]) -> str:
    """Return the run in one line: name, size, machine, steps, and the error of the last evaluation."""
    start = next((row for row in reversed(rows) if row["kind"] == "start"), {})
    parts = [str(start["run"])] if "run" in start else []
    if "num_parameters" in start:
        parts.append(f"{start['num_parameters'] / 1e6:.1f} M parameters")
    if "world_size" in start:
        workers = "worker" if start["world_size"] == 1 else "workers"
        parts.append(
            f"{start['world_size']} {workers}, {start.get('device', '')} {start.get('precision', '')}"
        )
    last = max((int(row.get("step", 0)) for row in rows), default=0)
    parts.append(f"{last:,} steps")
    if row := last_evaluation(rows):
        of_labels = row.get("label_error_percent")
        also = "" if of_labels is None else f", {of_labels:.2f} % of their labels"
        split = "test" if row["kind"] == "test" else validated_on(rows)
        error = f"error {row['error_percent']:.2f} %" if "error_percent" in row else f"loss {row['loss']:.3g}"
        parts.append(f"{error} of {row['num_images']:,} {split} images{also}")
    return "   |   ".join(parts)


def of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    """Return the rows of a kind."""
    return [row for row in rows if row["kind"] == kind]


def last_evaluation(rows: Sequence[Row]) -> Row | None:
    """Return the row of the test, without one that of the last validation, None without either."""
    evaluations = [*of_kind(rows, "validation"), *of_kind(rows, "test")]
    return max(evaluations, key=lambda row: (row["step"], row["kind"] == "test"), default=None)


def validated_on(rows: Sequence[Row]) -> str:
    """Return what validations are called: "test" where they are on the test split, as in version 0.1."""
    start = next((row for row in reversed(rows) if row["kind"] == "start"), {})
    test = start.get("test_split")
    return "test" if start.get("validation_split", test) in (None, test) else "validation"


def shown_split(rows: Sequence[Row]) -> str:
    """Return of which split images of a run are shown: Test, before the test Validation where it has both."""
    untested = validated_on(rows) == "validation" and not of_kind(rows, "test")
    return "Validation" if untested else "Test"


def curve(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of the rows that have a number `name`, and those numbers: float64 [n] each."""
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
    return steps, values


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the running mean of `values` over about a thirtieth of them, so that curves can be read."""
    width = max(1, len(values) // 30)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    first = np.maximum(np.arange(1, len(values) + 1) - width, 0)
    last = np.arange(1, len(values) + 1)
    return (sums[last] - sums[first]) / (last - first)


def place_of_zero(errors: Sequence[float] | np.ndarray) -> float:
    """Return where an error of 0 is drawn on a logarithmic axis, which has no zero: below all others."""
    return min((error for error in errors if error > 0), default=1.0) / 2


def percent_ticks(low: float, high: float, zero: float | None) -> list[float]:
    """Return the ticks of a logarithmic axis of errors from `low` to `high`, at most eight.

    zero: where an error of 0 is drawn, which then has a tick and no other one near it; None if there is none.
    """
    from matplotlib.ticker import MaxNLocator

    decades = np.log10(high / low)
    if decades < 0.5:
        ticks = [float(tick) for tick in MaxNLocator(5).tick_values(low, high)]
    else:
        sparse = (1, 2, 5) if decades < 1.6 else (1, 3) if decades < 3 else (1,)
        steps = (1, 2, 3, 5) if decades < 1 else sparse
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [float(f"{step}e{power}") for power in powers for step in steps]
    nearest = low if zero is None else 1.3 * zero
    return [*([] if zero is None else [zero]), *(tick for tick in ticks if max(low, nearest) <= tick <= high)]


def label_percents(axes: Axes, zero: float | None) -> None:
    """Give the logarithmic y axis of errors the ticks of `percent_ticks`; that of `zero` says 0."""
    from matplotlib.ticker import NullLocator

    axes.set_yticks(percent_ticks(*axes.get_ylim(), zero))
    axes.yaxis.set_major_formatter(lambda value, _: "0" if value == zero else f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_loss(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set(title="Loss", xlabel="step", yscale="log")
    steps, values = curve(of_kind(rows, "train"), "loss")
    axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smoothed(values), color=BLUE, linewidth=1.6, label="training")
    steps, values = curve(of_kind(rows, "validation"), "loss")
    if len(steps):
        label = validated_on(rows)
        axes.plot(steps, values, "o-", color=ORANGE, linewidth=1.2, markersize=5, label=label)
    axes.legend()


def _draw_error(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set(title="Error in percent", xlabel="step", yscale="log")
    steps, values = curve(of_kind(rows, "train"), "error_percent")
    if not len(values) and of_kind(rows, "train"):
        axes.set(yscale="linear", xticks=[], yticks=[])
        axes.text(0.5, 0.5, _NO_CLASSES, ha="center", va="center", color=GREY, transform=axes.transAxes)
        return
    values = smoothed(values)
    kinds = (("validation", validated_on(rows), "o-", ORANGE), ("test", "test", "D", GREEN))
    measured = {kind: curve(of_kind(rows, kind), "error_percent") for kind, *_ in kinds}
    drawn = np.concatenate([values, *(errors for _, errors in measured.values())])
    zero = place_of_zero(drawn)
    axes.plot(steps, np.maximum(values, zero), color=BLUE, linewidth=1.2, label="training")
    for kind, label, mark, colour in kinds:
        steps, values = measured[kind]
        if not len(values):
            continue
        shown = np.maximum(values, zero)
        axes.plot(steps, shown, mark, color=colour, linewidth=1.2, markersize=5, label=label)
        if kind == "test" or not len(measured["test"][1]):  # one number, that of the last evaluation
            axes.annotate(
                f"{values[-1]:.2f}", (steps[-1], shown[-1]), (0, 7), textcoords="offset points",
                ha="right", color=colour, fontweight="bold",
                bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
            )  # fmt: skip
    label_percents(axes, zero if (drawn == 0).any() else None)
    axes.legend()


def _draw_confusion(axes: Axes, rows: Sequence[Row], classes: Sequence[str]) -> None:
    last = last_evaluation(rows) or {}
    tested = last.get("kind") == "test" or validated_on(rows) == "test"
    axes.set_title("Confusions of the last test" if tested else "Confusions of the last validation")
    axes.grid(visible=False)
    if not last.get("confusion"):
        several = "label_error_percent" in last
        words = "none: images have several labels" if several else _NO_CLASSES if last else "not tested yet"
        axes.text(0.5, 0.5, words, ha="center", va="center", color=GREY)
        axes.set(xticks=[], yticks=[])
        return
    table = np.array(last["confusion"])
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    # a power below 1 makes single confusions visible beside a full diagonal
    axes.imshow(share**0.35, cmap="Blues", vmin=0, vmax=1)
    names = [name if len(name) <= 10 else f"{name[:9]}." for name in classes]
    every = -(-len(classes) // 25)
    ticks = np.arange(0, len(classes), every)
    turned: dict[str, Any] = {}
    if max(map(len, names)) > 2:
        angle = 45 if len(classes) <= MAX_WRITTEN_CLASSES else 90
        turned = {"rotation": angle, "ha": "right", "va": "center", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, [names[i] for i in ticks], **turned)
    axes.set_yticks(ticks, [names[i] for i in ticks])
    axes.tick_params(length=0, labelsize=8)
    axes.set(xlabel="read as", ylabel="true class")
    axes.spines[:].set_visible(False)
    if len(classes) <= MAX_WRITTEN_CLASSES:
        for true, read in np.argwhere(table > 0):
            colour = "white" if share[true, read] ** 0.35 > 0.6 else "black"
            size = 8 if table.max() < 1000 else 7
            axes.text(read, true, str(table[true, read]), ha="center", va="center", color=colour, size=size)


def _draw_samples(figure: SubFigure, samples: Samples, classes: Sequence[str], split: str) -> None:
    decoded = samples.reconstructions is not None
    words = f"{split} images, below each its reconstruction" if decoded else f"{split} images"
    also = ", decoded as either class" if decoded else ""
    figure.suptitle(f"{words} (misread ones in orange{also})", x=0.012, ha="left", size=11, weight="bold")
    lines = 2 if decoded else 1
    bands = max(1, -(-len(samples.labels) // COLUMNS))
    for band, part in enumerate(figure.subfigures(bands, 1, squeeze=False).flat):
        grid = part.subplots(lines, COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        first = band * COLUMNS
        for column, n in enumerate(range(first, min(first + COLUMNS, len(samples.labels)))):
            _draw_sample(grid[:, column], samples, n, classes)


def _draw_sample(column: Sequence[Axes], samples: Samples, n: int, classes: Sequence[str]) -> None:
    label, read, target = (
        _members(classes_of[n]) for classes_of in (samples.labels, samples.predictions, samples.targets)
    )
    wrong = label != read
    title = f"{_names(label, classes)}\nread as {_names(read, classes)}" if wrong else _names(label, classes)
    draw_image(column[0], samples.images[n], title, ORANGE if wrong else "black")
    if samples.reconstructions is not None:
        draw_image(
            column[1], samples.reconstructions[n], f"as {_names(target, classes)}" if wrong else "", ORANGE
        )


def _members(numbers: np.ndarray) -> list[int]:
    """Return the class, or the classes but -1, in the order of their numbers."""
    return sorted({int(number) for number in np.atleast_1d(numbers) if number >= 0})


def _names(members: Sequence[int], classes: Sequence[str]) -> str:
    """Return the name of a class, or those of several, each at most six characters long."""
    names = [classes[member] for member in members]
    if len(names) > 1:
        names = [name if len(name) <= 6 else f"{name[:5]}." for name in names]
    return "+".join(names) or "none"


def class_names(labels: np.ndarray, classes: Sequence[str]) -> str:
    """Return the name of the class of an image, or of several, joined by "+"; labels: a number, or [K]."""
    return _names(_members(labels), classes)


def displayable(images: np.ndarray) -> np.ndarray:
    """Return images [N,C,H,W] in [0, 1] as they are drawn: [N,H,W,3], or the mean of the channels [N,H,W]."""
    images = images.clip(0, 1)
    return images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images.mean(1)


def draw_image(axes: Axes, image: np.ndarray, title: str, colour: str = "black") -> None:
    """Draw an image [H, W] or [H, W, 3] in [0, 1] below its title; `axes` has no frame."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    longest = max(map(len, title.split("\n")))
    size = 9 if longest <= 14 else 8 if longest <= 17 else 7
    axes.set_title(title, color=colour, size=size, weight="normal", loc="center", pad=3, parse_math=False)
