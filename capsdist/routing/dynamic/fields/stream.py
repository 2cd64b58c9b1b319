"""Grids for the passes of `streamed`: every parent position of an image is one more image there.

The children of a field are gathered, a block of images at a time: patches [b P, D, T K], of which the weights
[J, E, D, T K] make parents as those of any layer. One thing differs: a child is in several patches, and
divides itself over the parents of all of them.

Shape letters: B images, N child positions, T child types, P parent positions, K places of a field, J parent
types, D child dimension, E parent dimension; n pairs of image and position of a chunk, m = t K children of a
tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from capsdist.routing.common.fields import Fields
from capsdist.routing.common.sharing import Competition
from capsdist.routing.common.tiling import slices
from capsdist.routing.dynamic.cuts import Plan, plan_fields
from capsdist.routing.dynamic.options import RoutingOptions
from capsdist.routing.dynamic.streamed_passes import Stream

__all__ = ["FieldStream"]


class FieldStream(Stream):
    """One call's operands; images are pairs (image, parent position), and poses patches [b P, D, T K].

    child_poses: [B, N, T, D]. packed_weights: [J, E, D, T K]. log_priors: [T K, J] or None.
    """

    def __init__(
        self,
        child_poses: Tensor,
        packed_weights: Tensor,
        log_priors: Tensor | None,
        dtype: torch.dtype,
        options: RoutingOptions,
        fields: Fields,
        competition: Competition,
        *,
        rows: int,
    ) -> None:
        self.fields, self.competition, self._grid = fields, competition, child_poses
        self._children, self._parents = (
            each.to(child_poses.device) for each in (fields.children, fields.parents)
        )
        # The first iteration is like every other: at borders children have fewer parents.
        if log_priors is None:
            log_priors = child_poses.new_zeros(packed_weights.shape[3], packed_weights.shape[0])
        super().__init__(child_poses.flatten(2), packed_weights, log_priors, dtype, options, rows)

    def _plan(self, child_poses: Tensor, packed_weights: Tensor, rows: int, itemsize: int) -> Plan:
        return plan_fields(
            len(child_poses), self.fields.num_parents, self.fields.size, packed_weights.shape,
            rows=rows, itemsize=itemsize, device=child_poses.device.type,
        )  # fmt: skip

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks, as slices of pairs, and their patches [b P, D, T K], contiguous."""
        positions = self.fields.num_parents
        for images in slices(len(self._grid), self.plan.block // positions):
            padded = functional.pad(self._grid[images], (0, 0, 0, 0, 0, 1))  # one more child, of zeros
            seen = padded[:, self._children].permute(0, 2, 4, 3, 1)  # [b, K, P, T, D] -> [b, P, D, T, K]
            patches = self.scratch.take("patches", *seen.shape).copy_(seen)
            pairs = slice(images.start * positions, min(images.stop, len(self._grid)) * positions)
            yield pairs, patches.flatten(3).flatten(0, 1)

    def to_children(self, d_patches: Tensor) -> Tensor:
        """Return the gradient of the poses [b, N, T, D] of that of the patches [b P, D, T K] of a block."""
        positions, places = self.fields.num_parents, self.fields.size
        by_image = d_patches.view(-1, positions, d_patches.shape[1], d_patches.shape[2] // places, places)
        flat = functional.pad(by_image.permute(0, 3, 2, 4, 1).flatten(3), (0, 1))  # [b, T, D, K P + 1]
        found = flat.new_zeros(*flat.shape[:3], self.fields.num_children)
        for parent in self._parents:
            found += flat[..., parent]
        return found.permute(0, 3, 1, 2)

    def softmax(self, tile: slice, logits: Tensor, out: Tensor) -> None:
        """Divide every child over all parents that see it, or over the types at each position."""
        if self.competition == "position":
            super().softmax(tile, logits, out)
            return
        own = logits[: self.num_parents]
        of_child = self._over_parents(own.logsumexp(0), float("-inf")).logsumexp(2)  # [b, t, N]
        if self.options.none_of_the_above:
            of_child = torch.logaddexp(of_child, of_child.new_zeros(()))
        of_child = of_child.nan_to_num(neginf=0.0)  # children that nobody sees
        torch.sub(logits, self._of_places(of_child, float("inf")), out=out)
        out.exp_()

    def softmax_backward(self, tile: slice, coupling: Tensor, d_coupling: Tensor, out: Tensor) -> None:
        """Do so for the sum over all parents that see a child."""
        if self.competition == "position":
            super().softmax_backward(tile, coupling, d_coupling, out)
            return
        torch.mul(coupling, d_coupling, out=out)
        of_child = self._over_parents(out.sum(0), 0.0).sum(2)
        torch.sub(d_coupling, self._of_places(of_child, 0.0), out=out)
        out.mul_(coupling)

    def _over_parents(self, of_pairs: Tensor, none: float) -> Tensor:
        """Return [b, t, M, N] of [n, m]: for each child what the places where it is seen have."""
        positions, places = self.fields.num_parents, self.fields.size
        by_place = of_pairs.view(-1, positions, of_pairs.shape[1] // places, places).permute(0, 2, 3, 1)
        return functional.pad(by_place.flatten(2), (0, 1), value=none)[..., self._parents]

    def _of_places(self, of_children: Tensor, none: float) -> Tensor:
        """Return [n, m] of [b, t, N]; `none` where a place has no child."""
        padded = functional.pad(of_children, (0, 1), value=none)[..., self._children]  # [b, t, K, P]
        return padded.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)
