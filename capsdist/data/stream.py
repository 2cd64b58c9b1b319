"""What training needs of a reader of training images, whatever it reads: `TrainStream` and `WebStream`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from capsdist.config.steps import EpochSteps
from capsdist.data.batch import Batch
from capsdist.data.format.position import Position
from capsdist.data.gather import Residence

__all__ = ["Stream", "StreamIndex"]


class StreamIndex(Protocol):
    """What the training images are."""

    @property
    def digest(self) -> str:
        """Sha256, hex: names the data set."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        ...

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        ...


class Stream(Protocol):
    """The training batches of one rank; all ranks take equally many steps."""

    @property
    def index(self) -> StreamIndex:
        """What the images are."""
        ...

    @property
    def steps(self) -> EpochSteps:
        """In which epoch each step is."""
        ...

    @property
    def resumes_inside(self) -> bool:
        """Does a run resume at any step? Otherwise only where an epoch ends."""
        ...

    @property
    def notice(self) -> str | None:
        """What the reader does not promise, in one line for people; None if there is nothing to say."""
        ...

    @property
    def resident(self) -> Residence:
        """Where all images are kept in memory."""
        ...

    def close(self) -> None:
        """Stop sharing memory with other processes; the run is over."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the rank's batches of the steps of `epoch` from its step number `start_step` on."""
        ...

    def position(self, epoch: int, step: int) -> Position:
        """Return the position after `step` completed steps of `epoch`."""
        ...

    def check_position(self, position: Position) -> None:
        """Check that a run can resume at `position`; raise `DataError`."""
        ...
