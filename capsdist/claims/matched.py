"""The baseline CNN with as many parameters as a capsule network, and what both cost."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from capsdist.config.models import BaselineCNNConfig, NetworkConfig, find_family
from capsdist.config.sections import Section
from capsdist.errors import ConfigError, Problem

__all__ = ["TOLERANCE", "Size", "matched_baseline", "size_of"]

TOLERANCE = 0.05
"""Share of the parameters by which matched networks may differ."""
_PAPER = BaselineCNNConfig()
_GRID = 256  # sizes below the paper's: one for each number of channels of its widest convolution
_LARGEST = 8  # times the paper's widths


@dataclass(frozen=True)
class Size:
    """Trainable parameters, and FLOP of an image in testing and in a training step, 2 a multiply-add."""

    parameters: int
    forward_flop: int
    training_flop: int


def size_of(model: NetworkConfig, routing: Section) -> Size:
    """Return what the family of a network says of its cost.

    Raises:
        ConfigError: the family has no function `cost`.
    """
    price = find_family(model.kind).cost
    if price is None:
        fix = "give the family a function cost(model, routing), as capsnet has"
        raise ConfigError([Problem("model.kind", model.kind, "says nothing of its parameters", fix)])
    cost = price(model, routing)
    forward = sum(layer.forward_flop for layer in cost.layers)
    backward = sum(layer.backward_flop + layer.recomputed_flop for layer in cost.layers)
    return Size(cost.parameters, forward, forward + backward)


def matched_baseline(model: NetworkConfig, routing: Section) -> BaselineCNNConfig:
    """Return the baseline CNN for the same images with as many parameters as the network, within 5 %.

    The widths of the paper's CNN (section 5: 256 256 128 channels, 328 192 units) are scaled by one factor,
    the largest that does not exceed the number; the units of the first dense layer, of which the number is a
    linear function, then make up for what rounding has left.

    Raises:
        ConfigError: no widths come that close, or the family cannot be priced.
    """
    shared = {name: getattr(model, name) for name in NetworkConfig.model_fields if name != "kind"}
    wanted = size_of(model, routing).parameters

    def scaled(grid: int) -> BaselineCNNConfig:
        first, second, third = (max(1, grid * width // _GRID) for width in _PAPER.conv_channels)
        before, last = (max(1, grid * units // _GRID) for units in _PAPER.dense_units)
        return BaselineCNNConfig(conv_channels=(first, second, third), dense_units=(before, last), **shared)

    def parameters(found: BaselineCNNConfig) -> int:
        return size_of(found, find_family(found.kind).routing()).parameters

    grid = bisect_right(range(1, _LARGEST * _GRID), wanted, key=lambda grid: parameters(scaled(grid)))
    found = scaled(max(1, grid))
    units, last = found.dense_units
    wider = found.model_copy(update={"dense_units": (units + 1, last)})
    slope = parameters(wider) - parameters(found)
    units = max(1, units + round((wanted - parameters(found)) / slope))
    found = found.model_copy(update={"dense_units": (units, last)})
    if abs(parameters(found) - wanted) > TOLERANCE * wanted:
        rule = f"has {wanted:,} parameters, of which no baseline CNN comes within {TOLERANCE:.0%}"
        raise ConfigError([Problem("model", model.kind, rule, "choose another size")])
    return found
