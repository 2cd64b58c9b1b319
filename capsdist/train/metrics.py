"""Write and read the rows of a run: `metrics.jsonl`, one event per line, and TensorBoard files.

Written by rank 0 alone. Curves stay single-valued when a run resumes: see `RunWriter`.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from capsdist.console import Log
from capsdist.errors import DocumentError, RunError
from capsdist.storage.documents import dump_json, parse_document, read_file
from capsdist.storage.durable import move_aside, write_durably

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["MAX_RECORD_BYTES", "METRICS_NAME", "Row", "RunWriter", "parse_metrics", "read_metrics"]

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"
MAX_RECORD_BYTES = 4 << 30
"""Limit of the size of a `metrics.jsonl`: a row a step is 300 bytes."""

Row = dict[str, Any]
"""An event of a run: `kind`, `step` and what belongs to the kind; README.md lists them."""

_CURVES = {
    "train": ("loss", "error_percent", "learning_rate", "grad_norm", "images_per_s"),
    "validation": ("loss", "error_percent"),
}
"""By kind of row: endings of the names that TensorBoard draws, so that every loss of a family is drawn."""
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
    test_split: str = ""
    model: str = ""
    network: str = ""
    precision: str = ""
    engine: str = ""
    device: str = ""
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
    learning_rate: float | None = None
    grad_norm: float | None = None
    images_per_s: float | None = None
    step_time_s: float | None = None
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


class RunWriter:
    """Write events into a run's folder; call it with each row.

    A row is on disk when the call returns (line-buffered), so that others can follow the file. A `start` row
    says from which step the run goes on: rows of later steps, which a crashed attempt has left and this one
    will write again, are dropped from `metrics.jsonl` (rewritten beside it, then renamed), and TensorBoard is
    told to hide them (its `purge_step`). `start` rows of earlier attempts stay: they mark the restarts, and
    `num_starts` counts them together with this one.
    """

    def __init__(self, run_dir: Path, log: Log = lambda text: None) -> None:
        self.path = run_dir / METRICS_NAME
        self._log = log
        self._file: TextIO | None = None
        self._tensorboard: SummaryWriter | None = None
        self.num_starts = 0
        with self._writing():
            run_dir.mkdir(parents=True, exist_ok=True)

    def __call__(self, row: Row) -> None:
        """Write one row; numbers that are not finite become null.

        Raises:
            RunError: the disk is full, or a file cannot be written.
        """
        row = {name: _finite(value) for name, value in row.items()}
        with self._writing():
            if row["kind"] == "start":
                self._start(row["resumed_step"])
            if self._file is None:
                self._file = self._opened()
            self._file.write(dump_json(row, indent=None).decode())
            if self._tensorboard:
                for name, value in row.items():
                    if row["kind"] in _CURVES and value is not None and name.endswith(_CURVES[row["kind"]]):
                        self._tensorboard.add_scalar(f"{row['kind']}/{name}", value, row["step"])
                if row["kind"] == "validation":
                    self._tensorboard.flush()

    def _start(self, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # late: it takes a second to import

        if self._file:
            self._file.close()
        tensorboard = self.path.parent / TENSORBOARD_NAME
        self._make_way(self.path, self.path.is_file(), "a file")
        self._make_way(tensorboard, tensorboard.is_dir(), "a folder")
        kept: list[bytes] = []
        self.num_starts = 1
        for line, row in _lines(_content(self.path), str(self.path), self._log):
            if row is None or row["step"] <= resumed_step:  # a damaged line stays: somebody may mend it
                kept.append(line)
                self.num_starts += row is not None and row["kind"] == "start"
        write_durably(self.path, b"".join(kept))
        self._file = self._opened()
        self._tensorboard = SummaryWriter(str(tensorboard), purge_step=resumed_step + 1)

    def _make_way(self, path: Path, fits: bool, wanted: str) -> None:
        """Move aside what lies in the place of `path`, unless it `fits`."""
        if os.path.lexists(path) and not fits:
            self._log(f"warning: {path} is not {wanted}; moved it to {move_aside(path).name}")

    def _opened(self) -> TextIO:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

        return open(self.path, "a", buffering=1, opener=opener)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Make of a disk's error one of ours: another attempt would meet it again."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.path.parent}: metrics cannot be written ({error.strerror or error}); make room "
                "there, or allow it"
            ) from None

    def flush(self) -> None:
        """Have all rows in the files, those of TensorBoard too."""
        with self._writing():
            if self._file:
                self._file.flush()
            if self._tensorboard:
                self._tensorboard.flush()

    def close(self) -> None:
        """Flush and close both."""
        with self._writing():
            if self._file:
                self._file.close()
            if self._tensorboard:
                self._tensorboard.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path, log: Log = lambda text: None) -> list[Row]:
    """Return the rows of a `metrics.jsonl`, [] without one; see `parse_metrics`.

    Raises:
        RunError: it is not a regular file.
    """
    return parse_metrics(_content(path), str(path), log)


def parse_metrics(content: bytes, name: str = METRICS_NAME, log: Log = lambda text: None) -> list[Row]:
    """Return the rows that the `content` of a `metrics.jsonl` holds, without a last line that was cut off.

    Damaged lines are passed over; `log` is told how many, and of the first of them in the file `name`.
    """
    return [row for _, row in _lines(content, name, log) if row is not None]


def _content(path: Path) -> bytes:
    try:
        return read_file(path, max_bytes=MAX_RECORD_BYTES)
    except FileNotFoundError:
        return b""
    except DocumentError as error:
        raise RunError(f"{path} {error}; move it away and start again") from None


def _lines(content: bytes, name: str, log: Log) -> list[tuple[bytes, Row | None]]:
    """Return the whole lines of `content`, each with its row, None where it is damaged."""
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


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return value
