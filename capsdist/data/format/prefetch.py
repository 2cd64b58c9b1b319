"""Fetch shards in threads before they are used."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import BinaryIO

from capsdist.data.format.packed import StoredFile

__all__ = ["Prefetcher"]

_NUM_THREADS = 4  # downloads at a time of one process


class Prefetcher:
    """Calls `fetch` with shards in up to four threads, which end when nothing is left to do.

    They are daemon threads (unlike those of an executor), so a download does not delay the end of a process.
    """

    def __init__(self, fetch: Callable[[StoredFile], BinaryIO]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._queue: deque[StoredFile] = deque()
        self._pending: dict[str, Future[None]] = {}  # waiting or under way, by sha256
        self._num_threads = 0

    def start(self, shards: Sequence[StoredFile]) -> None:
        """Let threads fetch `shards`, in this order, unless they do already."""
        with self._lock:
            new = [shard for shard in shards if shard.sha256 not in self._pending]
            self._queue.extend(new)
            self._pending.update((shard.sha256, Future()) for shard in new)
            for _ in range(min(len(new), _NUM_THREADS - self._num_threads)):
                self._num_threads += 1
                threading.Thread(target=self._work, name="capsdist-fetch", daemon=True).start()

    def wait_for(self, shard: StoredFile) -> None:
        """Wait until a thread that fetches `shard` has ended, and raise what it has raised.

        A shard that no thread has begun with is left to the caller.
        """
        future = self._pending.get(shard.sha256)
        if future is not None and not future.cancel():
            future.result()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._num_threads -= 1
                    return
                shard = self._queue.popleft()
                future = self._pending[shard.sha256]
            if future.set_running_or_notify_cancel():
                try:
                    self._fetch(shard).close()
                    future.set_result(None)
                except BaseException as error:
                    future.set_exception(error)
            with self._lock:
                del self._pending[shard.sha256]
