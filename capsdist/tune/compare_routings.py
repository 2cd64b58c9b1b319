"""Every routing algorithm at equal parameters as a grid: its cells and rows. Starts nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from capsdist.config import Config, get_preset, with_values
from capsdist.statistics import paired_interval
from capsdist.tune.cells import Cell
from capsdist.tune.journal import FINISHED

__all__ = ["REFERENCE", "RoutingCell", "RoutingRow", "markdown", "routing_cells", "rows_of"]

REFERENCE = "dynamic"
"""The row that the others are compared with."""
_SMALL = {"model.conv_channels": 16, "model.primary_types": 2, "model.class_dim": 8, "model.decoder": False}
# What an algorithm needs, and what makes the numbers of parameters equal: Heinsen's votes have a bias.
_ROWS: dict[str, dict[str, object]] = {
    REFERENCE: {},
    "attention": {"model.log_priors": True},
    "inverted": {},
    "heinsen": {"model.class_dim": 7},
    "grouped": {"routing.groups": 2, "model.log_priors": True},
    "average": {},
    "fully_connected": {},
}
_EM_ROW = "em"


@dataclass(frozen=True)
class RoutingCell:
    """One training: an algorithm with one seed."""

    row: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """Name of its run in the grid."""
        return f"{self.row}-seed{self.seed}"


@dataclass
class RoutingRow:
    """What was found of an algorithm.

    Attributes:
        num_parameters, deviation_percent: trainable numbers, and how far they are from those of `dynamic`.
        saved_bytes_per_image: what autograd keeps from the forward to the backward pass.
        seeds, error_percent, error_interval_percent, images_per_s: of the runs that finished; intervals are
            Wilson's of 95 percent: what other images would give.
        mnist_error_percent: on MNIST's own test images that are not among the embedded digits; empty if not
            asked for.
        mean_percent: over the seeds. minus_dynamic: mean difference over equal seeds, and the ends of its
            95 % interval by Student's t; None with fewer than two pairs.
    """

    row: str
    num_parameters: int
    deviation_percent: float
    saved_bytes_per_image: float
    seeds: list[int] = field(default_factory=list)
    error_percent: list[float] = field(default_factory=list)
    error_interval_percent: list[list[float] | None] = field(default_factory=list)
    images_per_s: list[float] = field(default_factory=list)
    mnist_error_percent: list[float] = field(default_factory=list)
    mean_percent: float | None = None
    minus_dynamic: list[float] | None = None
    not_finished: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return asdict(self)


def routing_cells(base: Config, num_seeds: int) -> list[RoutingCell]:
    """Return all cells; base: the preset `digits_quickstart` with the options of the command line.

    All train on the 4,000 training digits without validation, in networks of as many parameters, with the
    same seeds, batches and epochs. EM routing has the learning rate of its preset, as it has another loss.
    """
    fields = {
        "data.train_split": "train",
        "data.validation_split": None,
        "train.keep_best": 0,
        "train.global_batch_size": 32,
    }
    base = with_values(base, fields)
    small = with_values(base, _SMALL)
    rows = {row: with_values(small, {"routing.algorithm": row, **values}) for row, values in _ROWS.items()}
    own = get_preset("digits_em")
    parts = {name: getattr(own, name) for name in ("model", "routing", "loss", "optim")}
    rows[_EM_ROW] = base.model_copy(update=parts)
    first = base.train.seed
    return [
        RoutingCell(row, seed, with_values(config, {"train.seed": seed}))
        for row, config in rows.items()
        for seed in range(first, first + num_seeds)
    ]


def rows_of(
    cells: Sequence[RoutingCell],
    outcomes: Mapping[str, Cell],
    speeds: Mapping[str, float | None],
    mnist: Mapping[str, float],
    saved: Mapping[str, float],
) -> list[RoutingRow]:
    """Return a row for each algorithm, in the order of the cells.

    outcomes, speeds, mnist: what became of a cell, its images/s, and its error on MNIST, by the cell's name;
    saved: bytes kept of an image, by row.
    """
    from capsdist.models.counts import num_parameters  # late: it imports torch

    rows: dict[str, RoutingRow] = {}
    for cell in cells:
        if cell.row not in rows:
            number = num_parameters(cell.config)
            of_dynamic = rows[REFERENCE].num_parameters if REFERENCE in rows else number
            deviation = 100 * (number - of_dynamic) / of_dynamic
            rows[cell.row] = RoutingRow(cell.row, number, deviation, saved[cell.row])
        row, outcome = rows[cell.row], outcomes[cell.name]
        if outcome.status != FINISHED or outcome.error_percent is None:
            row.not_finished.append(f"{cell.name}: {outcome.status} {outcome.reason}".strip())
            continue
        row.seeds.append(cell.seed)
        row.error_percent.append(outcome.error_percent)
        row.error_interval_percent.append(outcome.error_interval_percent)
        row.images_per_s += [] if (speed := speeds.get(cell.name)) is None else [speed]
        row.mnist_error_percent += [mnist[cell.name]] if cell.name in mnist else []
    for row in rows.values():
        row.mean_percent = statistics.fmean(row.error_percent) if row.error_percent else None
        row.minus_dynamic = _minus(row, rows[REFERENCE])
    return list(rows.values())


def _minus(row: RoutingRow, reference: RoutingRow) -> list[float] | None:
    """Return the paired difference of `row` and the reference over the seeds that both have."""
    both = [seed for seed in row.seeds if seed in reference.seeds]
    if row is reference or len(both) < 2:
        return None
    own, others = ([of.error_percent[of.seeds.index(seed)] for seed in both] for of in (row, reference))
    return list(paired_interval(own, others))


def markdown(rows: Sequence[RoutingRow], title: str) -> str:
    """Return the table as text."""
    with_mnist = any(row.mnist_error_percent for row in rows)
    heads = ["routing", "parameters", "error in percent, by seed", "its interval, first seed", "mean"]
    heads += [f"minus {REFERENCE} (interval over seeds)", "images/s", "bytes kept an image"]
    heads += ["MNIST test, mean"] if with_mnist else []
    lines = [f"# {title}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        interval = row.error_interval_percent[0] if row.error_interval_percent else None
        cells = [
            row.row,
            f"{row.num_parameters:,} ({row.deviation_percent:+.2f} %)",
            ", ".join(f"{value:.2f}" for value in row.error_percent) or "; ".join(row.not_finished),
            "-" if interval is None else "{:.2f} to {:.2f}".format(*interval),
            _mean([] if row.mean_percent is None else [row.mean_percent], ".2f"),
            "-" if row.minus_dynamic is None else "{:+.2f} ({:+.2f} to {:+.2f})".format(*row.minus_dynamic),
            _mean(row.images_per_s, ",.0f"),
            f"{row.saved_bytes_per_image:,.0f}",
            *([_mean(row.mnist_error_percent, ".2f")] if with_mnist else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float], form: str) -> str:
    return format(statistics.fmean(values), form) if values else "-"
