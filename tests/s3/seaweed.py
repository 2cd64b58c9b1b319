"""The S3 server of tests, which wait for it as long as for everything else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from capsdist.bench import s3_server
from capsdist.bench.s3_server import Key, S3Server, binary
from limits import PATIENCE_S

__all__ = ["Key", "S3Server", "binary", "running_server"]


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[S3Server]:
    """Run a server that keeps its data in `folder`; see `s3_server.running_server`."""
    with s3_server.running_server(folder, start_limit_s=PATIENCE_S) as server:
        yield server
