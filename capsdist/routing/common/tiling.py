"""Cut work into pieces that stay in the cache, and provide the buffers of one call.

Shape letters: J parents, E parent dimension, D child dimension, I children.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from capsdist.routing.common.cache import cache_bytes_per_thread

__all__ = ["MIB", "Pieces", "Scratch", "chunk_bytes", "even_size", "slices"]

MIB = 1 << 20
# Bytes that the buffers of a chunk may have, over which a dozen passes run; as many again for copies of
# weights and of their gradient. On a CPU they are to stay in the caches that its threads bring along; a GPU
# wants fewer, larger launches.
MAX_CHUNK_BYTES = 16 * MIB


def chunk_bytes(device: str) -> int:
    """Return the bytes that the buffers of a chunk may have on a type of device."""
    if device != "cpu":
        return MAX_CHUNK_BYTES
    return min(cache_bytes_per_thread() * torch.get_num_threads(), MAX_CHUNK_BYTES)


def slices(length: int, size: int) -> Iterator[slice]:
    """Cut `range(length)` into consecutive slices of `size`; the last may be shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


class Scratch:
    """Named buffers of one call, allocated at first use and then reused."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return the buffer `name` as a contiguous tensor of `shape`, contents undefined."""
        size = torch.Size(shape).numel()
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, dtype=self._dtype, device=self._device)
        return self._buffers[name][:size].view(shape)

    def fits(self, tensor: Tensor) -> bool:
        """Say whether `tensor` can be computed with as it is: contiguous and of this scratch's dtype."""
        return tensor.dtype == self._dtype and tensor.is_contiguous()

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """Return `tensor` if it fits, else a copy in buffer `name`."""
        return tensor if self.fits(tensor) else self.take(name, *tensor.shape).copy_(tensor)

    @contextmanager
    def adding_to(self, name: str, target: Tensor | None, part: Any) -> Iterator[Tensor | None]:
        """Yield what to add to for `target[part]`: itself if it fits, else zeros that are added at last."""
        if target is None or self.fits(target[part]):
            yield None if target is None else target[part]
        else:
            sums = self.take(name, *target[part].shape).zero_()
            yield sums
            target[part] += sums


class Pieces:
    """A tensor [J, E, D, I] that is read, or added to, a piece [j, E, D, m] at a time.

    A piece that fits is a view; of others one copy is held in the scratch, until another piece is asked for.
    """

    def __init__(self, scratch: Scratch, name: str, tensor: Tensor, *, sums: bool = False) -> None:
        self._scratch, self._name, self._tensor, self._sums = scratch, name, tensor, sums
        self._held: tuple[int, int] | None = None
        self._part = self._copy = tensor

    def at(self, parents: slice, children: slice) -> Tensor:
        """Return the piece of these parents and children, contiguous, as [j, E, D * m]."""
        part = self._tensor[parents, ..., children]
        if self._scratch.fits(part):
            return part.flatten(2)
        if self._held != (parents.start, children.start):
            self.flush()
            self._copy = self._scratch.take(self._name, *part.shape)
            self._copy.zero_() if self._sums else self._copy.copy_(part)
            self._part, self._held = part, (parents.start, children.start)
        return self._copy.flatten(2)

    def flush(self) -> None:
        """Add sums that are still held to the tensor."""
        if self._sums and self._held is not None:
            self._part += self._copy
        self._held = None


def even_size(length: int, most: int, align: int) -> int:
    """Return a size for nearly equal pieces of `length`: at most `most`, a multiple of `align` if it can."""
    if length <= most:
        return max(length, 1)
    most = most // align * align or most
    pieces = -(-length // most)
    return min(most, -(-length // (pieces * align)) * align) if most >= align else most
