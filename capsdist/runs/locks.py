"""One process at a time trains a run: a locked file on a disk, in object storage an object kept alive.

The system drops a file's lock with its process. Object storage has no locks, but it writes an object on
condition that there is none, for one writer only; its holder counts in it every few seconds, so that others
see whether it lives. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeInt

from capsdist.console import Log
from capsdist.errors import DocumentError, RunError
from capsdist.storage.documents import dump_json, parse_document
from capsdist.storage.durable import names, open_lock_file

if TYPE_CHECKING:
    from capsdist.storage import ObjectFolder

__all__ = ["LOCK_NAME", "Lock", "file_lock", "object_lock"]

LOCK_NAME = ".lock"
"""Name of the file or object that holds a run."""

_BEAT_S = 5.0
_SILENT_S = 16.0  # without a beat: the holder is dead
_SETTLE_S = 1.0  # of two that take over at a time, it belongs to the one that wrote last
_SHOWN = 200  # characters of a lock file in a message
_LOCK_BYTES = 4096  # of an object that holds a run
_TOO_LARGE = b"x" * (_LOCK_BYTES + 1)  # stands for what was not read: damaged, and always the same


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
        RunError: another process holds it, or `path` is not a file that can be locked.
    """
    try:
        descriptor = open_lock_file(path, mode=0o666)
    except OSError as error:
        linked = error.errno == errno.ELOOP
        reason = "is a symbolic link" if linked else f"cannot be locked ({error.strerror or error})"
        raise RunError(f"{path} {reason}; remove it and start again") from None
    try:
        _take(descriptor, path, run)
        yield Lock(run)
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, run: str) -> None:
    """Lock the open file and write into it who holds it.

    Raises:
        RunError: as `file_lock`.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not names(path, descriptor):  # another start has removed a run that had not begun
            raise _held(run, "another process")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _this_process().encode())
    except BlockingIOError:
        found = os.read(descriptor, _SHOWN).decode(errors="replace")
        raise _held(run, " ".join(found.split()) or "another process") from None
    except OSError as error:
        raise RunError(
            f"{path} cannot be locked ({error.strerror or error}); make room, or choose another folder with "
            "--train.storage"
        ) from None


@contextlib.contextmanager
def object_lock(objects: ObjectFolder, name: str, run: str, log: Log) -> Iterator[Lock]:
    """Hold `run` by the object `name`; where a dead holder has left it this takes 16 s, and `log` is told.

    Raises:
        RunError: another process holds it, or the storage does not answer.
    """
    lease = _Lease(objects, name)
    if holder := lease.take(log):
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


@dataclass(frozen=True)
class _Holder:
    """What the object holds: who has it, and how often that one has said so."""

    holder: Annotated[str, Field(min_length=1, max_length=_SHOWN, pattern=r"^[^\x00-\x1f]*$")]
    id: str
    beats: NonNegativeInt


class _Lease:
    """The object that holds a run.

    One that is damaged belongs to nobody known. If its holder lives, that one soon writes it whole again.
    """

    def __init__(self, objects: ObjectFolder, name: str) -> None:
        self._objects, self._name = objects, name
        self._id, self._beats = uuid.uuid4().hex, 0

    def take(self, log: Log) -> str | None:
        """Write the object if there is none, or none that lives; return who holds it otherwise."""
        if self._objects.write(self._name, self._content(), new=True):
            return None
        found, until = self._content_now(), time.monotonic() + _SILENT_S
        if found is not None:
            log(self._wait_notice(found))
        while found is not None and time.monotonic() < until:
            time.sleep(_SETTLE_S)
            if (now := self._content_now()) != found:
                if now is not None:
                    return self._other() or "another process"
                break
        self._objects.write(self._name, self._content())
        time.sleep(_SETTLE_S)
        return self._other()

    def _wait_notice(self, content: bytes) -> str:
        try:
            return f"waiting {_SILENT_S:g} s to see whether {_parsed(content).holder} still trains this run"
        except DocumentError as error:
            return (
                f"warning: {self._objects.path(self._name)} {error}; waiting {_SILENT_S:g} s to see whether "
                "another process still trains this run"
            )

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
        """Return who holds the object, None if it is ours, damaged or gone."""
        if (content := self._content_now()) is None:
            return None
        try:
            found = _parsed(content)
        except DocumentError:
            return None
        return found.holder if found.id != self._id else None

    def _content(self) -> bytes:
        return dump_json(asdict(_Holder(_this_process(), self._id, self._beats)), indent=None)

    def _content_now(self) -> bytes | None:
        try:
            return self._objects.read(self._name, max_bytes=_LOCK_BYTES)
        except FileNotFoundError:
            return None
        except DocumentError:
            return _TOO_LARGE


def _parsed(content: bytes) -> _Holder:
    return parse_document(content, _Holder, max_bytes=_LOCK_BYTES)


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _held(run: str, holder: str) -> RunError:
    return RunError(
        f"train.name={run!r}: this run is being trained by {holder}; "
        "wait for it or choose another --train.name"
    )
