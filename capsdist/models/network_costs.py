"""What the built-in networks cost, layer by layer: the functions `cost` of their families."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Literal

from capsdist.algorithms import find_algorithm
from capsdist.config.cost import Bytes, Cost, LayerCost, Numbers, Routed
from capsdist.config.models import (
    BaselineCNNConfig,
    CapsNetConfig,
    CapsuleConfig,
    NoOptions,
    PoolingCNNConfig,
    Routing,
)
from capsdist.config.shapes import image_shape
from capsdist.config.transforming_autoencoder import TransformingAutoencoderConfig
from capsdist.errors import ConfigError, Problem
from capsdist.models.costs import (
    conv_cost,
    lengths_cost,
    linear_cost,
    loss_cost,
    pool_cost,
    relu_cost,
    squash_cost,
)

__all__ = [
    "Sides", "baseline_cost", "capsnet_cost", "capsule_costs", "class_capsules_cost", "convolved",
    "decoder_costs", "input_numbers", "pooling_cnn_cost", "transforming_cost",
]  # fmt: skip

Sides = tuple[int, int]


def capsnet_cost(model: CapsNetConfig, routing: Routing) -> Cost:
    """Return the cost of a `CapsNet`."""
    channels, *sides = image_shape(model)
    size = (sides[0], sides[1])
    middle, padded = convolved(size, model.conv_kernel, 1, model.padding)
    conv = conv_cost(
        "conv", (channels, model.conv_channels), model.conv_kernel, (size, middle),
        input_gradient=False, padded=padded,
    )  # fmt: skip
    return Cost(
        input_numbers(model),
        [
            conv,
            relu_cost("relu", model.conv_channels * prod(middle)),
            *capsule_costs(model, routing, model.conv_channels, middle),
        ],
    )


def input_numbers(model: CapsuleConfig) -> int:
    """Return the numbers of an image, with those of each label's image that the decoder has to draw."""
    parts = model.num_labels if model.draws_parts else 0
    return (1 + parts) * prod(image_shape(model))


def capsule_costs(
    model: CapsuleConfig,
    routing: Routing,
    channels: int,
    sides: Sides,
    *,
    input_gradient: bool = True,
) -> list[LayerCost]:
    """Return the costs of primary capsules and all that is above them, and of the losses.

    channels, sides: C and (H, W) of the features below; input_gradient: whether something there is trained.

    Raises: ConfigError: the routing algorithm has no function cost.
    """
    types, dim = model.primary_types, model.primary_dim
    after, padded = convolved(sides, model.primary_kernel, model.primary_stride, model.padding)
    children = types * prod(after)
    return [
        conv_cost(
            "primary_capsules", (channels, types * dim), model.primary_kernel, (sides, after),
            input_gradient=input_gradient, padded=padded,
        ),
        squash_cost("squash", children, dim),
        class_capsules_cost(model, routing, children, dim),
        lengths_cost("lengths", model.num_classes, model.class_dim),
        *(decoder_costs(model.num_classes * model.class_dim, model) if model.decoder else ()),
    ]  # fmt: skip


def class_capsules_cost(model: CapsuleConfig, routing: Routing, children: int, dim: int) -> LayerCost:
    """Return the cost of the class capsules of so many children of `dim` dimensions.

    Raises: ConfigError: the routing algorithm has no function cost.
    """
    price = find_algorithm(routing.algorithm).cost
    if price is None:
        rule = "has no function `cost`: parameters, FLOP and memory of its class capsules would be missing"
        fix = "give the Algorithm one, or measure a few steps with capsdist train ... --train.dry-run 5"
        raise ConfigError([Problem("routing.algorithm", routing.algorithm, rule, fix)])
    routed = Routed(children, dim, model.num_classes, model.class_dim, routing.iterations)
    return price("class_capsules", model, routing, routed)


def decoder_costs(poses: int, model: CapsuleConfig) -> list[LayerCost]:
    """Return the costs of a `Decoder` of `poses` numbers, and of the reconstruction loss.

    Where it draws each label by itself, an image is as many rows for it as it has labels.
    """
    first, second = model.decoder_hidden
    rows = model.num_labels if model.draws_parts else 1
    mask = -(-rows * model.num_classes // 4)  # of bytes
    pixels = prod(image_shape(model))
    layers = [
        linear_cost("decoder.0", poses, first, saved=Numbers(narrow=poses)),
        relu_cost("decoder.1", first),
        linear_cost("decoder.2", first, second),
        relu_cost("decoder.3", second),
        linear_cost("decoder.4", second, pixels),
        loss_cost("reconstruction", pixels),
    ]
    below, *others = (_for_rows(layer, rows) for layer in layers)
    return [replace(below, saved=Numbers(below.saved.narrow, mask)), *others]


def _for_rows(layer: LayerCost, rows: int) -> LayerCost:
    """Return the cost of a layer that sees `rows` rows of an image."""

    def repeated(peaks: tuple[Bytes, ...]) -> tuple[Bytes, ...]:
        return tuple(Bytes(rows * each.image, each.fixed) for each in peaks)

    return replace(
        layer,
        forward_flop=rows * layer.forward_flop,
        backward_flop=rows * layer.backward_flop,
        saved=Numbers(rows * layer.saved.narrow, rows * layer.saved.wide),
        forward_peaks=repeated(layer.forward_peaks),
        backward_peaks=repeated(layer.backward_peaks),
    )


def baseline_cost(model: BaselineCNNConfig, routing: NoOptions) -> Cost:
    """Return the cost of a `BaselineCNN`."""
    from capsdist.models.baseline_cnn import KERNEL_SIZE

    channels, *sides = image_shape(model)
    size = (sides[0], sides[1])
    layers: list[LayerCost] = []
    for number, pair in enumerate(pairwise((channels, *model.conv_channels))):
        layers.append(conv_cost(f"conv {number}", pair, KERNEL_SIZE, (size, size), input_gradient=number > 0))
        layers.append(relu_cost(f"relu {number}", pair[1] * prod(size)))
    units = (model.conv_channels[-1] * prod(size), *model.dense_units)
    for number, (before, after) in enumerate(pairwise(units)):
        layers += [linear_cost(f"dense {number}", before, after), relu_cost(f"relu dense {number}", after)]
    # dropout keeps its mask, and the last layer its input
    dropped = Numbers(narrow=2 * units[-1] if model.dropout else 0)
    layers.append(linear_cost("scores", units[-1], model.num_classes, saved=dropped))
    return Cost(prod(image_shape(model)), layers)


def pooling_cnn_cost(model: PoolingCNNConfig, routing: NoOptions) -> Cost:
    """Return the cost of a `PoolingCNN`."""
    from capsdist.models.pooling_cnn import KERNELS, POOL

    channels, *sides = image_shape(model)
    size = (sides[0], sides[1])
    layers: list[LayerCost] = []
    for number, (after, kernel) in enumerate(zip(model.conv_channels, KERNELS, strict=True)):
        pooled = (-(-size[0] // POOL), -(-size[1] // POOL))
        layers += [
            conv_cost(f"conv {number}", (channels, after), kernel, (size, size), input_gradient=number > 0),
            relu_cost(f"relu {number}", after * prod(size)),
            pool_cost(f"pool {number}", after, (size, pooled), kept=True),
        ]
        channels, size = after, pooled
    units = model.dense_units
    layers += [linear_cost("dense", channels * prod(size), units), relu_cost("relu dense", units)]
    layers.append(linear_cost("scores", units, model.num_classes))
    return Cost(prod(image_shape(model)), layers)


def transforming_cost(model: TransformingAutoencoderConfig, routing: NoOptions) -> Cost:
    """Return the cost of a `TransformingAutoencoder`, whose biases make its units fp32 after a product."""
    pixels, capsules, units = prod(image_shape(model)), model.capsules, model.generation_units
    seeing = capsules * model.recognition_units
    first = linear_cost("recognition", pixels, seeing)
    parts = capsules * pixels
    layers = [
        # the images have no gradient, for which the copy of the weights would be kept
        replace(first, backward_flop=first.forward_flop, cast=0, cast_input=pixels),
        relu_cost("recognition units", seeing),
        _of_each("instantiation", capsules, (model.recognition_units, 3), Numbers(wide=capsules)),
        _of_each("generation", capsules, (2, units), Numbers(narrow=2 * capsules)),
        LayerCost("generation units", saved=Numbers(wide=capsules * units)),
        _of_each("drawing", capsules, (units, pixels), Numbers(wide=parts)),
        LayerCost("sum", forward_peaks=(Bytes(8 * parts),), backward_peaks=(Bytes(12 * parts),)),
        LayerCost("squared error", saved=Numbers(wide=pixels), backward_peaks=(Bytes(12 * pixels),)),
    ]
    return Cost(2 * pixels + 2, layers)  # image, shifted copy, shift


def _of_each(name: str, capsules: int, sizes: tuple[int, int], saved: Numbers) -> LayerCost:
    """Return the cost of a dense layer of each capsule; sizes: its inputs and outputs."""
    one = linear_cost(name, *sizes, saved=saved)
    numbers = Bytes(4 * capsules * sum(sizes))
    return replace(
        one,
        parameters=capsules * one.parameters,
        forward_flop=capsules * one.forward_flop,
        backward_flop=capsules * one.backward_flop,
        forward_peaks=(numbers,),
        backward_peaks=(replace(numbers, fixed=4 * capsules * prod(sizes)),),
        cast=capsules * one.cast,
    )


def convolved(
    sides: Sides, kernel: int, stride: int, padding: Literal["valid", "same"]
) -> tuple[Sides, Sides | None]:
    """Return (H, W) of a convolution's output, and of a padded copy of its input where it makes one."""
    if padding == "valid":
        height, width = ((side - kernel) // stride + 1 for side in sides)
        return (height, width), None
    height, width = (-(-side // stride) for side in sides)
    zeros = [
        max((after - 1) * stride + kernel - side, 0)
        for side, after in zip(sides, (height, width), strict=True)
    ]
    halves = {(total // 2, total - total // 2) for total in zeros}
    symmetric = all(before == after for before, after in halves)
    padded = None if symmetric else (sides[0] + zeros[0], sides[1] + zeros[1])
    return (height, width), padded
