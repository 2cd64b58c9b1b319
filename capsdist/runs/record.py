"""Hand the rows of rank 0 to the loggers, whose files are in the run's folder or are uploaded to it.

An object cannot be appended to, so in object storage the files of loggers are written whole again: before a
checkpoint is reported, so that a resumed run finds all rows up to it, after it, and at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from capsdist.config import Config
from capsdist.console import Log
from capsdist.errors import DocumentError, RunError
from capsdist.runs.loggers.base import LoggedRun, Logger
from capsdist.runs.loggers.jsonl import JsonlLogger
from capsdist.runs.loggers.names import find_logger
from capsdist.storage import Folder
from capsdist.storage.temporary import temporary_folder
from capsdist.train.metrics import MAX_RECORD_BYTES, METRICS_NAME, Row, finite, parse_metrics

if TYPE_CHECKING:
    import numpy as np

__all__ = ["RunRecord", "open_record", "read_rows", "trained_rows"]

_UPLOADED_AFTER = {"checkpoint", "end"}


class RunRecord:
    """Call it with each row; `publish` brings what is new to where the run lies.

    A logger that fails is left out from then on, and `LoggedRun.log` gets a line; the run goes on.
    """

    def __init__(self, run: LoggedRun) -> None:
        self._run = run
        self._loggers: dict[str, Logger] = {}
        self._uploaded: dict[str, str] = {}  # digests
        for name in run.config.train.loggers:
            with self._left_out_if_failed(name):
                self._loggers[name] = find_logger(name)(run)

    def __call__(self, row: Row) -> None:
        """Log one row; numbers that are not finite become None. Progress inside a step is not logged."""
        if row["kind"] == "progress":
            return
        self._each("log", finite(row))
        if row["kind"] in _UPLOADED_AFTER:
            self.publish()

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Log a picture, uint8 [H, W, 3]."""
        self._each("image", name, pixels, step)

    @property
    def num_restarts(self) -> int:
        """How often the run had been started before this time; 0 where metrics.jsonl is not written."""
        jsonl = self._loggers.get("jsonl")
        return jsonl.num_starts - 1 if isinstance(jsonl, JsonlLogger) else 0

    def publish(self) -> None:
        """Upload the files that have changed; nothing to do where they are written in place."""
        if self._run.files.local is not None:
            return
        self._each("flush")
        folder = self._run.folder
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            name, content = path.relative_to(folder).as_posix(), path.read_bytes()
            digest = xxhash.xxh3_128_hexdigest(content)
            if self._uploaded.get(name) != digest:
                self._run.files.write(name, content)
                self._uploaded[name] = digest

    def close(self) -> None:
        """Close all loggers."""
        self._each("close")
        self._loggers.clear()

    def _each(self, method: str, *arguments: Any) -> None:
        for name, logger in list(self._loggers.items()):
            with self._left_out_if_failed(name):
                getattr(logger, method)(*arguments)

    @contextlib.contextmanager
    def _left_out_if_failed(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            failed = self._loggers.pop(name, None)
            if failed is not None:
                with contextlib.suppress(Exception):
                    failed.close()
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._run.log(f"warning: logger {name!r} failed and is left out from now on ({reason})")


@contextlib.contextmanager
def open_record(files: Folder, config: Config, log: Log) -> Iterator[RunRecord]:
    """Yield the record of the run, its earlier rows included; `log` is told of damage and failed loggers."""
    with contextlib.ExitStack() as stack:
        folder: Path | None = files.local
        if folder is None:
            folder = stack.enter_context(temporary_folder())
            rows = files.read(METRICS_NAME, max_bytes=MAX_RECORD_BYTES)
            (folder / METRICS_NAME).write_bytes(rows or b"")
        with contextlib.suppress(OSError):  # each logger says by itself what it cannot write
            folder.mkdir(parents=True, exist_ok=True)
        record = RunRecord(LoggedRun(files.name, folder, config, files, log))
        try:
            yield record
        finally:
            record.close()
        record.publish()  # what loggers write at their end


def read_rows(files: Folder, log: Log, name: str = METRICS_NAME) -> list[Row]:
    """Return the rows of metrics in the file `name`, [] without one; `log` is told of damaged lines.

    Raises:
        DocumentError: the file is too large or not a regular one; names it.
        RunError: the storage cannot be read.
    """
    content = files.read(name, max_bytes=MAX_RECORD_BYTES) or b""
    return parse_metrics(content, files.path(name), log)


def trained_rows(files: Folder, log: Log) -> list[Row]:
    """Return the rows of a run that has trained, at least one, as `read_rows` does.

    Raises:
        RunError: there are none, or the file is too large or not a regular one.
    """
    try:
        rows = read_rows(files, log)
    except DocumentError as error:
        raise RunError(f"{error}; move it away and start again") from None
    if not rows:
        raise RunError(f"{files} holds no {METRICS_NAME}; give the folder of a run that has trained")
    return rows
