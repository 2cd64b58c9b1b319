"""Find a verified checkpoint of a run: the newest to continue from, the best to use.

Ray hands out the newest checkpoint that was registered with it, damaged or not, and does not know one
that was whole on storage but not yet registered when the driver died. Here its manifest makes a checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from capsdist.console import Log
from capsdist.errors import CheckpointError, DocumentError
from capsdist.runs.files import open_files
from capsdist.runs.retention import (
    checkpoint_name,
    checkpoint_step,
    finished_checkpoints,
    first_accepted,
    found_checkpoints,
    newest,
    ranked,
)
from capsdist.storage import Folder
from capsdist.storage.documents import MAX_BYTES
from capsdist.train.manifest import CONFIG, MANIFEST, parse_exported, parse_manifest

__all__ = [
    "VerifiedCheckpoint", "best_verified", "fetched_checkpoint", "newest_verified", "opened_checkpoint",
]  # fmt: skip


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """A verified checkpoint in a local folder."""

    step: int
    folder: Path


@contextlib.contextmanager
def newest_verified(files: Folder, log: Log) -> Iterator[VerifiedCheckpoint | None]:
    """Yield the newest verified checkpoint, None without one, while the context is open.

    Every file of it is read and compared with its digest; `log` is told of each that was passed over.

    Raises:
        CheckpointError: there are finished checkpoints and all are damaged: nothing is begun anew unasked.
    """
    with contextlib.ExitStack() as stack:
        whole = newest(files, lambda step: _verified(files, step, stack), log)
        if whole is None and any((found := found_checkpoints(files)).values()):
            raise CheckpointError(
                f"{files}: all checkpoints are damaged ({_names(sorted(found))}); bring one back, or delete "
                "them to begin the run anew"
            )
        yield whole


@contextlib.contextmanager
def best_verified(files: Folder, log: Log) -> Iterator[VerifiedCheckpoint]:
    """Yield, of the verified checkpoints that were validated, the one with the lowest error.

    Raises:
        CheckpointError: there is none.
    """
    validated = [saved.step for saved in ranked(finished_checkpoints(files, log))]
    if not validated:
        raise CheckpointError(f"{files}: no checkpoint was validated; take the newest, without --best")
    with contextlib.ExitStack() as stack:
        whole = first_accepted(validated, lambda step: _verified(files, step, stack), log)
        if whole is None:
            raise CheckpointError(
                f"{files}: all validated checkpoints are damaged ({_names(validated)}); take the newest, "
                "without --best"
            )
        yield whole


def _names(steps: Iterable[int]) -> str:
    return ", ".join(map(checkpoint_name, steps))


def _verified(files: Folder, step: int, stack: contextlib.ExitStack) -> VerifiedCheckpoint:
    """Return the verified checkpoint after `step` steps, in a local folder that lives as long as `stack`.

    Raises:
        CheckpointError: it is damaged; names where it lies.
    """
    from capsdist.train.checkpoint import verify_checkpoint  # late: torch

    name = checkpoint_name(step)
    with contextlib.ExitStack() as attempt:
        folder = attempt.enter_context(fetched_checkpoint(files, step))
        try:
            state = verify_checkpoint(folder)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(folder), files.path(name))) from None
        if state.step != step:
            raise CheckpointError(f"checkpoint {files.path(name)} is of step {state.step}; rename it")
        stack.push(attempt.pop_all())
        return VerifiedCheckpoint(step, folder)


@contextlib.contextmanager
def fetched_checkpoint(files: Folder, step: int, *, at: Path | None = None) -> Iterator[Path]:
    """Yield a local folder with the checkpoint after `step` steps, not verified; `at`: see `Folder.fetched`.

    Of a checkpoint in object storage it holds the files that the manifest names, and nothing is read beyond
    the sizes that it states.

    Raises:
        CheckpointError: a file is larger than its manifest states.
        FileExistsError: there is a copy at `at` already.
    """
    name = checkpoint_name(step)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(files.fetched(name, _stated_sizes(files, name), at=at))
        except DocumentError as error:
            raise CheckpointError(f"checkpoint {files.path(name)} is damaged: {error}; delete it") from None
        yield folder


def _stated_sizes(files: Folder, name: str) -> Mapping[str, int]:
    """Return the files of the checkpoint `name` and their sizes in bytes, as its manifest states them.

    Without a manifest that can be read it is only that file: whoever verifies the checkpoint says what is
    wrong.
    """
    sizes = {MANIFEST: MAX_BYTES}
    with contextlib.suppress(DocumentError):
        content = files.read(f"{name}/{MANIFEST}") or b""
        sizes |= {file: entry.bytes for file, entry in parse_manifest(content).files.items()}
    return sizes


def _exported_sizes(files: Folder) -> Mapping[str, int] | None:
    """Return the files of exported weights in `files` and their sizes in bytes, None if there are none."""
    with contextlib.suppress(DocumentError):
        if weights := parse_exported(files.read(CONFIG) or b"").files:
            return {CONFIG: MAX_BYTES} | {name: entry.bytes for name, entry in weights.items()}
    return None


@contextlib.contextmanager
def opened_checkpoint(place: str, *, lowest_error: bool = False, log: Log) -> Iterator[tuple[str, Path]]:
    """Yield what `place` means, by name and as a local folder: a checkpoint, or one of a run, path or URL.

    Of a run it is the newest whole one, or with `lowest_error` the one with the lowest validated error.

    Raises:
        CheckpointError: there is none. DataError, RunError: the storage cannot be read.
    """
    files = open_files(place)
    if files.local is None:
        files.check_readable(thing="run or checkpoint")
    with contextlib.ExitStack() as stack:
        if (step := checkpoint_step(files.name)) is not None and files.parent is not None:
            yield place, _verified(files.parent, step, stack).folder
            return
        if not found_checkpoints(files):
            if files.local and any(files.local.glob("*.safetensors")):
                yield place, files.local  # a checkpoint under any name, or an exported network
                return
            if files.parent is not None and (sizes := _exported_sizes(files)):
                yield place, stack.enter_context(files.parent.fetched(files.name, sizes))
                return
            raise CheckpointError(
                f"no checkpoint below {files}; give a checkpoint, or a run that has trained"
            )
        chosen = best_verified(files, log) if lowest_error else newest_verified(files, log)
        if not (whole := stack.enter_context(chosen)):
            raise CheckpointError(f"{files}: holds no verified checkpoint; give a run that has trained")
        yield files.path(checkpoint_name(whole.step)), whole.folder
