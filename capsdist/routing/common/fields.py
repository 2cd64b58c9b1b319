"""Receptive fields of convolutional capsules: which children a parent sees, and which parents see a child.

A parent at position p sees the children of all types at K positions, those under its kernel. A child is seen
by the parents of all types at the positions whose kernel covers it, at borders by fewer, and divides itself
over all of them (Hinton, Sabour, Frosst 2018, section 2.3 and appendix A.1). Geometry alone: no weights.

Shape letters: N positions of children, P of parents, K of a kernel, M parent positions that see a child at
most.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from capsdist.errors import ShapeError
from capsdist.routing.common.checks import check_name, is_count

__all__ = ["FIELDS_SCHEMA", "Fields", "Padding", "fields_of", "whole_field"]

FIELDS_SCHEMA = "int[] child_shape, int[] kernel, int[] stride, str padding, bool shared"
"""`Fields.numbers` in torch's schema language, as arguments of an operator."""

Padding = Literal["valid", "same"]


@dataclass(frozen=True)
class Fields:
    """The receptive fields of a grid of children in one or two dimensions. Hashable.

    Attributes:
        child_shape: positions of the children in each direction.
        kernel, stride: of each direction; `whole_field` makes one field of all children.
        padding: `valid`: parents where the kernel fits; `same`: ceil(children / stride) parents in each
            direction, and fields that reach beyond the border have fewer children. The odd position, if there
            is one, is beyond the end, as in TensorFlow.
        shared: one matrix for all K positions of a field, not one for each.

    Raises:
        ShapeError: a number that cannot be, or a kernel larger than the children.

    Example:
        >>> Fields((5, 7), (3, 3), (2, 2)).parent_shape
        (2, 3)
    """

    child_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding = "valid"
    shared: bool = False

    def __post_init__(self) -> None:
        """Check the sizes."""
        sizes = {"child_shape": self.child_shape, "kernel": self.kernel, "stride": self.stride}
        for name, numbers in sizes.items():
            if len(numbers) not in (1, 2) or not all(map(is_count, numbers)):
                raise ShapeError(f"{name}={numbers!r} must be one or two whole numbers of at least 1")
            if len(numbers) != len(self.child_shape):
                raise ShapeError(
                    f"{name}={numbers!r} has {len(numbers)} numbers, but child_shape={self.child_shape!r} "
                    f"{len(self.child_shape)}; give one for each direction"
                )
        check_name("padding", self.padding, ("valid", "same"))
        if min(self.parent_shape) < 1:
            raise ShapeError(
                f"kernel={self.kernel!r} is larger than child_shape={self.child_shape!r}; give more "
                "children, a smaller kernel or padding='same'"
            )

    @property
    def numbers(self) -> tuple[list[int], list[int], list[int], str, bool]:
        """What it is made of, as an operator takes it: `fields_of` of it is equal to it."""
        shape, kernel, stride = map(list, (self.child_shape, self.kernel, self.stride))
        return shape, kernel, stride, self.padding, self.shared

    @property
    def parent_shape(self) -> tuple[int, ...]:
        """Positions of the parents in each direction."""
        if self.padding == "same":
            return tuple(-(-size // step) for size, step in zip(self.child_shape, self.stride, strict=True))
        sides = zip(self.child_shape, self.kernel, self.stride, strict=True)
        return tuple((size - kernel) // step + 1 for size, kernel, step in sides)

    @property
    def num_children(self) -> int:
        """N, of one type."""
        return math.prod(self.child_shape)

    @property
    def num_parents(self) -> int:
        """P, of one type."""
        return math.prod(self.parent_shape)

    @property
    def size(self) -> int:
        """K."""
        return math.prod(self.kernel)

    @property
    def num_matrices(self) -> int:
        """Matrices of a pair of types: K, or 1 if they are shared."""
        return 1 if self.shared else self.size

    @property
    def children(self) -> Tensor:
        """[K, P] int64: number of the child position under place k of the kernel of parent p, N where none.

        Positions are numbered row by row.
        """
        found, seen = None, None
        for size, kernel, step, parents, before in self._directions():
            child = torch.arange(kernel)[:, None] + torch.arange(parents) * step - before
            found = _combine(found, child, size)
            seen = _combine(seen, (child >= 0) & (child < size))
        assert found is not None
        assert seen is not None
        return found.where(seen, self.num_children)

    @property
    def parents(self) -> Tensor:
        """[M, N] int64: k P + p of every parent p that has child n at place k of its field, K P where none.

        The reverse of `children`.
        """
        positions, places, seen = None, None, None
        for size, kernel, step, parents, before in self._directions():
            child = torch.arange(size) + before
            parent = child // step - torch.arange(-(-kernel // step))[:, None]
            place = child - parent * step
            positions, places = _combine(positions, parent, parents), _combine(places, place, kernel)
            seen = _combine(seen, (parent >= 0) & (parent < parents) & (place < kernel))
        assert positions is not None
        assert places is not None
        assert seen is not None
        return (places * self.num_parents + positions).where(seen, self.size * self.num_parents)

    def _directions(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield children, kernel, stride, parents, and positions before the first child of each direction."""
        sides = zip(self.child_shape, self.kernel, self.stride, self.parent_shape, strict=True)
        for size, kernel, step, parents in sides:
            same = self.padding == "same"
            yield (
                size,
                kernel,
                step,
                parents,
                max(0, (parents - 1) * step + kernel - size) // 2 if same else 0,
            )

    @property
    def num_seeing(self) -> Tensor:
        """[N] int64: parent positions that see each child; 0 of a child that a stride passes over."""
        return (self.parents < self.size * self.num_parents).sum(0)

    def at_places(self, of_children: Tensor, none: float) -> Tensor:
        """Return [..., K, P] of what children have, [..., N]; `none` where a place has no child."""
        children, _ = _tables(self, of_children.device)
        return functional.pad(of_children, (0, 1), value=none)[..., children]

    def at_parents(self, of_places: Tensor, none: float) -> Tensor:
        """Return [M, ..., N] of [..., K, P]: what the places of each child have; `none` past the last."""
        _, parents = _tables(self, of_places.device)
        flat = functional.pad(of_places.flatten(-2), (0, 1), value=none)
        return torch.stack([flat[..., parent] for parent in parents])

    def sum_over_parents(self, of_places: Tensor) -> Tensor:
        """Return [..., N] of [..., K, P], the sum over the places of each child, one after the other."""
        _, parents = _tables(self, of_places.device)
        flat = functional.pad(of_places.flatten(-2), (0, 1))
        found = flat.new_zeros(*flat.shape[:-1], self.num_children)
        for parent in parents:
            found += flat[..., parent]
        return found


@functools.lru_cache(maxsize=64)
def _tables(fields: Fields, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return `children` and `parents` on a device: made once for all that are equal."""
    return fields.children.to(device), fields.parents.to(device)


def _combine(before: Tensor | None, own: Tensor, size: int = 1) -> Tensor:
    """Return for each pair of numbers before [a, b] and own [c, d], which is below size, one: [a c, b d].

    Of flags whether both hold.
    """
    if before is None:
        return own
    one, other = before[:, None, :, None], own[None, :, None, :]
    both = one & other if own.dtype == torch.bool else one * size + other
    return both.flatten(2).flatten(0, 1)


def fields_of(
    child_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Padding,
    shared: bool = False,
) -> Fields:
    """Return `Fields` of these sizes; lists will do.

    Raises: ShapeError as `Fields`.
    """
    return Fields(tuple(child_shape), tuple(kernel), tuple(stride), padding, shared)


def whole_field(child_shape: tuple[int, ...]) -> Fields:
    """Return one field that has all children, with weights shared over positions: of class capsules."""
    return fields_of(child_shape, child_shape, (1,) * len(child_shape), "valid", shared=True)
