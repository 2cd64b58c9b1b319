"""Which checkpoints a run keeps: the policy, as pure functions of what is there, and what carries it out.

Ours. Ray keeps the newest or the best ones, and forgets what a crash has left; a run wants the newest to go
on from, the best to use, and nothing else. So the folder is the record, and Ray's own is not consulted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capsdist.train.cluster.files import RunFiles

__all__ = [
    "Saved", "best", "checkpoint_name", "checkpoint_step", "clean", "finished_checkpoints",
    "found_checkpoints", "leftovers", "prune", "superfluous",
]  # fmt: skip

_NAME = re.compile(r"step_(\d{8,})")


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
    return int(found[1]) if found else None


def superfluous(saved: Sequence[Saved], *, keep_last: int, keep_best: int) -> list[int]:
    """Return, in order, the steps of those that are neither among the newest nor among the best.

    Of equally good ones the newer is better; those that were not validated are kept by age only.
    """
    newest = sorted((each.step for each in saved), reverse=True)
    kept = {*newest[:keep_last], *(each.step for each in _ranked(saved)[:keep_best])}
    return sorted(set(newest) - kept)


def best(saved: Sequence[Saved]) -> Saved | None:
    """Return the one with the lowest error, None if none was validated."""
    return next(iter(_ranked(saved)), None)


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


def finished_checkpoints(files: RunFiles) -> list[Saved]:
    """Return all checkpoints that were written to their end, by step."""
    steps = sorted(step for step, finished in found_checkpoints(files).items() if finished)
    return [Saved(step, _error_percent(files, step)) for step in steps]


def clean(files: RunFiles, resumed: int | None) -> None:
    """Remove what a crash has left; see `leftovers`."""
    files.remove_staged()
    for step in leftovers(found_checkpoints(files), resumed):
        files.remove(checkpoint_name(step))


def prune(files: RunFiles, *, keep_last: int, keep_best: int) -> None:
    """Remove the checkpoints that are not to be kept; see `superfluous`."""
    for step in superfluous(finished_checkpoints(files), keep_last=keep_last, keep_best=keep_best):
        files.remove(checkpoint_name(step))


def _error_percent(files: RunFiles, step: int) -> float | None:
    state = json.loads(files.read(f"{checkpoint_name(step)}/state.json") or b"{}")
    metrics = state.get("metrics", {})
    return metrics["error_percent"] if metrics.get("validated_step") == step else None


def _ranked(saved: Sequence[Saved]) -> list[Saved]:
    measured = [(each.error_percent, -each.step, each) for each in saved if each.error_percent is not None]
    return [each for *_, each in sorted(measured, key=lambda entry: entry[:2])]
