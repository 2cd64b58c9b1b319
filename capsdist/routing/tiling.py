"""How the streamed form cuts its work so that it stays in the cache, and the buffers that it works in.

Three cuts, from the outside in: a block of images (bounds the repacked poses), a tile of children (bounds
everything that has children and parents), a chunk of images (fills the cache). A batch of the paper's MNIST
network on two threads is one block of one tile with a dozen chunks.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Plan", "Scratch", "plan_tiles", "slices"]

MIB = 1 << 20
# Bytes that a chunk's buffers may have, those with children AND parents, over which a dozen passes run. On a
# CPU they are to stay in the caches that its threads bring along; a GPU wants fewer, larger launches. The
# second number bounds both, so that all scratch together stays below 64 MB at any shape.
CPU_CHUNK_BYTES_PER_THREAD = 4 * MIB
MAX_CHUNK_BYTES = 16 * MIB
# Bytes of a block's repacked poses.
BLOCK_BYTES = 12 * MIB
# With fewer images than this, a product with the weights is busier reading them than multiplying.
MIN_IMAGES = 8
# Children of a tile and images of a chunk are multiples of these: whole cache lines and vector registers.
ALIGN_CHILDREN, ALIGN_IMAGES = 16, 8


@dataclass(frozen=True)
class Plan:
    """Sizes of the cuts: images a block, children a tile, images a chunk; the last of each may be smaller."""

    block: int
    children: int
    images: int


def plan_tiles(
    num_images: int,
    weights_shape: torch.Size,
    *,
    rows: int,
    itemsize: int,
    poses_itemsize: int,
    device: str,
) -> Plan:
    """Choose the cuts for one call.

    Args:
        num_images: B.
        weights_shape: [J, E, D, I].
        rows: products held an image and parent: 1 in the forward pass, 2 in the backward pass.
        itemsize: bytes of a number of the dtype that is computed in.
        poses_itemsize: bytes of a number of the child poses as given; if smaller, their gradient needs a
            buffer of its own, which then counts as poses.
        device: type of the device, "cpu" or another.
    """
    num_parents, dim_parent, dim_child, num_children = weights_shape
    budget = min(CPU_CHUNK_BYTES_PER_THREAD * torch.get_num_threads(), MAX_CHUNK_BYTES)
    if device != "cpu":
        budget = MAX_CHUNK_BYTES
    # For each image, child and parent: the products over D, their dot products, the coupling.
    pair_bytes = (rows * (dim_child + 1) + 1) * num_parents * itemsize
    fewest = max(1, min(MIN_IMAGES, num_images))
    children = num_children
    if fewest * pair_bytes * num_children > budget:
        # The weights of a tile and their gradient are copies then, which have to fit as well.
        tile_bytes = 2 * num_parents * dim_parent * dim_child * itemsize
        children = _even(num_children, max(1, budget // max(fewest * pair_bytes, tile_bytes)), ALIGN_CHILDREN)
    kept = num_children if poses_itemsize < itemsize else children
    block = _even(num_images, max(1, BLOCK_BYTES // (dim_child * itemsize * kept)), 1)
    images = _even(block, max(1, budget // (pair_bytes * children)), ALIGN_IMAGES)
    return Plan(block, children, images)


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

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """Return `tensor` if it is contiguous and of this scratch's dtype, else a copy in buffer `name`."""
        return tensor if self._fits(tensor) else self.take(name, *tensor.shape).copy_(tensor)

    @contextmanager
    def adding_to(self, name: str, target: Tensor | None, part: Any) -> Iterator[Tensor | None]:
        """Yield what to add to for `target[part]`: itself if it fits, else zeros that are added at last."""
        if target is None or self._fits(target[part]):
            yield None if target is None else target[part]
        else:
            sums = self.take(name, *target[part].shape).zero_()
            yield sums
            target[part] += sums

    def _fits(self, tensor: Tensor) -> bool:
        return tensor.dtype == self._dtype and tensor.is_contiguous()


def _even(length: int, most: int, align: int) -> int:
    """Return a size for nearly equal pieces of `length`: at most `most`, a multiple of `align` if it can."""
    if length <= most:
        return max(length, 1)
    most = most // align * align or most
    pieces = -(-length // most)
    return min(most, -(-length // (pieces * align)) * align) if most >= align else most
