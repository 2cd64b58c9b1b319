"""The depth curve as a grid: stacks of capsule layers, without and with each remedy. Starts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from capsdist.config import Config, with_values
from capsdist.config.conv_capsnet import ConvCapsNetConfig
from capsdist.tune.cells import Cell

__all__ = [
    "FAILED_ERROR_PERCENT", "FAILED_LIVE_PERCENT", "REMEDIES", "DepthCell", "DepthRow", "Remedy",
    "depth_cells", "failing_depth", "markdown", "rows_of",
]  # fmt: skip

Remedy = Literal["none", "bias", "norm", "priors", "dropout", "residual"]
REMEDIES: dict[Remedy, dict[str, object]] = {
    "none": {},
    "bias": {"model.capsule_bias": True},
    "norm": {"model.pose_norm": True},
    "priors": {"model.log_priors": True},
    "dropout": {"model.capsule_dropout": 0.1},
    "residual": {"model.residual": True},
}
"""What differs from a stack without remedies."""
FAILED_ERROR_PERCENT = 50.0
FAILED_LIVE_PERCENT = 10.0
"""A depth fails with a larger error, or fewer live capsules in one of its layers."""
_OFF = {
    "model.capsule_bias": False, "model.pose_norm": False, "model.log_priors": False,
    "model.capsule_dropout": 0.0, "model.residual": False,
}  # fmt: skip


@dataclass(frozen=True)
class DepthCell:
    """One training: a number of capsule layers, class capsules included, and a remedy."""

    depth: int
    remedy: Remedy
    config: Config

    @property
    def name(self) -> str:
        """Name of its run in the grid."""
        return f"depth{self.depth}-{self.remedy}"


@dataclass(frozen=True)
class DepthRow:
    """What became of a cell.

    Attributes:
        error_percent, error_interval_percent, steps: of a run that finished, else None.
        live_percent: the least share of live capsules of a layer, after training (`LayerHealth`).
        ailing: ``layer: illness`` of each finding of `capsdist doctor`.
        failed: whether the depth fails: its error, or a layer of it.
        reason: why there is no error.
    """

    depth: int
    remedy: Remedy
    error_percent: float | None
    error_interval_percent: list[float] | None
    steps: int
    live_percent: float | None
    ailing: list[str]
    failed: bool | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return asdict(self)


def depth_cells(config: Config, depths: Iterable[int], remedies: Sequence[Remedy]) -> list[DepthCell]:
    """Return all cells; all layers of a stack have the types and dimensions of the primary capsules.

    Strides are 1 and padding `same`, so that each layer fits a residual path. A stack of class capsules alone
    has none: that cell is left out.
    """
    model = config.model
    assert isinstance(model, ConvCapsNetConfig)
    cells = []
    for depth in dict.fromkeys(depths):
        below = depth - 1
        sizes = {
            "model.capsule_types": (model.primary_types,) * below,
            "model.capsule_dims": (model.primary_dim,) * below,
            "model.capsule_kernels": (3,) * below,
            "model.capsule_strides": (1,) * below,
            "model.capsule_padding": "same",
        }
        for remedy in dict.fromkeys(remedies):
            if below or remedy != "residual":
                values = {**_OFF, **sizes, **REMEDIES[remedy]}
                cells.append(DepthCell(depth, remedy, with_values(config, values)))
    return cells


def rows_of(
    cells: Sequence[DepthCell],
    outcomes: Mapping[str, Cell],
    live_percent: Mapping[str, float],
    ailing: Mapping[str, list[str]],
) -> list[DepthRow]:
    """Return the rows of the table; outcomes, live_percent and ailing by name of a cell."""
    rows = []
    for cell in cells:
        found, live = outcomes[cell.name], live_percent.get(cell.name)
        error = found.error_percent
        failed = None
        if error is not None:
            failed = error > FAILED_ERROR_PERCENT or (live is not None and live < FAILED_LIVE_PERCENT)
        rows.append(
            DepthRow(
                depth=cell.depth,
                remedy=cell.remedy,
                error_percent=error,
                error_interval_percent=found.error_interval_percent,
                steps=found.step,
                live_percent=live,
                ailing=ailing.get(cell.name, []),
                failed=failed,
                reason="" if error is not None else f"{found.status} {found.reason}".strip(),
            )
        )
    return rows


def failing_depth(rows: Sequence[DepthRow], remedy: str) -> int | None:
    """Return the least depth that fails with a remedy, None if none does."""
    return min((row.depth for row in rows if row.remedy == remedy and row.failed), default=None)


def markdown(rows: Sequence[DepthRow], title: str) -> str:
    """Return the table as Markdown, which people read as it is printed, too."""
    heads = ("layers", "remedy", "error_percent", "95 % interval", "least live percent", "ailing")
    lines = [f"# {title}", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        error = row.reason if row.error_percent is None else f"{row.error_percent:.2f}"
        low, high = row.error_interval_percent or (None, None)
        interval = "" if low is None else f"{low:.2f} to {high:.2f}"
        live = "" if row.live_percent is None else f"{row.live_percent:.1f}"
        ailing = ", ".join(row.ailing) or ("" if row.live_percent is None else "none")
        lines.append(f"| {row.depth} | {row.remedy} | {error} | {interval} | {live} | {ailing} |")
    lines.append("")
    for remedy in dict.fromkeys(row.remedy for row in rows):
        depth = failing_depth(rows, remedy)
        where = "fails at no depth" if depth is None else f"fails at {depth} layers"
        lines.append(f"{remedy}: {where}")
    limits = f"error above {FAILED_ERROR_PERCENT:g} %, or a layer with fewer than {FAILED_LIVE_PERCENT:g} %"
    return "\n".join([*lines, "", f"A depth fails: {limits} live capsules."]) + "\n"
