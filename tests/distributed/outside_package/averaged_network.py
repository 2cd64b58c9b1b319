"""The model file: a family of networks whose class capsules are routed by `averaged`."""

from typing import Annotated

from capsdist.config import Family, NetworkConfig, Section
from capsdist.config.sections import Bounds, Count


class AveragedConfig(NetworkConfig):
    """Primary capsules, and class capsules that average their votes."""

    kind: str = "averaged_network:AVERAGED"
    primary_types: Count = 3
    """Types of primary capsules."""


class AveragedRouting(Section):
    """Options of the routing algorithm."""

    sharpness: Annotated[float, Bounds(gt=0)] = 1.0
    """Factor of the means before squash."""


def build(model: AveragedConfig, routing: AveragedRouting):
    """Return the network."""
    from averaged import AveragedOptions, route_averaged
    from torch import Tensor, nn

    from capsdist.models import Output, PackedCapsules, PrimaryCapsules
    from capsdist.ops import lengths

    class AveragedCapsules(PackedCapsules):
        def __init__(self, num_children: int) -> None:
            super().__init__(num_children, 4, model.num_classes, 5)
            self.options = AveragedOptions(routing.sharpness)
            self.add_parameters(num_children)

        def forward(self, child_poses: Tensor) -> Tensor:
            return route_averaged(child_poses, self.packed_weights, self.options)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.primary = PrimaryCapsules(model.in_channels, model.primary_types, 4, kernel_size=3)
            side = model.image_size
            self.classes = AveragedCapsules(self.primary.num_capsules(side, side))

        def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
            parents = self.classes(self.primary(images))
            return Output(lengths(parents), parents)

    return Network()


def losses(output, images, labels, loss):
    """Return the margin loss."""
    from capsdist.ops import margin_loss

    return {"loss": margin_loss(output.scores, labels)}


AVERAGED = Family(
    title="averaging network", model=AveragedConfig, routing=AveragedRouting, build=build, losses=losses
)
