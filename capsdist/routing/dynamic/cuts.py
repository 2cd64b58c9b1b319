"""Choose the sizes of the tiles of `streamed`, so that they stay in the cache.

Four cuts, from the outside in: a block of images (bounds the repacked poses and what has images and parents),
a tile of children (bounds everything that has children and parents), a chunk of images (fills the cache), and
pieces of parents, if these are so many that a tile would have few children. A batch of the paper's MNIST
network on two threads is one block of one tile with a dozen chunks of one piece.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from capsdist.routing.common.tiling import MIB, chunk_bytes, even_size

__all__ = ["SQUASH_NUMBERS", "Plan", "plan_tiles"]

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
        children = even_size(num_children, children, ALIGN_CHILDREN)
    wide = num_children if poses_itemsize < itemsize else 0
    image_bytes = itemsize * (child_dim * (2 * children + wide) + NUM_STATES * num_parents * parent_dim)
    block = even_size(num_images, max(1, BLOCK_BYTES // image_bytes), 1)
    fixed = cost.chunk(0, children, parents)
    most = (budget - fixed) // (cost.chunk(1, children, parents) - fixed)
    images = even_size(block, max(1, most), ALIGN_IMAGES)
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
