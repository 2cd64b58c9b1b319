"""What a network of matrix capsules costs, layer by layer: the function `cost` of its family."""

from __future__ import annotations

from math import prod

from capsdist.config.cost import Bytes, Cost, LayerCost, Numbers
from capsdist.config.em_capsnet import EMCapsNetConfig, EMRouting
from capsdist.config.shapes import image_shape
from capsdist.models.costs import conv_cost, loss_cost, relu_cost

__all__ = ["em_capsnet_cost"]

_FP32 = 4
_SCRATCH = 64 << 20  # bytes of the buffers of streamed routing, at most
_VOTES_KEPT = 3  # tensors of the size of the votes that autograd keeps an iteration of the reference


def em_capsnet_cost(model: EMCapsNetConfig, routing: EMRouting) -> Cost:
    """Return the cost of an `EMCapsNet`."""
    channels, height, width = image_shape(model)
    side = model.pose_side
    shape = tuple((each - model.conv_kernel) // model.conv_stride + 1 for each in (height, width))
    below, grid = model.primary_types, (shape[0], shape[1])
    layers = [
        conv_cost(
            "conv", (channels, model.conv_channels), model.conv_kernel, ((height, width), grid),
            input_gradient=False,
        ),
        relu_cost("relu", model.conv_channels * prod(grid)),
        conv_cost("primary_capsules", (model.conv_channels, below * (side**2 + 1)), 1, (grid, grid)),
        LayerCost("activations", saved=Numbers(narrow=below * prod(grid))),  # of the logistic function
    ]  # fmt: skip
    numbers = zip(model.capsule_types, model.capsule_kernels, model.capsule_strides, strict=True)
    for number, (types, kernel, stride) in enumerate(numbers):
        after = ((grid[0] - kernel) // stride + 1, (grid[1] - kernel) // stride + 1)
        name, sizes = f"conv_capsules.{number}", (below, types)
        layers.append(_layer(name, sizes, kernel**2, kernel**2, (prod(grid), prod(after)), side, routing))
        grid, below = after, types
    sizes = below, model.num_classes
    layers.append(_layer("class_capsules", sizes, prod(grid), 1, (prod(grid), 1), side, routing))
    return Cost(channels * height * width, [*layers, loss_cost("spread", model.num_classes)])


def _layer(
    name: str,
    types: tuple[int, int],
    places: int,
    matrices: int,
    positions: tuple[int, int],
    side: int,
    routing: EMRouting,
) -> LayerCost:
    """Return the cost of a layer of child types T to types C: votes are products of S x S matrices.

    forward 2 K T C P S^3; backward twice that, and the votes again where they are not kept.

    Args:
        name: for people.
        types: T and C.
        places, matrices: K of a field, and how many matrices a pair of types has.
        positions: N of children and P of parents.
        side: S.
        routing: iterations and backend.
    """
    children, parents = types
    weights = matrices * children * parents * side**2
    product = 2 * places * children * parents * positions[1] * side**3
    votes = places * children * parents * positions[1] * side**2
    poses = positions[0] * children * (side**2 + 1)
    stats = routing.iterations * parents * positions[1] * (2 * side**2 + 2)
    reference = routing.backend == "reference"
    kept = _VOTES_KEPT * routing.iterations * votes if reference else stats
    peak = Bytes(_FP32 * votes) if reference else Bytes(0, min(_SCRATCH, 2 * _FP32 * votes))
    return LayerCost(
        name,
        parameters=weights + 2 * parents,
        forward_flop=product,
        backward_flop=2 * product,
        recomputed_flop=0 if reference else product,
        saved=Numbers(narrow=poses, wide=kept),
        copied=weights,  # times their factor
        forward_peaks=(peak,),
        backward_peaks=(Bytes(peak.image + _FP32 * poses, peak.fixed + _FP32 * weights),),
    )
