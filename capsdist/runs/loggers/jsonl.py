"""The run's own record: `metrics.jsonl`, one event per line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TextIO

from capsdist.errors import RunError
from capsdist.runs.loggers.base import LoggedRun, Logger
from capsdist.storage.documents import dump_json
from capsdist.storage.durable import make_way, write_durably
from capsdist.train.metrics import METRICS_NAME, Row, read_lines

__all__ = ["JsonlLogger"]


class JsonlLogger(Logger):
    """Writes events to `metrics.jsonl`.

    A row is on disk when `log` returns (line-buffered), so that others can follow the file. A `start` row
    says from which step the run goes on: rows of later steps, which a crashed attempt has left and this one
    will write again, are dropped (the file is rewritten beside itself, then renamed). `start` rows of earlier
    attempts stay: they mark the restarts, and `num_starts` counts them together with this one.
    """

    def __init__(self, run: LoggedRun) -> None:
        self.path = run.folder / METRICS_NAME
        self._log = run.log
        self._file: TextIO | None = None
        self.num_starts = 0

    def log(self, row: Row) -> None:
        """Write one row.

        Raises:
            RunError: the disk is full, or the file cannot be written.
        """
        with self._writing():
            if row["kind"] == "start":
                self._start(row["resumed_step"])
            if self._file is None:
                self._file = self._opened()
            self._file.write(dump_json(row, indent=None).decode())

    def _start(self, resumed_step: int) -> None:
        if self._file:
            self._file.close()
        make_way(self.path, fits=self.path.is_file(), wanted="a file", log=self._log)
        kept: list[bytes] = []
        self.num_starts = 1
        for line, row in read_lines(self.path, self._log):
            if row is None or row["step"] <= resumed_step:  # a damaged line stays: somebody may mend it
                kept.append(line)
                self.num_starts += row is not None and row["kind"] == "start"
        write_durably(self.path, b"".join(kept))
        self._file = self._opened()

    def _opened(self) -> TextIO:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

        return open(self.path, "a", buffering=1, opener=opener)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.path.parent}: metrics cannot be written ({error.strerror or error}); make room "
                "there, or allow it"
            ) from None

    def flush(self) -> None:
        """Have all rows in the file."""
        with self._writing():
            if self._file:
                self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with self._writing():
            if self._file:
                self._file.close()
