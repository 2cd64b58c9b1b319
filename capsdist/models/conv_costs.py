"""What networks of convolutional capsules cost, layer by layer: the function `cost` of their family."""

from __future__ import annotations

from dataclasses import replace
from math import gcd, prod

from capsdist.config.conv_capsnet import ConvCapsNetConfig, ConvRouting
from capsdist.config.cost import Bytes, Cost, LayerCost, Numbers
from capsdist.config.shapes import image_shape
from capsdist.models.costs import conv_cost, group_norm_cost, relu_cost
from capsdist.models.network_costs import Sides, class_capsules_cost, convolved, input_numbers
from capsdist.models.resnet_costs import capsules_over_stem, frozen_cost, stem_costs

__all__ = ["conv_capsnet_cost"]

_FP32 = 4
_SCRATCH = 20 << 20  # bytes of the buffers of a block of images, at most
_VOTES_KEPT = 3  # tensors of the size of the votes that autograd keeps an iteration of the reference
_COORDINATES = 2


def conv_capsnet_cost(model: ConvCapsNetConfig, routing: ConvRouting) -> Cost:
    """Return the cost of a `ConvCapsNet`, without `train.recompute`.

    Raises:
        ConfigError: a stem by import path cannot be traced on torch's meta device.
    """
    stem, channels, sides, learns = _paper_stem(model) if model.stem == "paper" else stem_costs(model)
    over = capsules_over_stem(model, routing, channels, sides, learns=learns)
    primary, squash, _, *above = over  # without the class capsules, which see another layer
    grid, _ = convolved(sides, model.primary_kernel, model.primary_stride, model.padding)
    types, dim = model.primary_types, model.primary_dim
    layers = [*stem, primary, squash]
    numbers = zip(
        model.capsule_types, model.capsule_dims, model.capsule_kernels, model.capsule_strides, strict=True
    )
    for number, (parents, parent_dim, kernel, stride) in enumerate(numbers):
        name, (after, _) = f"blocks.{number}", convolved(grid, kernel, stride, model.capsule_padding)
        layers += _inputs(f"{name}.inputs", model, prod(grid), types, dim)
        sizes = (types, dim), (parents, parent_dim)
        cost = _fields_cost(f"{name}.layer", model, routing, sizes, (kernel**2, kernel**2), (grid, after))
        layers.append(cost)
        grid, types, dim = after, parents, parent_dim
    layers += _inputs("class_inputs", model, prod(grid), types, dim)
    return Cost(input_numbers(model), [*layers, _classes(model, routing, grid, (types, dim)), *above])


def _paper_stem(model: ConvCapsNetConfig) -> tuple[list[LayerCost], int, Sides, bool]:
    """Return what `stem_costs` returns of the stem `paper`."""
    images, *size = image_shape(model)
    channels, sides = model.conv_channels, (size[0], size[1])
    after, padded = convolved(sides, model.conv_kernel, model.conv_stride, model.padding)
    conv = conv_cost(
        "stem.conv", (images, channels), model.conv_kernel, (sides, after), input_gradient=False,
        padded=padded,
    )  # fmt: skip
    layers = [conv, relu_cost("stem.relu", channels * prod(after))]
    if model.stem_frozen:
        layers = list(map(frozen_cost, layers))
    norm = group_norm_cost("norm", channels, after, gcd(model.norm_groups, channels))
    if not model.stem_frozen:  # the ReLU keeps its result, which is what the norm reads
        norm = replace(norm, saved=replace(norm.saved, narrow=0))
    return [*layers, norm], channels, after, True


def _inputs(name: str, model: ConvCapsNetConfig, positions: int, types: int, dim: int) -> list[LayerCost]:
    """Return the cost of `ChildPoses`: normalised, they keep what was; dropped, a number a capsule."""
    numbers, kept = positions * types * dim, 0
    kept += numbers if model.pose_norm else 0
    kept += positions * types if model.capsule_dropout else 0
    if not kept:
        return []
    peak = (Bytes(2 * _FP32 * numbers),)
    return [LayerCost(name, saved=Numbers(narrow=kept), forward_peaks=peak, backward_peaks=peak)]


def _classes(
    model: ConvCapsNetConfig, routing: ConvRouting, grid: Sides, below: tuple[int, int]
) -> LayerCost:
    """Return the cost of the class capsules over a grid of so many types and dimensions."""
    types, dim = below
    if model.class_weights == "position":
        return class_capsules_cost(model, routing, types * prod(grid), dim)
    own = (types, dim + _COORDINATES), (model.num_classes, model.class_dim)
    alone = model.model_copy(update={"log_priors": False})
    cost = _fields_cost("class_capsules", alone, routing, own, (prod(grid), 1), (grid, (1, 1)))
    fixed = types * _COORDINATES * model.num_classes * model.class_dim  # rows that add the coordinates
    weights = types * (dim + _COORDINATES) * model.num_classes * model.class_dim
    return replace(cost, parameters=cost.parameters - fixed, copied=weights)  # with these rows


def _fields_cost(
    name: str,
    model: ConvCapsNetConfig,
    routing: ConvRouting,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    places: tuple[int, int],
    grids: tuple[Sides, Sides],
) -> LayerCost:
    """Return the cost of dynamic routing between grids of capsules.

    A product has 2 K T D J E P FLOP. `streamed`: 2R - 1 products forward; backward 5 an iteration, 2 in the
    first, or with priors 4; that is 4R - 2 and what is computed again.

    Args:
        name: for people.
        model: bias and priors.
        routing: iterations, gradient and backend.
        sizes: (T, D) and (J, E).
        places: K of a field, and how many matrices a pair of types has.
        grids: sides of children and parents.
    """
    (types, dim), (parents, parent_dim) = sizes
    num_places, matrices = places
    weights = matrices * types * dim * parents * parent_dim
    parameters = weights + model.capsule_bias * parents * parent_dim
    parameters += model.log_priors * num_places * types * parents
    votes = num_places * types * parents * parent_dim * prod(grids[1])
    product, rounds = 2 * dim * votes, routing.iterations
    first = 4 if model.log_priors else 2
    done = first + 5 * (rounds - 1)
    new = 2 * (2 * rounds - 1)
    if routing.gradient == "last":
        done, new = 5 if rounds > 1 else first, 2
    poses, totals = prod(grids[0]) * types * dim, prod(grids[1]) * parents * parent_dim
    reference = routing.backend == "reference" or routing.recompute != "streamed"
    kept = _VOTES_KEPT * rounds * votes if reference else rounds * totals
    scratch = Bytes(_FP32 * votes) if reference else Bytes(0, _SCRATCH)
    return LayerCost(
        name,
        parameters=parameters,
        forward_flop=product * (2 * rounds - 1),
        backward_flop=product * new,
        recomputed_flop=0 if reference else product * (done - new),
        saved=Numbers(narrow=poses, wide=kept),
        forward_peaks=(Bytes(scratch.image + _FP32 * 2 * totals, scratch.fixed),),
        backward_peaks=(
            Bytes(scratch.image + _FP32 * (poses + 3 * totals), scratch.fixed + _FP32 * parameters),
        ),
    )
