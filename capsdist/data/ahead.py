"""Compute batches ahead of their consumer, in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from capsdist.data.batch import Batch

__all__ = ["prefetched"]

_DEPTH = 2  # chunks that wait in the queue

_Item: TypeAlias = "Iterable[Batch] | BaseException | None"  # what the queue carries; None ends it


def prefetched(chunks: Iterable[Iterable[Batch]]) -> Iterator[Batch]:
    """Yield the batches of `chunks`, which a thread computes ahead; what it raises is raised here.

    A chunk may be a generator: it runs in the thread of the consumer.
    """
    filled: queue.Queue[_Item] = queue.Queue(_DEPTH)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(chunks, filled, stop), name="capsdist-data", daemon=True)
    thread.start()
    try:
        while (item := filled.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield from item
    finally:
        # No lock is taken here: the collector may run this in any thread, even in the one to be stopped.
        stop.set()
        if thread is not threading.current_thread():
            thread.join()


def _fill(chunks: Iterable[Iterable[Batch]], filled: queue.Queue[_Item], stop: threading.Event) -> None:
    def put(item: _Item) -> bool:
        while not stop.is_set():
            try:
                filled.put(item, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False

    try:
        for chunk in chunks:
            if not put(chunk):
                return
        put(None)
    except BaseException as error:
        put(error)
