"""Rules for stacked layers: one number a layer in each option, and an image that is large enough for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from capsdist.config.images import sides
from capsdist.config.models import NetworkConfig
from capsdist.errors import Problem

__all__ = ["Convolutions", "feature_size", "length_problems", "size_problems"]


def feature_size(size: int, kernel: int, stride: int, padding: str) -> int:
    """Return the side of a convolution's output, in pixels; below 1 if the kernel does not fit."""
    return -(-size // stride) if padding == "same" else (size - kernel) // stride + 1


def length_problems(model: NetworkConfig, names: Sequence[str]) -> Iterator[Problem]:
    """Yield the option of `names`, tuples with one number a layer, that has another length than most."""
    lengths = {name: len(getattr(model, name)) for name in names}
    usual = Counter(lengths.values())
    if len(usual) == 1:
        return
    odd = min(names, key=lambda name: usual[lengths[name]])
    others = ", ".join(f"model.{name} has {lengths[name]}" for name in names if name != odd)
    rule = f"has {lengths[odd]} numbers, {others}"
    yield Problem(f"model.{odd}", getattr(model, odd), rule, "give each of them one number for every layer")


class Convolutions(NamedTuple):
    """Names of the options of a convolution, or of layers of them; stride "": 1, padding "": valid."""

    kernel: str
    stride: str = ""
    padding: str = ""


def size_problems(model: NetworkConfig, stack: Sequence[Convolutions]) -> Iterator[Problem]:
    """Yield whether images are too small for the convolutions of `stack`, the lowest first."""
    layers = [layer for options in stack for layer in _layers(model, options)]
    if min(number for _, kernel, stride, _ in layers for number in (kernel, stride)) < 1:
        return  # already reported as a range
    left = min(sides(model.image_size))
    for layer, kernel, stride, padding in layers:
        after = feature_size(left, kernel, stride, padding)
        if after < 1:
            yield _too_small(model, stack, layer, kernel, left, _least_side(layers))
            return
        left = after


def _too_small(
    model: NetworkConfig,
    stack: Sequence[Convolutions],
    layer: Convolutions,
    kernel: int,
    left: int,
    least: int,
) -> Problem:
    """Return the problem that `kernel` of `layer` finds `left` positions a side; least: side of an image."""
    names = [name for each in stack for name in (each.kernel, each.stride) if name]
    given = ", ".join(f"model.{name}={getattr(model, name)}" for name in names)
    rule = (
        f"is too small: model.{layer.kernel} has a kernel of {kernel} where {left} positions a side are left "
        f"({given})"
    )
    fix = f"use images of at least {least} pixels, or smaller kernels or strides"
    fix += f", or --model.{layer.padding.replace('_', '-')} same" if layer.padding else ""
    return Problem("model.image_size", model.image_size, rule, fix)


_Layer = tuple[Convolutions, int, int, str]


def _layers(model: NetworkConfig, options: Convolutions) -> Iterator[_Layer]:
    """Yield options, kernel, stride and padding of each layer of `options`."""
    kernels, strides = (
        value if isinstance(value, tuple) else (value,)
        for value in (getattr(model, name) if name else 1 for name in (options.kernel, options.stride))
    )
    padding = getattr(model, options.padding) if options.padding else "valid"
    for kernel, stride in zip(kernels, strides, strict=True):
        yield options, kernel, stride, padding


def _least_side(layers: Sequence[_Layer]) -> int:
    """Return the smallest side of an image that leaves one position above all `layers`."""
    side = 1
    for _, kernel, stride, padding in reversed(layers):
        side = (side - 1) * stride + (1 if padding == "same" else kernel)
    return side
