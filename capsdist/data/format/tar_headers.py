"""Walk through tar files that anybody may have written, in bounded memory and time; nothing is unpacked."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import IO, cast

__all__ = ["TAR_ERRORS", "TarDamagedError", "tar_headers"]

TAR_ERRORS = (tarfile.TarError, OSError, ValueError, IndexError, OverflowError, RecursionError)
"""What tarfile raises for damaged and forged headers; recursion: for very many extended ones in a row."""

_MAX_READ = 1 << 20  # bytes of an extended header


class TarDamagedError(Exception):
    """A tar file is damaged or forged; the message says why, in one line."""


def tar_headers(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar file that is not compressed, in order, up to its end.

    A member's data may be read from `file` meanwhile: `offset_data`, `size`.

    Raises:
        TarDamagedError: a header is damaged or states a negative size, an extended one is larger than 1 MiB,
            or the end is missing.
    """
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Limited(file)), mode="r:") as tar:
            before = -1
            for member in tar:
                tar.members = []  # type: ignore[misc]  # it would keep every header in memory
                if member.size < 0 or tar.offset <= before:
                    raise TarDamagedError(f"member at byte {member.offset} has {member.size} bytes")
                before = tar.offset
                yield member
            # tarfile takes a damaged header for the end of the archive.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise TarDamagedError(f"has no tar header or end at byte {tar.offset}")
    except TAR_ERRORS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TarDamagedError(f"is no tar file that can be read ({reason})") from None


class _Limited:
    """What tarfile needs of a file; no read is larger than an extended header may be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.name = ""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"extended header of {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
