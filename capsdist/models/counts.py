"""Parameters, FLOP and bytes of a network by formula, from its configuration: no tensor is built.

So a configuration can be priced before a machine is asked for. The tests hold every figure against the
built network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from capsdist.config.rules import feature_size
from capsdist.config.schema import Model, Routing
from capsdist.models.baseline_cnn import CONV_CHANNELS, DENSE_UNITS, KERNEL_SIZE

FP32_BYTES = 4
ADAM_SLOTS = 4
"""Numbers kept a parameter while training with Adam: weight, gradient, first and second moment."""


@dataclass(frozen=True)
class LayerCount:
    """What one layer costs.

    output_shape is of one image. forward_flop counts the matrix products of one image, a multiplication
    and an addition as 2; element-wise work (below 1 % of it) is left out. A backward pass is about
    twice the forward pass.
    """

    name: str
    output_shape: tuple[int, ...]
    num_parameters: int
    forward_flop: int


def count_layers(model: Model, routing: Routing) -> list[LayerCount]:
    """Return the cost of each layer, in the order in which an image passes them."""
    return list(_baseline_layers(model) if model.kind == "baseline_cnn" else _capsnet_layers(model, routing))


def num_parameters(model: Model) -> int:
    """Return the number of trainable parameters; routing has none."""
    return sum(layer.num_parameters for layer in count_layers(model, Routing()))


def forward_flop(model: Model, routing: Routing) -> int:
    """Return the FLOP of one image's forward pass, with routing that keeps no votes."""
    return sum(layer.forward_flop for layer in count_layers(model, routing))


def training_state_bytes(model: Model, *, zero_stage: int = 0, num_ranks: int = 1) -> int:
    """Return the bytes that weights, gradients and Adam's moments take on one rank, all in fp32.

    ZeRO (Rajbhandari et al. 2020, figure 1) divides over `num_ranks` ranks: from stage 1 the moments,
    from stage 2 also gradients, from stage 3 also weights. Rounded up; without its working buffers.
    """
    divided = {0: 0, 1: 2, 2: 3, 3: 4}[zero_stage]
    size = num_parameters(model) * FP32_BYTES
    return size * (ADAM_SLOTS - divided) + -(-size * divided // num_ranks)


def output_bytes(model: Model) -> int:
    """Return the bytes of all layers' outputs for one image in fp32: the floor of what backward keeps."""
    return sum(math.prod(layer.output_shape) for layer in count_layers(model, Routing())) * FP32_BYTES


def _conv(
    name: str, in_channels: int, out_channels: int, kernel: int, stride: int, padding: str, side: int
) -> LayerCount:
    out_side = feature_size(side, kernel, stride, padding)
    weights = in_channels * kernel**2 * out_channels
    return LayerCount(
        name, (out_channels, out_side, out_side), weights + out_channels, 2 * weights * out_side**2
    )


def _dense(name: str, in_units: int, out_units: int) -> LayerCount:
    return LayerCount(name, (out_units,), (in_units + 1) * out_units, 2 * in_units * out_units)


def _capsnet_layers(model: Model, routing: Routing) -> Iterator[LayerCount]:
    conv = _conv(
        "conv", model.in_channels, model.conv_channels, model.conv_kernel, 1, model.padding, model.image_size
    )
    yield conv
    primary = _conv(
        "primary_capsules",
        model.conv_channels,
        model.primary_types * model.primary_dim,
        model.primary_kernel,
        model.primary_stride,
        model.padding,
        conv.output_shape[1],
    )
    yield primary
    weights = math.prod(primary.output_shape) * model.num_classes * model.class_dim
    learned = weights
    if model.capsule_bias:
        learned += model.num_classes * model.class_dim
    if model.log_priors:
        learned += math.prod(primary.output_shape) // model.primary_dim * model.num_classes
    # each iteration sums the weighted votes, each but the last also measures their agreement
    products = 2 * routing.iterations - 1
    yield LayerCount("class_capsules", (model.num_classes, model.class_dim), learned, 2 * weights * products)
    if model.decoder:
        pixels = model.in_channels * model.image_size**2
        units = (model.num_classes * model.class_dim, *model.decoder_hidden, pixels)
        for i in range(3):
            yield _dense(f"decoder.{i + 1}", units[i], units[i + 1])


def _baseline_layers(model: Model) -> Iterator[LayerCount]:
    channels = model.in_channels
    for i, out_channels in enumerate(CONV_CHANNELS, start=1):
        yield _conv(f"conv.{i}", channels, out_channels, KERNEL_SIZE, 1, "same", model.image_size)
        channels = out_channels
    units = channels * model.image_size**2
    for i, out_units in enumerate((*DENSE_UNITS, model.num_classes), start=1):
        yield _dense(f"dense.{i}", units, out_units)
        units = out_units
