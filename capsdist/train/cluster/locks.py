"""One process at a time trains a run: a locked file on a disk, in object storage an object kept alive.

Ours. The system drops a file's lock with its process. Object storage has no locks, but it writes an object on
condition that there is none, for one writer only; its holder counts in it every few seconds, so that others
see whether it lives. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsdist.errors import RunError

if TYPE_CHECKING:
    from capsdist.storage import ObjectFolder

__all__ = ["Lock", "Tell", "file_lock", "object_lock"]

_BEAT_S = 5.0
_SILENT_S = 16.0  # without a beat: the holder is dead
_SETTLE_S = 1.0  # of two that take over at a time, it belongs to the one that wrote last


Tell = Callable[[str], None]


class Lock:
    """What its holder has in hand. `taken_by`: who has taken the run over, None while it is ours."""

    def __init__(self, run: str) -> None:
        self._run = run
        self.taken_by: str | None = None

    def check(self) -> None:
        """Raise RunError if the run is no longer ours."""
        if self.taken_by is not None:
            raise RunError(
                f"train.name={self._run!r}: {self.taken_by} has taken this run over, having heard nothing of "
                "this process for a while; leave it to that one"
            )


@contextlib.contextmanager
def file_lock(path: Path, run: str) -> Iterator[Lock]:
    """Hold `run` by a lock on the file `path`.

    Raises:
        RunError: another process holds it.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise _held(run, file.read() or "another process") from None
        file.truncate(0)
        file.write(_this_process())
        file.flush()
        yield Lock(run)


@contextlib.contextmanager
def object_lock(objects: ObjectFolder, name: str, run: str, tell: Tell) -> Iterator[Lock]:
    """Hold `run` by the object `name`; where a dead holder has left it this takes 16 s, and `tell` is told.

    Raises:
        RunError: another process holds it, or the storage does not answer.
    """
    lease = _Lease(objects, name)
    if holder := lease.take(tell):
        raise _held(run, holder)
    lock, ended = Lock(run), threading.Event()

    def beat() -> None:
        while lock.taken_by is None and not ended.wait(_BEAT_S):
            with contextlib.suppress(RunError):  # the storage is away: the run will notice by itself
                lock.taken_by = lease.beat()

    thread = threading.Thread(target=beat, name="capsdist-lock", daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(RunError):
            lease.release()


class _Lease:
    """An object that holds who has it and how often that one has said so."""

    def __init__(self, objects: ObjectFolder, name: str) -> None:
        self._objects, self._name = objects, name
        self._id, self._beats = uuid.uuid4().hex, 0

    def take(self, tell: Tell) -> str | None:
        """Write the object if there is none, or none that lives; return who holds it otherwise."""
        if self._objects.write(self._name, self._content(), new=True):
            return None
        found, until = self._read(), time.monotonic() + _SILENT_S
        if found:
            tell(f"waiting {_SILENT_S:g} s to see whether {found['holder']} still trains this run")
        while found and time.monotonic() < until:
            time.sleep(_SETTLE_S)
            if (now := self._read()) != found:
                if now:
                    return now["holder"]
                break
        self._objects.write(self._name, self._content())
        time.sleep(_SETTLE_S)
        return self._other()

    def beat(self) -> str | None:
        """Count on; return who holds it, if that is another one."""
        if other := self._other():
            return other
        self._beats += 1
        self._objects.write(self._name, self._content())
        return None

    def release(self) -> None:
        """Delete the object, if it is ours."""
        if not self._other():
            self._objects.delete(self._name)

    def _other(self) -> str | None:
        found = self._read()
        return found["holder"] if found and found["id"] != self._id else None

    def _content(self) -> bytes:
        return json.dumps({"holder": _this_process(), "id": self._id, "beats": self._beats}).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._objects.read(self._name))
        except FileNotFoundError:
            return None


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _held(run: str, holder: str) -> RunError:
    return RunError(
        f"train.name={run!r}: this run is being trained by {holder}; "
        "wait for it or choose another --train.name"
    )
