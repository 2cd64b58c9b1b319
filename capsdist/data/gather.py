"""Images, labels and ids of samples as tensors: read from files for each batch, or out of a resident set.

A `Gather` works in two parts. `begin` runs in the thread that is ahead of the training loop. What it returns
is called by the loop's own thread where the images are on a GPU, so that all work there is queued in one
place and in order, and else by the same thread at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:  # a machine with torch alone gathers from tensors
    from capsdist.data.format.source import Source
    from capsdist.data.recipes.on_device import DeviceFrames
    from capsdist.data.recipes.pairs import Pairs

__all__ = ["Close", "FromFiles", "FromFrames", "FromTensors", "Gather", "Residence", "Samples"]

Residence: TypeAlias = Literal["never", "device", "shared"]
"""Where a whole set is kept: nowhere, in the memory of the device, in shared memory of the node."""

Close: TypeAlias = Callable[[], None]
"""Called when a set is no longer used, to stop sharing memory with other processes."""


def _nothing() -> None:
    """Close what is not shared."""


class Samples(NamedTuple):
    """n samples, on one device: images uint8 [n, C, H, W], labels int64 [n] or [n, K], ids int64 [n].

    parts: the image of each label alone, uint8 [n, K, C, H, W], where they are asked for.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    parts: Tensor | None = None


class Gather(Protocol):
    """Makes tensors of samples."""

    @property
    def resident(self) -> Residence:
        """Where the whole set is kept."""
        ...

    @property
    def pin(self) -> bool:
        """Is memory of the host pinned, for copies to a GPU?"""
        ...

    @property
    def close(self) -> Close:
        """Call it to stop sharing memory with other processes; batches that are there stay."""
        ...

    @property
    def deferred(self) -> bool:
        """Is what `begin` returns to be called by the consumer of batches?"""
        ...

    @property
    def source(self) -> Source | None:
        """What files are read from; None if none are."""
        ...

    def begin(self, ids: np.ndarray) -> Callable[[], Samples]:
        """Begin to gather the samples `ids`, int64 [n]; return what ends it."""
        ...


class FromFiles:
    """Samples that `source` gathers on the host. resident: whether it reads memory instead of files.

    parts: gather also the image of each label alone; `source` reads recipes.
    """

    deferred = False

    def __init__(
        self,
        source: Source,
        *,
        pin: bool,
        resident: Residence = "never",
        close: Close = _nothing,
        parts: bool = False,
    ) -> None:
        self._source, self.pin, self.close, self._parts = source, pin, close, parts
        self.resident: Residence = resident

    @property
    def source(self) -> Source | None:
        """What files are read from, None if the set is resident."""
        return self._source if self.resident == "never" else None

    def begin(self, ids: np.ndarray) -> Callable[[], Samples]:
        """Gather the samples `ids`, int64 [n]."""
        from capsdist.data.format.packed import IMAGE, PARTS  # late, with pydantic

        index = self._source.index
        label = index.field[index.label_name]
        channels, height, width = index.image_shape
        if self._source.decodes:  # a decoder writes the channels of a pixel side by side
            images = self._empty(len(ids), height, width, channels).permute(0, 3, 1, 2)
        else:
            images = self._empty(len(ids), channels, height, width)
        labels = torch.empty((len(ids), *label.shape), dtype=torch.int64, pin_memory=self.pin)
        out = {IMAGE: images.numpy(), label.name: labels.numpy()}
        parts = self._empty(*labels.shape, channels, height, width) if self._parts else None
        if parts is not None:
            out[PARTS] = parts.numpy()
        self._source.gather_into(ids, out)
        samples = Samples(images, labels, _host(ids, self.pin), parts)
        return lambda: samples

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.pin)


class FromTensors:
    """Samples of a whole set in memory: images uint8 [N, C, H, W], labels int64 [N] or [N, K].

    On a GPU only ids are copied there, once for all samples that are gathered at a time.
    """

    source = None

    def __init__(
        self, images: Tensor, labels: Tensor, *, pin: bool, resident: Residence, close: Close = _nothing
    ) -> None:
        self._images, self._labels = images, labels
        self.pin, self.close = pin, close
        self.resident: Residence = resident
        self.deferred = images.device.type != "cpu"

    def begin(self, ids: np.ndarray) -> Callable[[], Samples]:
        """Begin to gather the samples `ids`, int64 [n]."""
        host = _host(ids, self.pin)
        if self.deferred:
            return lambda: self._selected(host)
        samples = Samples(self._taken(self._images, ids), self._taken(self._labels, ids), host)
        return lambda: samples

    def _taken(self, rows: Tensor, ids: np.ndarray) -> Tensor:
        """Return the rows `ids` of a tensor on the CPU."""
        found = torch.empty((len(ids), *rows.shape[1:]), dtype=rows.dtype, pin_memory=self.pin)
        # By numpy: torch would start threads of its own in this thread, which take the loop's cores.
        # The mode spares a copy; ids are in range.
        np.take(rows.numpy(), ids, axis=0, out=found.numpy(), mode="clip")
        return found

    def _selected(self, ids: Tensor) -> Samples:
        ids = ids.to(self._images.device, non_blocking=True)
        return Samples(self._images.index_select(0, ids), self._labels.index_select(0, ids), ids)


class FromFrames:
    """Samples of recipes, overlaid on a device that holds the digits: pairs and shifts are copied there.

    labels: of the digits, int64 [num_digits], on the device. parts: return also both digits of each sample.
    """

    deferred, source = True, None
    resident: Residence = "device"
    close = staticmethod(_nothing)

    def __init__(
        self, frames: DeviceFrames, labels: Tensor, pairs: Pairs, *, pin: bool, parts: bool = False
    ) -> None:
        self._frames, self._labels, self._pairs = frames, labels, pairs
        self.pin, self._parts = pin, parts

    def begin(self, ids: np.ndarray) -> Callable[[], Samples]:
        """Begin to gather the samples `ids`, int64 [n]."""
        digits, shifts = self._pairs.of(ids)
        numbers = _host(np.concatenate([ids[None], digits.T, shifts.reshape(len(ids), 4).T]), self.pin)
        return lambda: self._overlaid(numbers)

    def _overlaid(self, numbers: Tensor) -> Samples:
        """Return the samples of `numbers`, int64 [7, n]: ids, two digits, down and right of both."""
        ids, lower, upper, *shifts = numbers.to(self._labels.device, non_blocking=True).unbind()
        digits = torch.stack([lower, upper], dim=1)
        parts = self._frames.separate(digits, torch.stack(shifts, dim=1).view(-1, 2, 2))
        return Samples(self._frames.added(parts), self._labels[digits], ids, parts if self._parts else None)


def _host(numbers: np.ndarray, pin: bool) -> Tensor:
    found = torch.from_numpy(np.ascontiguousarray(numbers))
    return found.pin_memory() if pin else found
