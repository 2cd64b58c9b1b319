"""What `ResNetCapsNet` costs, layer by layer: closed formulas, and for a stem by import path a trace.

A frozen stem has weights and FLOP of the forward pass only.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from math import gcd, prod

from capsdist.config.cost import Bytes, Cost, LayerCost, Numbers
from capsdist.config.models import Routing
from capsdist.config.resnet_capsnet import ResNetCapsNetConfig
from capsdist.config.shapes import image_shape
from capsdist.models.costs import conv_cost, group_norm_cost, pool_cost, relu_cost
from capsdist.models.network_costs import Sides, capsule_costs, input_numbers

__all__ = ["capsules_over_stem", "frozen_cost", "resnet_capsnet_cost", "stem_costs"]

_FP32 = 4


def resnet_capsnet_cost(model: ResNetCapsNetConfig, routing: Routing) -> Cost:
    """Return the cost of a `ResNetCapsNet`.

    Raises:
        ConfigError: a stem by import path cannot be traced on torch's meta device.
    """
    stem, channels, sides, learns = stem_costs(model)
    capsules = capsules_over_stem(model, routing, channels, sides, learns=learns)
    return Cost(input_numbers(model), [*stem, *capsules])


def stem_costs(model: ResNetCapsNetConfig) -> tuple[list[LayerCost], int, Sides, bool]:
    """Return costs of a stem and its normalisation, C and (H, W) of its features, and whether it learns.

    A stem by import path counts as one that learns, because its normalisation does.

    Raises:
        ConfigError: a stem by import path cannot be traced on torch's meta device.
    """
    own = model.stem == "resnet"
    if own:
        stem, channels, sides = _stem_costs(model)
    else:
        from capsdist.models.traced_costs import traced_stem

        stem, channels, sides = traced_stem(model)
    if model.stem_frozen:
        stem = list(map(frozen_cost, stem))
    if not own:
        stem.append(group_norm_cost("norm", channels, sides, gcd(model.norm_groups, channels)))
    return stem, channels, sides, not (own and model.stem_frozen)


def capsules_over_stem(
    model: ResNetCapsNetConfig, routing: Routing, channels: int, sides: Sides, *, learns: bool
) -> list[LayerCost]:
    """Return `capsule_costs` over the features of a stem, where no ReLU may keep what they read."""
    primary, *others = capsule_costs(model, routing, channels, sides, input_gradient=learns)
    if (model.stem != "resnet" or not learns) and primary.saved == Numbers():
        primary = replace(primary, saved=Numbers(narrow=channels * prod(sides)), cast_input=0)
    return [primary, *others]


def frozen_cost(layer: LayerCost) -> LayerCost:
    """Return the cost of a layer that does not learn, above layers that do not."""
    return LayerCost(
        layer.name,
        frozen=layer.parameters,
        forward_flop=layer.forward_flop,
        forward_peaks=layer.forward_peaks,
    )


def _stem_costs(model: ResNetCapsNetConfig) -> tuple[list[LayerCost], int, Sides]:
    """Return the costs of a `ResNetStem`, and channels and (H, W) of its features."""
    images, *size = image_shape(model)
    sides, before, groups = (size[0], size[1]), model.stem_channels[0], model.norm_groups
    large = model.stem_first == "conv7_pool"
    after = _halved(sides) if large else sides
    layers = [conv_cost("stem.conv", (images, before), 7 if large else 3, (sides, after), bias=False,
                        input_gradient=False)]  # fmt: skip
    sides = after
    if large:
        layers += _activated("stem.pool", before, sides, groups)
        layers.append(pool_cost("stem.pool", before, (sides, _halved(sides))))
        sides = _halved(sides)
    for stage, (width, count) in enumerate(zip(model.stem_channels, model.stem_blocks, strict=True)):
        if stage:
            layers += _activated_conv(f"stem.{stage}", (before, width), (sides, _halved(sides)), groups)
            sides = _halved(sides)
        for block in range(count):
            parts = (
                _activated_conv(f"stem.{stage}.{block}.{name}", (width, width), (sides, sides), groups)
                for name in ("first", "second")
            )
            # the block's input forward where nothing keeps it, backward the gradient of its output
            layers += [_beside(layer, width * prod(sides)) for layer in chain(*parts)]
        before = width
    return [*layers, *_activated("stem.out", before, sides, groups)], before, sides


def _activated(name: str, channels: int, sides: Sides, groups: int) -> list[LayerCost]:
    numbers = channels * prod(sides)
    return [group_norm_cost(f"{name}.norm", channels, sides, groups), relu_cost(f"{name}.relu", numbers)]


def _activated_conv(
    name: str, channels: tuple[int, int], sides: tuple[Sides, Sides], groups: int
) -> list[LayerCost]:
    conv = conv_cost(f"{name}.conv", channels, 3, sides, bias=False)
    return [*_activated(name, channels[0], sides[0], groups), conv]


def _beside(layer: LayerCost, numbers: int) -> LayerCost:
    """Return `layer` with other `numbers` of an image that exist while its backward pass runs."""
    more = _FP32 * numbers
    peaks = tuple(Bytes(each.image + more, each.fixed) for each in layer.backward_peaks)
    return replace(layer, backward_peaks=peaks)


def _halved(sides: Sides) -> Sides:
    return -(-sides[0] // 2), -(-sides[1] // 2)
