"""What children choose from between grids, and how undecided they are: what traces of routing measure.

Shape letters: N child positions, P parent positions, K places of a field, J parent types.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capsdist.routing.common.fields import Fields
from capsdist.routing.common.sharing import Competition

__all__ = ["Choices"]


class Choices:
    """What the children of one type choose from: all parents that see them, or the types at each position.

    Attributes:
        seen: [K, P] 1 where a place has a child, else 0, in dtype and on the device of `like`.
        num_dividing: how many divide themselves: children that a parent sees, or, where the types at each
            position compete, pairs of a child and a position that sees it.
    """

    def __init__(
        self,
        fields: Fields,
        competition: Competition,
        num_types: int,
        like: Tensor,
        *,
        none_of_the_above: bool = False,
    ) -> None:
        self._fields, self._types, self._none = fields, num_types, none_of_the_above
        self._whole = competition == "field"
        self.seen = (fields.children < fields.num_children).to(like)
        positions = (fields.num_seeing if self._whole else self.seen > 0).to(like)
        self._seeing = fields.num_seeing.to(like).clamp(min=1)
        self.num_dividing = int((positions > 0).sum())
        choices = positions * num_types + none_of_the_above * (positions > 0)
        self._num_deciding = max(1, int((choices > 1).sum()))
        self._scale = (choices > 1) / choices.clamp(min=2).log()  # one over the largest entropy

    def relative_entropy(self, coupling: Tensor) -> Tensor:
        """Return the mean over children of the entropy of their coupling, over its largest, [...].

        coupling: [..., K, P, J], 0 where there is no child. Children with one choice are left out; the mean
        is 0 where none has more.
        """
        own, mass = torch.special.entr(coupling).sum(-1), coupling.sum(-1)
        if self._whole:
            own, mass = (self._fields.sum_over_parents(each) for each in (own, mass))
        if self._none:
            own = own + torch.special.entr((1 - mass).clamp(min=0))
        own = own.mul(self._scale)
        return own.sum(tuple(range(-self._scale.dim(), 0))) / self._num_deciding

    def centred(self, logits: Tensor) -> Tensor:
        """Return logits [..., K, P, J] less the mean over the parents that the child chooses from.

        0 where there is no child, whatever is there.
        """
        there = self.seen[..., None] > 0
        if not self._whole:
            return (logits - logits.mean(-1, keepdim=True)).where(there, 0.0)
        sums = self._fields.sum_over_parents(logits.where(there, 0.0).sum(-1))
        mean = self._fields.at_places(sums / (self._seeing * self._types), 0.0)
        return (logits - mean[..., None]).where(there, 0.0)
