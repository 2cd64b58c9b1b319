"""How the streamed backend cuts its work so that it stays in the cache, and the buffers that it works in.

Four cuts, from the outside in: a block of images (bounds the repacked poses and what has images and parents),
a tile of children (bounds everything that has children and parents), a chunk of images (fills the cache), and
pieces of parents, if these are so many that a tile would have few children. A batch of the paper's MNIST
network on two threads is one block of one tile with a dozen chunks of one piece.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capsdist.routing.common.cache import cache_bytes_per_thread

__all__ = ["Pieces", "Plan", "Scratch", "plan_tiles", "slices"]

MIB = 1 << 20
# Bytes that a chunk's buffers may have, those with children AND parents, over which a dozen passes run; as
# many again for copies of weights and of their gradient. On a CPU they are to stay in the caches that its
# threads bring along; a GPU wants fewer, larger launches. The number bounds both: scratch stays below 64 MB.
MAX_CHUNK_BYTES = 16 * MIB
# Bytes of a block's repacked poses and of its buffers with images and parents.
BLOCK_BYTES = 20 * MIB
# Numbers [J, b, E] that are squashed at a time: half a dozen temporaries of that size.
SQUASH_NUMBERS = 1 << 18
# With fewer images than this, a product with the weights is busier reading them than multiplying.
MIN_IMAGES = 8
# With fewer children than this, a tile is slower to copy out of the weights than parents are to cut: with
# 1,000 parents and 2 or 32 images, 32 children of some parents take half the time of 4 children of all.
MIN_CHILDREN = 32
# Children of a tile and images of a chunk are multiples of these: whole cache lines and vector registers.
ALIGN_CHILDREN, ALIGN_IMAGES = 16, 8
# Buffers [J, b, E] of a block: V, ds, dV, its increment, and one sum.
NUM_STATES = 5


@dataclass(frozen=True)
class Plan:
    """Sizes of the cuts, the last piece of each may be smaller.

    Images a block, children a tile, images a chunk, parents a piece.
    """

    block: int
    children: int
    images: int
    parents: int


def chunk_bytes(device: str) -> int:
    """Return the bytes that the buffers of a chunk may have on a type of device."""
    if device != "cpu":
        return MAX_CHUNK_BYTES
    return min(cache_bytes_per_thread() * torch.get_num_threads(), MAX_CHUNK_BYTES)


def plan_tiles(
    num_images: int,
    weights_shape: torch.Size,
    *,
    rows: int,
    itemsize: int,
    poses_itemsize: int,
    device: str,
    weights_fit: bool = True,
) -> Plan:
    """Choose the cuts for one call.

    All buffers together stay below 64 MB whatever the shape, as long as one image's result [J, E] has at most
    a million numbers; beyond, `NUM_STATES` buffers of that size are most of it. Not counted: gradients of
    weights and priors of 16 bits, which are summed in fp32, 4 bytes a number, before they are rounded.

    Args:
        num_images: B.
        weights_shape: [J, E, D, I].
        rows: products held an image and parent: 1 in the forward pass, 2 in the backward pass.
        itemsize: bytes of a number of the dtype that is computed in.
        poses_itemsize: bytes of a number of the child poses as given; if smaller, their gradient needs a
            buffer of its own, which then counts as poses.
        device: type of the device, "cpu" or another.
        weights_fit: whether a product takes the weights as they are, all children at once.
    """
    num_parents, parent_dim, child_dim, num_children = weights_shape
    cost = _Cost(rows, itemsize, *weights_shape[:3])
    budget = chunk_bytes(device)
    fewest = max(1, min(MIN_IMAGES, num_images))
    children, parents = num_children, num_parents
    copied = not (weights_fit and cost.chunk(fewest, children, parents) <= budget)
    if copied:
        room = budget - fewest * num_parents * cost.sides
        most = room // (fewest * (cost.planes + num_parents * cost.products) + cost.priors)
        children = min(most, budget // (num_parents * cost.copies), num_children)
        if children < min(MIN_CHILDREN, num_children):
            fewest = max(1, min(fewest, budget // 2 // (cost.planes + cost.priors)))
            half = budget // 2
            most = min(half // (fewest * cost.planes + cost.priors), half // (fewest * cost.products))
            children = max(1, min(MIN_CHILDREN, num_children, most, budget // cost.copies))
            most = half // (fewest * (children * cost.products + cost.sides))
            parents = max(1, min(most, budget // (children * cost.copies), num_parents))
        children = _even(num_children, children, ALIGN_CHILDREN)
    wide = num_children if poses_itemsize < itemsize else 0
    image_bytes = itemsize * (child_dim * (2 * children + wide) + NUM_STATES * num_parents * parent_dim)
    block = _even(num_images, max(1, BLOCK_BYTES // image_bytes), 1)
    fixed = cost.chunk(0, children, parents)
    most = (budget - fixed) // (cost.chunk(1, children, parents) - fixed)
    images = _even(block, max(1, most), ALIGN_IMAGES)
    return Plan(block, children, images, parents)


class _Cost:
    """Bytes of the buffers of a chunk, by what their number is proportional to."""

    def __init__(self, rows: int, itemsize: int, num_parents: int, parent_dim: int, child_dim: int) -> None:
        # An image and child: dot products and coupling, one sum over parents, a gradient of poses.
        self.planes = ((rows + 1) * (num_parents + 1) + 1 + child_dim) * itemsize
        self.priors = 2 * num_parents * itemsize  # a child: priors and their gradient
        self.products = rows * child_dim * itemsize  # an image, child and parent
        self.sides = (rows + 1) * parent_dim * itemsize  # an image and parent: operands, a sum
        self.copies = 2 * parent_dim * child_dim * itemsize  # a child and parent: weights, their gradient

    def chunk(self, images: int, children: int, parents: int) -> int:
        per_image = children * (self.planes + parents * self.products) + parents * self.sides
        return images * per_image + children * self.priors


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


def _even(length: int, most: int, align: int) -> int:
    """Return a size for nearly equal pieces of `length`: at most `most`, a multiple of `align` if it can."""
    if length <= most:
        return max(length, 1)
    most = most // align * align or most
    pieces = -(-length // most)
    return min(most, -(-length // (pieces * align)) * align) if most >= align else most
