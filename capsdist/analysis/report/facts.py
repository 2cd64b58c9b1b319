"""What is known of a run: its configuration, rows and result, and what it has cost. Reads no tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from capsdist.analysis.drawing import last_evaluation, of_kind, validated_on
from capsdist.config import Config
from capsdist.config.cost import Cost
from capsdist.config.models import find_family
from capsdist.console import Log
from capsdist.errors import ConfigError, RunError
from capsdist.planning.plan import Flop, step_flop
from capsdist.runs.record import trained_rows
from capsdist.runs.retention import newest_state
from capsdist.runs.rundir import RunFolder, RunSummary
from capsdist.storage import Folder
from capsdist.train.metrics import Row

__all__ = ["RunFacts", "Spent", "read_facts"]


@dataclass(frozen=True)
class RunFacts:
    """A run as it lies on storage.

    rows: those of metrics.jsonl, at least one; result: of the last start, None while it trains or after a
    kill; versions, classes: of the newest checkpoint, empty without one.
    """

    files: Folder
    config: Config
    rows: list[Row]
    result: RunSummary | None
    versions: dict[str, str]
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.files.name

    @property
    def status(self) -> str:
        """done, stopped, failed, or unfinished: it trains, or was killed."""
        return self.result.status if self.result else "unfinished"

    @property
    def start(self) -> Row:
        """The row of its last start, empty without one."""
        return dict(next(reversed(of_kind(self.rows, "start")), {}))

    @property
    def step(self) -> int:
        """The last step that a row tells of."""
        return max(int(row.get("step", 0)) for row in self.rows)

    @property
    def measured(self) -> Row:
        """The row of the test, without one that of the last validation, empty without either."""
        return dict(last_evaluation(self.rows) or {})

    @property
    def measured_on(self) -> str:
        """What the images of `measured` are called: test or validation."""
        return "test" if self.measured.get("kind") == "test" else validated_on(self.rows)

    @property
    def cost(self) -> Cost | None:
        """What the layers cost, None where the family cannot say."""
        price = find_family(self.config.model.kind).cost
        try:
            return None if price is None else price(self.config.model, self.config.routing)
        except ConfigError:
            return None


@dataclass(frozen=True)
class Spent:
    """What a run has spent, of the rows that it has kept: what was done again after a failure counts once.

    num_images: trained on; train_s: seconds of training steps alone; wall_s: of all starts, with validations
    and checkpoints, without the start of Ray; flop: of products and convolutions of the training, None where
    the family cannot say.
    """

    num_images: int
    train_s: float
    wall_s: float
    num_starts: int
    flop: Flop | None

    @classmethod
    def of(cls, facts: RunFacts) -> Spent:
        """Add up the rows of a run."""
        images = train_s = 0.0
        for seconds, images_per_s in _windows(facts.rows):
            train_s += seconds
            images += seconds * images_per_s
        num_images = round(images)
        cost = facts.cost
        return cls(
            num_images=num_images,
            train_s=train_s,
            wall_s=sum(_seconds_of_starts(facts.rows)),
            num_starts=len(of_kind(facts.rows, "start")),
            flop=None if cost is None else step_flop(cost, num_images),
        )


def read_facts(place: str | os.PathLike[str], log: Log = lambda text: None) -> RunFacts:
    """Return what is known of the run at `place`, a path or an s3:// URL; `log` is told of damaged files.

    Raises:
        RunError: it is no folder of a run that has trained.
        CheckpointError, ConfigError: its configuration is of another version, or its family is not here.
    """
    folder = RunFolder(place, log)
    rows = trained_rows(folder.files, log)
    config = folder.read_config()
    if config is None:
        raise RunError(f"{folder} has no configuration; give the folder of a run that has trained")
    state = newest_state(folder.files)
    versions, classes = (state.versions, state.classes or ()) if state else ({}, ())
    return RunFacts(folder.files, config, rows, folder.read_result(), versions, classes)


def _windows(rows: list[Row]) -> Iterator[tuple[float, float]]:
    """Yield seconds of training, and images a second, of what each row of training sums up."""
    before = 0
    for row in rows:
        if row["kind"] == "start":
            before = int(row["resumed_step"])
        elif row["kind"] == "train":
            steps, before = int(row["step"]) - before, int(row["step"])
            yield steps * (row.get("step_time_s") or 0.0), row.get("images_per_s") or 0.0


def _seconds_of_starts(rows: list[Row]) -> Iterator[float]:
    """Yield the seconds of each start, to its last row that says them."""
    last = 0.0
    for row in rows:
        if row["kind"] == "start":
            yield last
            last = 0.0
        last = row.get("wall_time_s") or row.get("time_s") or last
    yield last
