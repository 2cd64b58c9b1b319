"""How the C library keeps memory that was freed."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["LARGE_BYTES", "return_large_blocks"]

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
LARGE_BYTES = 2**20


def return_large_blocks() -> None:
    """Have this process return blocks of 1 MiB and more to the system as soon as they are freed.

    glibc maps a large block on its own, but raises the size at which it does up to 32 MiB as such blocks are
    freed: from then on weights and gradients share one heap, which one small block near its end keeps whole.
    A fixed size costs page faults at every allocation. Nothing changes where the C library is another.
    Source: mallopt(3).
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
