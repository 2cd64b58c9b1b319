"""Choose which checkpoints a run keeps, and remove the others.

Ray keeps the newest or the best ones, and forgets what a crash has left; a run wants the newest to go
on from, the best to use, and nothing else. So the folder is the record, and Ray's own is not consulted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capsdist.console import Log
from capsdist.errors import DocumentError
from capsdist.runs.files import RunFiles, read_document
from capsdist.train.manifest import MANIFEST, STATE, State, digest_of, parse_manifest, parse_state

__all__ = [
    "Saved", "checkpoint_name", "checkpoint_step", "clean", "finished_checkpoints", "found_checkpoints",
    "leftovers", "newest_state", "prune", "ranked", "read_state", "to_delete",
]  # fmt: skip

_NAME = re.compile(r"step_([0-9]{8,})")


@dataclass(frozen=True)
class Saved:
    """A finished checkpoint; error_percent: of a validation with its very weights, None without one."""

    step: int
    error_percent: float | None = None


def checkpoint_name(step: int) -> str:
    """Return the name of the folder of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """Return the step of the checkpoint folder `name`, None if it is not named like one."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found and checkpoint_name(int(found[1])) == name else None


def to_delete(saved: Sequence[Saved], *, keep_last: int, keep_best: int) -> list[int]:
    """Return, in order, the steps of those that are neither among the newest nor among the best.

    Of equally good ones the newer is better; those that were not validated are kept by age only.
    """
    newest = sorted((each.step for each in saved), reverse=True)
    kept = {*newest[:keep_last], *(each.step for each in ranked(saved)[:keep_best])}
    return sorted(set(newest) - kept)


def ranked(saved: Sequence[Saved]) -> list[Saved]:
    """Return those that were validated, the lowest error first, of equal ones the newer."""
    measured = [(each.error_percent, -each.step, each) for each in saved if each.error_percent is not None]
    return [each for *_, each in sorted(measured, key=lambda entry: entry[:2])]


def leftovers(found: Mapping[int, bool], resumed: int | None) -> list[int]:
    """Return, in order, the steps of what a crash has left: half written, or newer than what is resumed.

    found: steps of all checkpoint folders, and whether each was written to its end. What is newer than
    `resumed` (None: the run begins anew) was passed over as damaged; training will write it again.
    """
    return sorted(step for step, finished in found.items() if not finished or step > (resumed or 0))


def found_checkpoints(files: RunFiles) -> dict[int, bool]:
    """Return the steps of all checkpoint folders, and whether each was written to its end."""
    folders = files.folders("step_").items()
    return {step: finished for name, finished in folders if (step := checkpoint_step(name)) is not None}


def finished_checkpoints(files: RunFiles, log: Log) -> list[Saved]:
    """Return all checkpoints that were written to their end, by step.

    One whose state.json is damaged counts as not validated; `log` is told of it.
    """
    saved: list[Saved] = []
    for step in _finished(files):
        try:
            saved.append(Saved(step, read_state(files, step).error_percent))
        except DocumentError as error:
            log(f"warning: the error of {checkpoint_name(step)} is unknown: {error}")
            saved.append(Saved(step))
    return saved


def newest_state(files: RunFiles) -> State | None:
    """Return the state of the newest checkpoint that was written to its end and whose state is whole."""
    for step in reversed(_finished(files)):
        try:
            return read_state(files, step)
        except DocumentError:  # whoever goes on from a checkpoint names what is passed over
            continue
    return None


def read_state(files: RunFiles, step: int) -> State:
    """Return the state.json of the checkpoint after `step` steps.

    Raises:
        DocumentError: it or its manifest is missing or damaged; names the file.
    """
    name = checkpoint_name(step)
    path = files.path(f"{name}/{STATE}")
    manifest = read_document(files, f"{name}/{MANIFEST}", parse_manifest)
    content = files.read(f"{name}/{STATE}")
    if manifest is None or content is None:
        missing = MANIFEST if manifest is None else STATE
        raise DocumentError(f"{files.path(f'{name}/{missing}')} is missing")
    if digest_of(content) != manifest.files[STATE]:
        raise DocumentError(f"{path} does not match its manifest")
    try:
        state = parse_state(content)
    except DocumentError as error:
        raise DocumentError(f"{path} {error}") from None
    if state.step != step:
        raise DocumentError(f"{path} is of step {state.step}")
    return state


def clean(files: RunFiles, resumed: int | None) -> None:
    """Remove what a crash has left; see `leftovers`."""
    files.remove_staged()
    for step in leftovers(found_checkpoints(files), resumed):
        files.remove(checkpoint_name(step))


def prune(files: RunFiles, log: Log, *, keep_last: int, keep_best: int) -> None:
    """Remove the checkpoints that are not to be kept; see `to_delete`.

    Of a checkpoint that is a symbolic link the link goes; what it points to stays.
    """
    for step in to_delete(finished_checkpoints(files, log), keep_last=keep_last, keep_best=keep_best):
        files.remove(checkpoint_name(step))


def _finished(files: RunFiles) -> list[int]:
    return sorted(step for step, finished in found_checkpoints(files).items() if finished)
