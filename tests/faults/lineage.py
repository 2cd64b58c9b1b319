"""Which samples a run was trained on in the end, from what its workers wrote down, whatever attempts it took.

Every worker writes the step it goes on from, and then the samples of every step; an attempt is one
worker's file. Of an attempt that died, the steps up to the checkpoint that the next one took survive: they
are in its weights. Nothing here is derived from how the order of samples is meant to be.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Attempt", "Recorder", "Step", "count_samples", "differing_tensors", "read_attempts", "surviving"]


class Step(NamedTuple):
    """A step as one rank saw it: number, seconds since 1970 when it was done, ids of its samples."""

    step: int
    time: float
    sample_ids: tuple[int, ...]


@dataclass(frozen=True)
class Attempt:
    """What one worker trained: from when on, after which step, its steps in their order, and where."""

    rank: int
    began: float
    resumed_step: int
    steps: tuple[Step, ...]
    host: str = ""
    pid: int = 0


class Recorder:
    """The observer of a launch: writes a file per worker into `folder`, a line per step, on disk at once.

    The folder is made if it is missing; the first line of a file says on which host, in which process.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file: TextIO | None = None

    def __call__(self, rank: int, step: int, sample_ids: Tensor) -> None:
        """Write a line; a killed process leaves the lines of all its steps."""
        now = time.time()
        if self._file is None:
            self._file = (self._folder / f"{time.time_ns()}.rank-{rank}.jsonl").open("x")
            self._file.write(json.dumps([socket.gethostname(), os.getpid()]) + "\n")
        self._file.write(json.dumps([step, now, sample_ids.tolist()]) + "\n")
        self._file.flush()


def read_attempts(folder: Path) -> dict[int, list[Attempt]]:
    """Return, by rank, the attempts that a `Recorder` has written, in the order of their beginnings."""
    attempts: dict[int, list[Attempt]] = defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        rank = int(path.name.split(".")[1].removeprefix("rank-"))
        (host, pid), (resumed_step, began, _), *rest = lines
        steps = tuple(Step(step, moment, tuple(ids)) for step, moment, ids in rest)
        attempts[rank].append(Attempt(rank, began, resumed_step, steps, host, pid))
    return dict(attempts)


def surviving(attempts: Sequence[Attempt]) -> list[Step]:
    """Return the steps of one rank that its last weights have seen."""
    lineage: list[Step] = []
    for attempt in attempts:
        lineage = [each for each in lineage if each.step <= attempt.resumed_step]
        lineage += attempt.steps
    return lineage


def count_samples(
    lineages: Iterable[Sequence[Step]], *, num_samples: int, steps_per_epoch: int, epochs: int
) -> tuple[int, int]:
    """Return how many samples were lost and how many doubled, summed over epochs.

    Every id below `num_samples` belongs once, on one rank, into each of the `epochs`: one that is missing is
    lost; one that comes again, or that is of no such epoch or set, is doubled as often as it is too much.
    """
    seen: dict[int, Counter[int]] = defaultdict(Counter)
    for lineage in lineages:
        for each in lineage:
            seen[(each.step - 1) // steps_per_epoch].update(each.sample_ids)
    whole = set(range(num_samples))
    lost = sum(len(whole - seen[epoch].keys()) for epoch in range(epochs))
    due = sum(len(whole & seen[epoch].keys()) for epoch in range(epochs))
    return lost, sum(counts.total() for counts in seen.values()) - due


def differing_tensors(first: Path, second: Path) -> list[str]:
    """Return the names of weights and optimizer state that differ by a bit between two checkpoints."""
    one, two = _tensors(first), _tensors(second)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def _tensors(checkpoint: Path) -> Mapping[str, tuple[str, tuple[int, ...], bytes]]:
    """Return type, shape and bytes of every tensor, by name."""
    from safetensors.numpy import load_file

    found = {}
    for name in ("model.safetensors", "optimizer.safetensors"):
        for key, value in load_file(checkpoint / name).items():
            found[f"{name.partition('.')[0]}:{key}"] = (str(value.dtype), value.shape, value.tobytes())
    return found
