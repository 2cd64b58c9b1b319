"""From epochs to optimizer steps: how many there are, and in which epoch each is. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from capsdist.config.schema import Config

__all__ = ["EpochSteps", "LastBatch", "steps_of", "total_steps"]

LastBatch = Literal["short", "carry"]


@dataclass(frozen=True)
class EpochSteps:
    """The optimizer steps of a run over `num_samples` images, `global_batch_size` a step.

    A step belongs to the epoch of its first image. last_batch: with ``"short"`` an epoch's last step takes
    the images that are left, so every epoch has ceil(num_samples / B) steps, B = `global_batch_size`. With
    ``"carry"`` it is filled from the next epoch: step s takes images s * B .. (s + 1) * B - 1 of all epochs
    one after the other, and epochs may differ by one step.
    """

    num_samples: int
    global_batch_size: int
    last_batch: LastBatch = "short"

    def before(self, epoch: int) -> int:
        """Return the number of steps that show all images of the epochs before `epoch`."""
        if self.last_batch == "carry":
            return -(-epoch * self.num_samples // self.global_batch_size)
        return epoch * -(-self.num_samples // self.global_batch_size)

    def inside(self, epoch: int) -> int:
        """Return the number of steps that belong to `epoch`."""
        return self.before(epoch + 1) - self.before(epoch)

    def locate(self, step: int) -> tuple[int, int]:
        """Return the epoch that step number `step` (the first is 0) belongs to, and its number in there."""
        if self.last_batch == "carry":
            epoch = step * self.global_batch_size // self.num_samples
        else:
            epoch = step // self.before(1)
        return epoch, step - self.before(epoch)

    def ends_epoch(self, done: int) -> bool:
        """Return whether the last of `done` steps shows the last image of an epoch."""
        return done > 0 and self.locate(done)[1] == 0

    def epochs(self, done: int) -> float:
        """Return how many epochs `done` steps are, as a fraction."""
        if self.last_batch == "carry":
            return done * self.global_batch_size / self.num_samples
        return done / self.before(1)


def steps_of(config: Config, num_samples: int) -> EpochSteps:
    """Return the steps of a run with `num_samples` training images."""
    return EpochSteps(num_samples, config.train.global_batch_size, config.data.last_batch)


def total_steps(config: Config, num_samples: int) -> int:
    """Return the step after which a run with `num_samples` training images ends.

    All images of `train.epochs` epochs have been shown then; with ``data.last_batch="carry"`` the last step
    is filled like every other one.
    """
    steps = steps_of(config, num_samples).before(config.train.epochs)
    return steps if config.train.max_steps is None else min(steps, config.train.max_steps)
