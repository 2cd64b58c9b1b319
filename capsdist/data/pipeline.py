"""Batches of a rank, gathered by a background thread: shuffled for training, in storage order for evaluation.

Images stay uint8 until they are on the device (`Transform` converts them there). A batch of n real
samples is padded to the size that all ranks share, with weight 0, so that ranks take equal steps.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from capsdist.config.images import sides
from capsdist.config.steps import EpochSteps, LastBatch
from capsdist.data.ahead import prefetched
from capsdist.data.batch import Batch, Partner
from capsdist.data.format.order import Order, rank_slice
from capsdist.data.format.position import Position, check_inside, check_same_order
from capsdist.data.format.source import open_split
from capsdist.data.gather import FromFiles, Gather, Residence, Samples
from capsdist.data.recipes.source import Recipes
from capsdist.data.resident import Choice, open_gather

__all__ = ["TrainStream", "eval_batches"]

_CHUNK_BYTES = 2 << 20  # images gathered at once: enough to spread the cost of touching a shard
_DECODED_BYTES = 16 << 20  # the same where they are decoded: threads wait for the last one of a chunk
_CHUNK_STEPS = 64
_AHEAD = 32  # chunks whose shards are fetched before they are needed, where the split is far: 64 MiB


class _Plan(NamedTuple):
    """Steps over all ranks: sample ids [steps, n], and the epoch of all of them or of each."""

    ids: np.ndarray
    epochs: int | np.ndarray


class TrainStream:
    """The training batches of one rank, in an order that no number of ranks changes (see `order`).

    `folder`: a local path or an s3:// URL; where the bytes are never enters the order.
    last_batch: "short" ends an epoch with a step of the remaining samples, "carry" fills that step with the
    first samples of the next epoch, which then has them behind it. steps: in which epoch each step is. pin:
    gather into pinned memory, for copies to a GPU. partners: gather those of the samples, for `Mixup`. parts:
    of recipes, gather also the image of each label alone.
    decode_size: side, or height and width, to which encoded images are decoded; 0: the stored one. resident:
    whether the whole split stays in memory, and where; see `open_gather`. device: that batches are for: those
    of a set that is resident in the memory of a GPU are there. workers_on_node: processes that do the same.

    Raises:
        DataError: a split that cannot be read, does not fit where `resident` wants it or has no `parts`, or
            `lanes` that does not divide `global_batch_size`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        seed: int,
        global_batch_size: int,
        lanes: int = 8,
        window: int = 8192,
        rank: int = 0,
        world_size: int = 1,
        last_batch: LastBatch = "short",
        pin: bool = False,
        partners: bool = False,
        parts: bool = False,
        decode_size: int | tuple[int, int] = 0,
        resident: Choice = "never",
        device: torch.device | str = "cpu",
        workers_on_node: int = 1,
    ) -> None:
        self.split = open_split(folder, size=sides(decode_size) if decode_size else None)
        self.order = Order(self.split.index, seed, global_batch_size, lanes, window)
        self.index = self.split.index
        self.steps = EpochSteps(self.split.index.num_samples, global_batch_size, last_batch)
        self.rank, self.world_size, self.partners, self.parts = rank, world_size, partners, parts
        self._gather = open_gather(
            folder,
            self.split,
            resident=resident,
            device=torch.device(device),
            workers_on_node=workers_on_node,
            pin=pin,
            parts=parts,
        )

    resumes_inside = True
    """A run resumes at any step of an epoch."""
    notice = None
    """There is nothing that this stream does not promise."""

    @property
    def resident(self) -> Residence:
        """Where the whole split is kept."""
        return self._gather.resident

    def close(self) -> None:
        """Stop sharing memory with other processes; batches that are there stay."""
        self._gather.close()

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the rank's batches of the steps of `epoch` from its step number `start_step` on.

        A thread gathers ahead of the consumer; it ends when the iterator is exhausted, closed or collected.
        """
        plans = self._plans(epoch, start_step)
        return prefetched(_gathered(self._gather, plans, self.rank, self.world_size, self.partners))

    def position(self, epoch: int, step: int) -> Position:
        """Return the position after `step` completed steps of `epoch`."""
        order = self.order
        return Position(
            digest=order.index.digest,
            seed=order.seed,
            epoch=epoch,
            step=step,
            global_batch_size=order.global_batch_size,
            lanes=order.lanes,
            window=order.window,
            last_batch=self.steps.last_batch,
        )

    def check_position(self, position: Position) -> None:
        """Check that `position` belongs to this stream's data and order.

        Raises:
            DataError: another data set, seed, batch, lanes, window or last batch, named with both values; a
                step outside the epoch.
        """
        check_same_order(position, self.position(position.epoch, position.step))
        check_inside(position, self.steps.inside(position.epoch))

    def _plans(self, epoch: int, start_step: int) -> Iterator[_Plan]:
        """Yield the samples of all ranks for a chunk of steps at a time."""
        order = self.order
        per_step = -(-order.global_batch_size // self.world_size)
        chunk_bytes = _DECODED_BYTES if self.split.decodes else _CHUNK_BYTES
        image_bytes = (1 + 2 * self.parts) * order.index.image_bytes
        size = min(_CHUNK_STEPS, max(1, chunk_bytes // (per_step * image_bytes)))
        if self.steps.last_batch == "carry":
            begin, end = self.steps.before(epoch), self.steps.before(epoch + 1)
            for first in range(begin + start_step, end - 1, size):
                yield self._full_steps(first, min(first + size, end - 1))
            if begin + start_step < end:  # by itself: the only step with samples of several epochs
                yield self._full_steps(end - 1, end)
            return
        for first in range(start_step, order.num_full_steps, size):
            yield _Plan(order.steps(epoch, first, min(first + size, order.num_full_steps)), epoch)
        if order.num_short and start_step <= order.num_full_steps:
            yield _Plan(order.short_step(epoch)[None], epoch)

    def _full_steps(self, first: int, last: int) -> _Plan:
        """Return the run's steps first .. last - 1, cut out of all epochs one after the other."""
        batch, total = self.order.global_batch_size, self.order.index.num_samples
        begin, end = first * batch, last * batch
        epochs = range(begin // total, (end - 1) // total + 1)
        parts = [
            self.order.places(each, max(begin - each * total, 0), min(end - each * total, total))
            for each in epochs
        ]
        ids = np.concatenate(parts).reshape(last - first, batch)
        if len(epochs) == 1:
            return _Plan(ids, epochs[0])
        return _Plan(ids, np.repeat(epochs, [len(part) for part in parts]).reshape(ids.shape))


def eval_batches(
    folder: str | os.PathLike[str],
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    pin: bool = False,
    decode_size: int | tuple[int, int] = 0,
    parts: bool = False,
) -> Iterator[Batch]:
    """Yield every sample of a split exactly once over all ranks, in storage order, padded alike.

    `batch_size` is that of one rank; a step takes the next batch_size * world_size samples, of which
    every rank has a contiguous part; the number of batches is equal on all ranks. parts: if the split is one
    of recipes, gather also the image of each label alone.
    """
    split = open_split(folder, size=sides(decode_size) if decode_size else None)
    step = batch_size * world_size
    total = split.index.num_samples

    plans = (_Plan(np.arange(first, min(first + step, total))[None], 0) for first in range(0, total, step))
    gather = FromFiles(split, pin=pin, parts=parts and isinstance(split, Recipes))
    return prefetched(_gathered(gather, plans, rank, world_size))


def _gathered(
    gather: Gather, plans: Iterable[_Plan], rank: int, world_size: int, partners: bool = False
) -> Iterator[Iterable[Batch]]:
    """Gather the rank's part of `plans`; shards of later ones are fetched while earlier ones are gathered."""
    waiting: deque[_Plan] = deque()
    source = gather.source
    for plan in plans:
        if source is not None:
            source.prefetch(plan.ids[:, _places(plan.ids.shape[1], rank, world_size, partners)])
        waiting.append(plan)
        if source is None or source.is_local or len(waiting) > _AHEAD:
            yield _gather(gather, waiting.popleft(), rank, world_size, partners)
    for plan in waiting:
        yield _gather(gather, plan, rank, world_size, partners)


def _gather(gather: Gather, plan: _Plan, rank: int, world_size: int, partners: bool) -> Iterable[Batch]:
    """Gather the rank's part of the steps of `plan`; the batches are views of one buffer.

    The partner of a sample stands behind it, so one column more is gathered for all partners of a step.
    """
    num, size = plan.ids.shape[1], -(-plan.ids.shape[1] // world_size)
    places = _places(num, rank, world_size, partners)
    own = _padded(plan.ids, places, size + partners)
    epochs = plan.epochs
    if not isinstance(epochs, int):
        epochs = torch.from_numpy(_padded(epochs, places, size + partners))
        epochs = epochs.pin_memory() if gather.pin else epochs
    finish = gather.begin(own.reshape(-1))
    batches = _batches(finish, own.shape, epochs, num, len(places) - partners, partners)
    return batches if gather.deferred else list(batches)


def _batches(
    finish: Callable[[], Samples],
    shape: tuple[int, int],
    epochs: int | Tensor,
    num_global: int,
    num_own: int,
    partners: bool,
) -> Iterator[Batch]:
    """Yield the batches of the samples that `finish` returns.

    shape: steps, and samples of each with the partner that is gathered besides.
    """
    gathered = finish()
    images, labels, sample_ids = (value.unflatten(0, shape) for value in gathered[:3])
    size = shape[1] - partners
    parts: Iterable[Tensor | None] = repeat(None)
    if gathered.parts is not None:
        parts = gathered.parts.unflatten(0, shape)[:, :size].unbind()
    weights = (torch.arange(size, device=images.device) < num_own).float()
    if not isinstance(epochs, int):
        epochs = epochs.to(images.device, non_blocking=True)

    def samples(columns: slice) -> Iterator[tuple[Tensor, Tensor, Tensor, int | Tensor]]:
        # Views of all steps by one call an array, instead of one a step.
        every = [array[:, columns].unbind() for array in (images, labels, sample_ids)]
        each = repeat(epochs) if isinstance(epochs, int) else epochs[:, columns].unbind()
        return zip(*every, each, strict=False)

    partner_of = (Partner(*found) for found in samples(slice(1, None))) if partners else repeat(None)
    for (x, y, ids, epoch), partner, part in zip(samples(slice(size)), partner_of, parts, strict=False):
        yield Batch(x, y, weights, ids, num_global, epoch, partner, part)


def _places(num: int, rank: int, world_size: int, partners: bool) -> np.ndarray:
    """Return the places in a step of `num` samples that a rank reads: its own, and the last one's partner."""
    part = rank_slice(num, rank, world_size)
    return np.arange(part.start, part.stop + partners) % num


def _padded(values: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Return the columns at `places`, a copy of `size` columns: one of them is repeated.

    Where the rank has none, it is any other.
    """
    own = values[:, places]
    filler = own[:, :1] if own.shape[1] else values[:, :1]
    return np.concatenate([own, np.repeat(filler, size - own.shape[1], axis=1)], axis=1)
