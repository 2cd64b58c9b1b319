"""Table 1 of the paper as a grid: its cells, and the rows that their outcomes make. Starts nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from capsdist.bench.paper_aims import TABLE_1
from capsdist.config import Config, with_values
from capsdist.config.presets.mnist_ablation import ABLATIONS
from capsdist.statistics import paired_interval
from capsdist.tune.cells import Cell, changed_values
from capsdist.tune.journal import FINISHED

__all__ = [
    "REFERENCE", "SET_BY_ROWS", "TableCell", "TableRow", "markdown", "presets_of", "rows_of", "table_cells",
]  # fmt: skip

BASELINE = "baseline"
REFERENCE = "r3-reconstruction"
"""The row that the others are compared with."""
_ROWS = {
    "r1": {"routing.iterations": 1, "model.decoder": False},
    "r1-reconstruction": {"routing.iterations": 1, "model.decoder": True},
    "r3": {"routing.iterations": 3, "model.decoder": False},
    REFERENCE: {"routing.iterations": 3, "model.decoder": True},
}
SET_BY_ROWS = ("model.kind", *_ROWS[REFERENCE])
"""What tells the rows apart: no option of a table."""


@dataclass(frozen=True)
class TableCell:
    """One training: a row of a column, with one seed."""

    column: str
    row: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """Name of its run in the grid."""
        return f"{self.column}-{self.row}-seed{self.seed}"


@dataclass(frozen=True)
class TableRow:
    """A row of a column: errors in percent by seed, and what the paper has.

    Attributes:
        seeds, error_percent, error_interval_percent, steps: of the runs that finished; each interval is
            Wilson's, of 95 percent: what other images would give that network.
        mean_percent, sd_percent: over the seeds; None without one, or without two.
        minus_reference: mean difference from the row r=3 with reconstruction over equal seeds, and the ends
            of its 95 % interval by Student's t; None with fewer than two pairs.
        not_finished: status of the other cells, and why, by name.
    """

    column: str
    row: str
    num_parameters: int
    paper_percent: float | None
    paper_sd_percent: float | None
    seeds: list[int] = field(default_factory=list)
    error_percent: list[float] = field(default_factory=list)
    error_interval_percent: list[list[float] | None] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    mean_percent: float | None = None
    sd_percent: float | None = None
    minus_reference: list[float] | None = None
    not_finished: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return asdict(self)


def presets_of(columns: Sequence[str], ablations: bool) -> list[str]:
    """Return the presets that the cells are made of."""
    names = [f"{column}_{kind}" for column in columns for kind in (BASELINE, "paper")]
    return [*names, *(ABLATIONS if ablations and "mnist" in columns else ())]


def table_cells(bases: Mapping[str, Config], columns: Sequence[str], num_seeds: int) -> list[TableCell]:
    """Return all cells; bases: configurations of `presets_of`, by name, with what they have in common.

    An ablation that is no other training than the row r=3 with reconstruction, under the options given, is
    left out: that of the epochs where their number is given.
    """
    cells = []
    for column in columns:
        paper = bases[f"{column}_paper"]
        rows = {BASELINE: bases[f"{column}_{BASELINE}"]}
        rows |= {row: with_values(paper, values) for row, values in _ROWS.items()}
        if column == "mnist":
            others = {name: bases[name] for name in ABLATIONS if name in bases}
            rows |= {name: each for name, each in others.items() if changed_values(rows[REFERENCE], each)}
        for row, config in rows.items():
            first = config.train.seed
            for seed in range(first, first + num_seeds):
                cells.append(TableCell(column, row, seed, with_values(config, {"train.seed": seed})))
    return cells


def rows_of(cells: Sequence[TableCell], outcomes: Mapping[str, Cell]) -> list[TableRow]:
    """Return the rows of the table; outcomes: what became of each cell, by name."""
    from capsdist.models.counts import num_parameters  # late: it imports torch

    grouped: dict[tuple[str, str], list[TableCell]] = {}
    for cell in cells:
        grouped.setdefault((cell.column, cell.row), []).append(cell)
    errors = {key: _errors(group, outcomes) for key, group in grouped.items()}
    rows = []
    for (column, row), group in grouped.items():
        found = errors[column, row]
        done = [outcomes[cell.name] for cell in group if cell.seed in found]
        others = [outcomes[cell.name] for cell in group if cell.seed not in found]
        paper, sd = TABLE_1.get((column, row)) or (None, None)
        values = list(found.values())
        rows.append(
            TableRow(
                column=column,
                row=row,
                num_parameters=num_parameters(group[0].config),
                paper_percent=paper,
                paper_sd_percent=sd,
                seeds=list(found),
                error_percent=values,
                error_interval_percent=[each.error_interval_percent for each in done],
                steps=[each.step for each in done],
                mean_percent=statistics.fmean(values) if values else None,
                sd_percent=statistics.stdev(values) if len(values) > 1 else None,
                minus_reference=None if row == REFERENCE else _minus(found, errors[column, REFERENCE]),
                not_finished={each.name: f"{each.status} {each.reason}".strip() for each in others},
            )
        )
    return rows


def _errors(group: Sequence[TableCell], outcomes: Mapping[str, Cell]) -> dict[int, float]:
    """Return the errors of the cells that finished, by seed."""
    found = {cell.seed: outcomes[cell.name] for cell in group}
    return {
        seed: each.error_percent
        for seed, each in found.items()
        if each.status == FINISHED and each.error_percent is not None
    }


def _minus(errors: Mapping[int, float], reference: Mapping[int, float]) -> list[float] | None:
    seeds = [seed for seed in errors if seed in reference]
    if len(seeds) < 2:
        return None
    return list(paired_interval([errors[seed] for seed in seeds], [reference[seed] for seed in seeds]))


def markdown(rows: Sequence[TableRow], title: str) -> str:
    """Return the table as Markdown, which people read as it is printed, too."""
    heads = ("row", "paper", "error_percent", "sd", "each, 95 % interval", f"minus {REFERENCE}", "parameters")
    lines = [f"# {title}", ""]
    for column in dict.fromkeys(row.column for row in rows):
        lines += [f"## {column}", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        lines += [f"| {' | '.join(_texts(row))} |" for row in rows if row.column == column]
        lines.append("")
    lines += [
        "error_percent: mean over the seeds, sd their standard deviation. The interval of a run is Wilson's, "
        "for other images; that of a difference is Student's t over pairs of equal seeds.",
        *(f"{name}: {what}" for row in rows for name, what in row.not_finished.items()),
    ]
    return "\n".join(lines) + "\n"


def _texts(row: TableRow) -> list[str]:
    paper = "" if row.paper_percent is None else f"{row.paper_percent:g}"
    paper += "" if row.paper_sd_percent is None else f" ± {row.paper_sd_percent:g}"
    runs = []
    for error, interval in zip(row.error_percent, row.error_interval_percent, strict=True):
        runs.append(f"{error:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""))
    minus = row.minus_reference
    return [
        row.row,
        paper or "no figure",
        "not finished" if row.mean_percent is None else f"{row.mean_percent:.3f}",
        "" if row.sd_percent is None else f"{row.sd_percent:.3f}",
        ", ".join(runs),
        "" if minus is None else f"{minus[0]:+.3f} ({minus[1]:+.3f} to {minus[2]:+.3f})",
        f"{row.num_parameters:,}",
    ]
