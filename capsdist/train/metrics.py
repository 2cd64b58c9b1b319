"""The run's own record: `metrics.jsonl`, one event a line, and TensorBoard's event files beside it.

Written by rank 0 alone. Curves stay single-valued when a run resumes: see `RunWriter`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["METRICS_NAME", "Row", "RunWriter", "parse_metrics", "read_metrics"]

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"

Row = dict[str, Any]
"""An event of a run: `kind`, `step` and what belongs to the kind; README.md lists them."""

_CURVES = {
    "train": (
        "loss", "margin_loss", "reconstruction_loss", "error_percent", "learning_rate", "grad_norm",
        "images_per_s",
    ),
    "validation": ("loss", "error_percent"),
}  # fmt: skip


class RunWriter:
    """Write events into a run's folder; call it with each row.

    A row is on disk when the call returns (line-buffered), so that others can follow the file. A `start` row
    says from which step the run goes on: rows of later steps, which a crashed attempt has left and this one
    will write again, are dropped from `metrics.jsonl` (rewritten beside it, then renamed), and TensorBoard is
    told to hide them (its `purge_step`). `start` rows of earlier attempts stay: they mark the restarts, and
    `num_starts` counts them together with this one.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / METRICS_NAME
        run_dir.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", buffering=1)
        self._tensorboard: SummaryWriter | None = None
        self.num_starts = 0

    def __call__(self, row: Row) -> None:
        """Write one row; numbers that are not finite become null."""
        row = {name: _finite(value) for name, value in row.items()}
        if row["kind"] == "start":
            self._start(row["resumed_step"])
        self._file.write(json.dumps(row) + "\n")
        if self._tensorboard:
            for name in _CURVES.get(row["kind"], ()):
                if row.get(name) is not None:
                    self._tensorboard.add_scalar(f"{row['kind']}/{name}", row[name], row["step"])
            if row["kind"] == "validation":
                self._tensorboard.flush()

    def _start(self, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # late: it takes a second to import

        self._file.close()
        kept = [row for row in read_metrics(self.path) if row["step"] <= resumed_step]
        self.num_starts = 1 + sum(row["kind"] == "start" for row in kept)
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(fresh, self.path)
        self._file = self.path.open("a", buffering=1)
        self._tensorboard = SummaryWriter(
            str(self.path.parent / TENSORBOARD_NAME), purge_step=resumed_step + 1
        )

    def flush(self) -> None:
        """Have all rows in the files, those of TensorBoard too."""
        self._file.flush()
        if self._tensorboard:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a `metrics.jsonl`, without a last line that a crash has cut off."""
    return parse_metrics(path.read_bytes()) if path.exists() else []


def parse_metrics(content: bytes) -> list[Row]:
    """Return the rows that the `content` of a `metrics.jsonl` holds; as `read_metrics`."""
    lines = content.splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return value
