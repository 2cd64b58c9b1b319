"""Read the rows of a run: `metrics.jsonl`, one event per line. Needs no torch.

`capsdist.runs.loggers` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from capsdist.console import Log
from capsdist.errors import DocumentError, RunError
from capsdist.storage.documents import parse_document, read_file

__all__ = ["MAX_RECORD_BYTES", "METRICS_NAME", "Row", "finite", "parse_metrics", "read_lines", "read_metrics"]

METRICS_NAME = "metrics.jsonl"
MAX_RECORD_BYTES = 4 << 30
"""Limit of the size of a `metrics.jsonl`: a row a step is 300 bytes."""

Row = dict[str, Any]
"""An event of a run: `kind`, `step` and what belongs to the kind; README.md lists them."""

_END = (
    "run",
    "test_split",
    "stopped",
    "error_percent",
    "num_images",
    "images_per_s",
    "checkpoint",
    "wall_time_s",
)
_REQUIRED = {"start": ("resumed_step",), "end": _END}


class _Shape(BaseModel):
    """Types of the fields of rows; what other versions add passes."""

    model_config = ConfigDict(extra="allow")

    kind: str
    step: NonNegativeInt
    epoch: float | None = None
    run: str = ""
    preset: str = ""
    data: str = ""
    validation_split: str | None = None
    test_split: str = ""
    model: str = ""
    network: str = ""
    precision: str = ""
    engine: str = ""
    speed: str = ""
    variant: str = ""
    device: str = ""
    processor: str = ""
    num_parameters: NonNegativeInt = 0
    world_size: NonNegativeInt = 0
    torch_threads: NonNegativeInt = 0
    global_batch_size: NonNegativeInt = Field(
        default=0,
        validation_alias=AliasChoices("global_batch_size", "global_batch"),  # version 0.1
    )
    steps_per_epoch: NonNegativeInt = 0
    total_steps: NonNegativeInt = 0
    resumed_step: NonNegativeInt = 0
    loss: float | None = None
    margin_loss: float | None = None
    reconstruction_loss: float | None = None
    error_percent: float | None = None
    error_interval_percent: list[float] | None = None
    label_error_percent: float | None = None
    almost_correct_percent: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    images_per_s: float | None = None
    step_time_s: float | None = None
    mfu_percent: float | None = None
    eta_s: float | None = None
    time_s: float | None = None
    num_images: NonNegativeInt | None = None
    confusion: list[list[NonNegativeInt]] | None = None
    name: str | None = None
    seconds: float | None = None
    stopped: bool = False
    checkpoint: str | None = None
    wall_time_s: float | None = None

    @model_validator(mode="after")
    def _whole(self) -> _Shape:
        if missing := set(_REQUIRED.get(self.kind, ())) - self.model_fields_set:
            raise ValueError(f"a row of kind {self.kind} lacks {', '.join(sorted(missing))}")
        return self


def read_metrics(path: Path, log: Log = lambda text: None) -> list[Row]:
    """Return the rows of a `metrics.jsonl`, [] without one; see `parse_metrics`.

    Raises:
        RunError: it is not a regular file.
    """
    return _rows(read_lines(path, log))


def read_lines(path: Path, log: Log) -> list[tuple[bytes, Row | None]]:
    """Return the whole lines of a `metrics.jsonl`, [] without one, each with its row; None: it is damaged.

    Raises:
        RunError: it is not a regular file.
    """
    return _lines(_content(path), str(path), log)


def parse_metrics(content: bytes, name: str = METRICS_NAME, log: Log = lambda text: None) -> list[Row]:
    """Return the rows that the `content` of a `metrics.jsonl` holds, without a last line that was cut off.

    Damaged lines are passed over; `log` is told how many, and of the first of them in the file `name`.
    """
    return _rows(_lines(content, name, log))


def _rows(lines: list[tuple[bytes, Row | None]]) -> list[Row]:
    return [row for _, row in lines if row is not None]


def _content(path: Path) -> bytes:
    try:
        return read_file(path, max_bytes=MAX_RECORD_BYTES)
    except FileNotFoundError:
        return b""
    except DocumentError as error:
        raise RunError(f"{path} {error}; move it away and start again") from None


def _lines(content: bytes, name: str, log: Log) -> list[tuple[bytes, Row | None]]:
    found: list[tuple[bytes, Row | None]] = []
    damaged: list[str] = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        row: Row | None = None
        try:
            row = parse_document(line, _Shape).model_dump(exclude_unset=True)
        except DocumentError as error:
            damaged.append(f"line {number} of {name}: it {error}")
        found.append((line + b"\n", row))
    if damaged:
        others = f", and {len(damaged) - 1:,} more lines" if len(damaged) > 1 else ""
        log(f"warning: passed over {damaged[0]}{others}")
    return found


def finite(value: Any) -> Any:
    """Return a row, or a value of one, in which numbers that are not finite are None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    return value
