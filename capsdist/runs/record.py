"""Keep the rows of rank 0: in the run's folder, or in a local one that is uploaded.

An object cannot be appended to, so in object storage `metrics.jsonl` and TensorBoard's files are
written whole again: before a checkpoint is reported, so that a resumed run finds all rows up to it, after it,
and at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import xxhash

from capsdist.console import Log
from capsdist.storage import Folder
from capsdist.storage.temporary import temporary_folder
from capsdist.train.metrics import MAX_RECORD_BYTES, METRICS_NAME, Row, RunWriter, parse_metrics

__all__ = ["RunRecord", "open_record", "read_rows"]

_UPLOADED_AFTER = {"checkpoint", "end"}


class RunRecord:
    """Call it with each row; `publish` brings what is new to where the run lies."""

    def __init__(self, files: Folder, folder: Path, writer: RunWriter) -> None:
        self._files, self._folder, self._write = files, folder, writer
        self._uploaded: dict[str, str] = {}  # digests

    def __call__(self, row: Row) -> None:
        """Write one row."""
        self._write(row)
        if row["kind"] in _UPLOADED_AFTER:
            self.publish()

    @property
    def num_restarts(self) -> int:
        """How often the run had been started before this time."""
        return self._write.num_starts - 1

    def publish(self) -> None:
        """Upload the files that have changed; nothing to do where they are written in place."""
        if self._files.local is not None:
            return
        self._write.flush()
        for path in sorted(each for each in self._folder.rglob("*") if each.is_file()):
            name, content = path.relative_to(self._folder).as_posix(), path.read_bytes()
            digest = xxhash.xxh3_128_hexdigest(content)
            if self._uploaded.get(name) != digest:
                self._files.write(name, content)
                self._uploaded[name] = digest


@contextlib.contextmanager
def open_record(files: Folder, log: Log) -> Iterator[RunRecord]:
    """Yield the record of the run, its earlier rows included; `log` is told of damaged ones."""
    with contextlib.ExitStack() as stack:
        folder = files.local
        if folder is None:
            folder = stack.enter_context(temporary_folder())
            rows = files.read(METRICS_NAME, max_bytes=MAX_RECORD_BYTES)
            (folder / METRICS_NAME).write_bytes(rows or b"")
        yield RunRecord(files, folder, stack.enter_context(RunWriter(folder, log)))


def read_rows(files: Folder, log: Log, name: str = METRICS_NAME) -> list[Row]:
    """Return the rows of metrics in the file `name`, [] without one; `log` is told of damaged lines.

    Raises:
        DocumentError: the file is too large or not a regular one; names it.
        RunError: the storage cannot be read.
    """
    content = files.read(name, max_bytes=MAX_RECORD_BYTES) or b""
    return parse_metrics(content, files.path(name), log)
