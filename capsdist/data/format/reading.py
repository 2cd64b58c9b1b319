"""Read the file of a shard into memory, so that later changes of the file have no effect.

A memory map would show what another process writes into the file (wrong pixels without an error) and
end the process where the file is cut (SIGBUS). `pread` returns fewer bytes there, which is an error.
"""

from __future__ import annotations

import os
from typing import TypeAlias

import numpy as np
import xxhash

from capsdist.data.format.index import Shard

__all__ = ["FileDamagedError", "Identity", "identify", "read_checked", "read_exactly"]

Identity: TypeAlias = tuple[int, ...]
"""What tells one state of a file from another: device, inode, size and times, in bytes and nanoseconds."""


class FileDamagedError(Exception):
    """A file does not hold the shard that its index names; the message says why."""


def identify(descriptor: int, *, change_time: bool = True) -> Identity:
    """Return the identity of an open file; `change_time`: a changed mode or link count is a change too."""
    status = os.fstat(descriptor)
    found = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return (*found, status.st_ctime_ns) if change_time else found


def read_exactly(descriptor: int, target: np.ndarray, offset: int) -> None:
    """Fill the contiguous uint8 array `target` with the file's bytes from `offset` on.

    Raises:
        FileDamagedError: the file ends before.
        OSError: it cannot be read.
    """
    view = target.data
    while view:
        if not (done := os.preadv(descriptor, [view], offset)):
            raise FileDamagedError("was cut while it was read")
        view, offset = view[done:], offset + done


def read_checked(descriptor: int, shard: Shard, span: tuple[int, int, str] | None = None) -> np.ndarray:
    """Return bytes of an open file, uint8, once they have the size and checksum of `shard`.

    span: begin, end and xxh3_128 of a part of the file; None: all of it.

    Raises:
        FileDamagedError: another size or checksum.
        OSError: it cannot be read.
    """
    size = os.fstat(descriptor).st_size
    if size != shard.size_bytes:
        raise FileDamagedError(f"has {size} bytes instead of {shard.size_bytes}")
    begin, end, digest = span or (0, size, shard.xxh3_128)
    content = np.empty(end - begin, np.uint8)
    read_exactly(descriptor, content, begin)
    if xxhash.xxh3_128_hexdigest(content.data) != digest:
        raise FileDamagedError("wrong checksum, the file is damaged")
    return content
