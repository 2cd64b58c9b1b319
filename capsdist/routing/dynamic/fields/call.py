"""One call of dynamic routing between grids: what every backend is given."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from capsdist.routing.common.fields import Fields
from capsdist.routing.common.sharing import Competition
from capsdist.routing.dynamic.options import RoutingOptions

__all__ = ["FieldCall"]


@dataclass(frozen=True)
class FieldCall:
    """The arguments of one call of `route_fields`.

    child_poses [B, N, T, D]; packed_weights [J, E, D, T * K], children of a field by type and then place, or
    [J, E, D, T] where the fields share them; bias [J, E]; log_priors [T * K, J].
    """

    child_poses: Tensor
    packed_weights: Tensor
    fields: Fields
    options: RoutingOptions
    competition: Competition = "field"
    bias: Tensor | None = None
    log_priors: Tensor | None = None

    @property
    def unpacked(self) -> Tensor:
        """The weights as [J, E, D, T, K]; shared ones are a view that repeats them."""
        found = self.packed_weights.unflatten(3, (-1, self.fields.num_matrices))
        return found.expand(*found.shape[:4], self.fields.size)
