"""Find a verified checkpoint of a run: the newest to continue from, the best to use.

Ray hands out the newest checkpoint that was registered with it, damaged or not, and does not know one
that was whole on storage but not yet registered when the driver died. Here its manifest makes a checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capsdist.console import Log
from capsdist.errors import CheckpointError
from capsdist.runs.files import RunFiles, open_files
from capsdist.runs.retention import (
    checkpoint_name,
    checkpoint_step,
    finished_checkpoints,
    found_checkpoints,
    ranked,
)
from capsdist.storage.place import is_url
from capsdist.storage.temporary import temporary_folder
from capsdist.train.metrics import MAX_RECORD_BYTES, METRICS_NAME

__all__ = ["VerifiedCheckpoint", "best_verified", "newest_verified", "opened_checkpoint", "viewed"]


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """A verified checkpoint in a local folder."""

    step: int
    folder: Path


@contextlib.contextmanager
def newest_verified(files: RunFiles, log: Log) -> Iterator[VerifiedCheckpoint | None]:
    """Yield the newest verified checkpoint, None without one, while the context is open.

    Every file of it is read and compared with its digest; `log` is told of each that was passed over.

    Raises:
        CheckpointError: there are finished checkpoints and all are damaged: nothing is begun anew unasked.
    """
    found = found_checkpoints(files)
    with contextlib.ExitStack() as stack:
        for step in sorted(found, reverse=True):
            if not found[step]:
                log(f"warning: passed over {files.path(checkpoint_name(step))}: it is half written")
            elif folder := _opened(files, step, log, stack):
                yield VerifiedCheckpoint(step, folder)
                return
        if any(found.values()):
            names = ", ".join(checkpoint_name(step) for step in sorted(found))
            raise CheckpointError(
                f"{files}: all checkpoints are damaged ({names}); bring one back, or delete them to begin "
                "the run anew"
            )
        yield None


@contextlib.contextmanager
def best_verified(files: RunFiles, log: Log) -> Iterator[VerifiedCheckpoint]:
    """Yield, of the verified checkpoints that were validated, the one with the lowest error.

    Raises:
        CheckpointError: there is none.
    """
    validated = ranked(finished_checkpoints(files, log))
    if not validated:
        raise CheckpointError(f"{files}: no checkpoint was validated; take the newest, without --best")
    with contextlib.ExitStack() as stack:
        for saved in validated:
            if folder := _opened(files, saved.step, log, stack):
                yield VerifiedCheckpoint(saved.step, folder)
                return
    names = ", ".join(checkpoint_name(saved.step) for saved in validated)
    raise CheckpointError(
        f"{files}: all validated checkpoints are damaged ({names}); take the newest, without --best"
    )


def _opened(files: RunFiles, step: int, log: Log, stack: contextlib.ExitStack) -> Path | None:
    """Return the checkpoint as a local folder that lives as long as `stack`, None if it is damaged."""
    try:
        return _verified(files, checkpoint_name(step), stack)
    except CheckpointError as error:
        log(f"warning: passed over a checkpoint: {str(error).partition(';')[0]}")
        return None


def _verified(files: RunFiles, name: str, stack: contextlib.ExitStack) -> Path:
    """Return the verified checkpoint `name` as a local folder that lives as long as `stack`.

    Raises:
        CheckpointError: it is damaged; names where it lies.
    """
    from capsdist.train.checkpoint import verify_checkpoint  # late: torch

    with contextlib.ExitStack() as attempt:
        folder = attempt.enter_context(files.fetched(name))
        try:
            state = verify_checkpoint(folder)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(folder), files.path(name))) from None
        if state.step != checkpoint_step(name):
            raise CheckpointError(f"checkpoint {files.path(name)} is of step {state.step}; rename it")
        stack.push(attempt.pop_all())
        return folder


@contextlib.contextmanager
def opened_checkpoint(place: str, *, lowest_error: bool = False, log: Log) -> Iterator[tuple[str, Path]]:
    """Yield what `place` means, by name and as a local folder: a checkpoint, or one of a run, path or URL.

    Of a run it is the newest whole one, or with `lowest_error` the one with the lowest validated error.

    Raises:
        CheckpointError: there is none. DataError, RunError: the storage cannot be read.
    """
    if is_url(place) and not place.startswith("file://"):
        from capsdist.storage import check_readable  # late: local runs need no client

        check_readable(place, thing="run or checkpoint")
    address, mark, query = place.partition("?")
    parent, _, name = address.rstrip("/").rpartition("/")
    with contextlib.ExitStack() as stack:
        if checkpoint_step(name) is not None and is_url(place):
            yield place, _verified(open_files(f"{parent}{mark}{query}"), name, stack)
            return
        files = open_files(place)
        if not found_checkpoints(files):
            if files.local and any(files.local.glob("*.safetensors")):
                yield place, files.local  # a checkpoint under any name
                return
            raise CheckpointError(
                f"no checkpoint below {files}; give a checkpoint, or a run that has trained"
            )
        chosen = best_verified(files, log) if lowest_error else newest_verified(files, log)
        if not (whole := stack.enter_context(chosen)):
            raise CheckpointError(f"{files}: holds no verified checkpoint; give a run that has trained")
        yield files.path(checkpoint_name(whole.step)), whole.folder


@contextlib.contextmanager
def viewed(files: RunFiles, log: Log) -> Iterator[Path]:
    """Yield a local folder with what `overview` reads: metrics, and the newest verified checkpoint."""
    if files.local:
        yield files.local
        return
    with temporary_folder() as folder, newest_verified(files, log) as whole:
        rows = files.read(METRICS_NAME, max_bytes=MAX_RECORD_BYTES)
        (folder / METRICS_NAME).write_bytes(rows or b"")
        if whole:
            (folder / checkpoint_name(whole.step)).symlink_to(whole.folder)
        yield folder
