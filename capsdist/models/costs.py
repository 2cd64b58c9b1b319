"""What layers cost in a training step, by closed formulas: parts of a family's function `cost`.

FLOP count matrix products and convolutions, 2 a multiplication with its addition, of one image, as torch's
FlopCounterMode counts them. Saved numbers are the tensors that autograd keeps. A tensor that two layers keep
counts for the earlier one, whose backward pass comes last. Peaks contain the copies that oneDNN makes on a
CPU: inputs, outputs and weights of a convolution in a blocked layout. Imports torch only to plan tiles.

Shape letters: C channels, H and W pixels, K kernel size; I children, J parents, D child dimension, E parent
dimension, R iterations.
"""

from __future__ import annotations

from math import prod

from capsdist.config.cost import Bytes, LayerCost, Numbers

__all__ = [
    "conv_cost",
    "group_norm_cost",
    "lengths_cost",
    "linear_cost",
    "loss_cost",
    "pool_cost",
    "relu_cost",
    "squash_cost",
]

_FP32 = 4
_NONE = Numbers()
_BLOCK = 8  # channels of a block of oneDNN's layout with AVX2; with AVX512 it has 16
_MARGIN_NUMBERS = 4  # of a parent that lengths and margin loss keep
_LARGE_KERNEL = 9  # see `capsdist.ops.convolution.is_faster`
_PLAIN = 4  # oneDNN reads fewer input channels than this as they are


def conv_cost(
    name: str,
    channels: tuple[int, int],
    kernel: int,
    sides: tuple[tuple[int, int], tuple[int, int]],
    *,
    bias: bool = True,
    input_gradient: bool = True,
    padded: tuple[int, int] | None = None,
) -> LayerCost:
    """Return the cost of a convolution; its input is kept by the layer before it.

    forward 2 K^2 C C' H' W', backward as much for the weights, and as much for the input.

    Args:
        name: for people.
        channels: C and C' of input and output.
        kernel: K.
        sides: (H, W) of input and output.
        bias: whether it has one.
        input_gradient: whether something before it is trained.
        padded: (H, W) of a padded copy of the input, which is kept; None: there is none.
    """
    before, after = channels
    weights = kernel**2 * before * after
    product = 2 * weights * prod(sides[1])
    read = padded or sides[0]
    x, y, w = _FP32 * before * prod(read), _FP32 * after * prod(sides[1]), _FP32 * weights
    plain = before < _PLAIN
    x_blocked = 0 if plain else _FP32 * _blocked(before) * prod(read)
    y_blocked = _FP32 * _blocked(after) * prod(sides[1])
    w_blocked = _FP32 * kernel**2 * (before if plain else _blocked(before)) * _blocked(after)
    own = x if padded else 0
    forward = (Bytes(own + x_blocked + y_blocked, w_blocked), Bytes(own + y + y_blocked))
    gradient = x if input_gradient else 0
    backward = [Bytes(y + gradient + y_blocked + x_blocked, w_blocked), Bytes(y + gradient, 2 * w)]
    if input_gradient:
        backward += [Bytes(y + y_blocked + x_blocked, w_blocked), Bytes(y + x_blocked + 2 * x)]
    if kernel >= _LARGE_KERNEL:  # `weight_gradient` transposes and copies what oneDNN copies again
        backward.append(Bytes(2 * y + gradient + y_blocked + x + x_blocked, w_blocked))
    return LayerCost(
        name,
        parameters=weights + bias * after,
        forward_flop=product,
        backward_flop=product * (1 + input_gradient),
        saved=Numbers(narrow=before * prod(read) if padded else 0),
        forward_peaks=forward,
        backward_peaks=tuple(backward),
        cast=weights,
        cast_input=0 if input_gradient or padded else before * prod(read),
    )


def linear_cost(name: str, before: int, after: int, *, saved: Numbers = _NONE) -> LayerCost:
    """Return the cost of a dense layer: 2 x inputs x outputs forward, twice that backward.

    saved: its input where no layer before keeps it.
    """
    product = 2 * before * after
    weights = _FP32 * before * after
    return LayerCost(
        name,
        parameters=(before + 1) * after,
        forward_flop=product,
        backward_flop=2 * product,
        saved=saved,
        forward_peaks=(Bytes(_FP32 * (before + after)),),
        backward_peaks=(Bytes(_FP32 * (before + after), weights),),
        cast=before * after,
    )


def relu_cost(name: str, numbers: int) -> LayerCost:
    """Return the cost of a ReLU, in place or not, whose result is kept; so is that of the layer before."""
    return _elementwise(name, numbers, saved=Numbers(narrow=numbers), gradients=2)


def pool_cost(
    name: str, channels: int, sides: tuple[tuple[int, int], tuple[int, int]], *, kept: bool = False
) -> LayerCost:
    """Return the cost of a max pool, which keeps the place of each result, of 8 bytes.

    sides: (H, W) of input and output. kept: whether a product above it keeps its output; a GroupNorm counts
    what it keeps itself.
    """
    before, after = (channels * prod(each) for each in sides)
    return LayerCost(
        name,
        saved=Numbers(narrow=after if kept else 0, wide=2 * after),
        forward_peaks=(Bytes(_FP32 * after),),
        backward_peaks=(Bytes(_FP32 * (before + after)),),
    )


def group_norm_cost(name: str, channels: int, sides: tuple[int, int], groups: int) -> LayerCost:
    """Return the cost of a GroupNorm, which keeps its input, and mean and scale of each group."""
    numbers = channels * prod(sides)
    saved = Numbers(narrow=numbers, wide=2 * groups)
    return _elementwise(name, numbers, saved=saved, gradients=3, parameters=2 * channels)


def squash_cost(name: str, children: int, dim: int) -> LayerCost:
    """Return the cost of a squash of I capsules: it keeps them, and four numbers of each, in fp32."""
    numbers = children * dim
    return _elementwise(name, numbers, saved=Numbers(wide=numbers + 4 * children), gradients=4)


def lengths_cost(name: str, parents: int, dim: int) -> LayerCost:
    """Return the cost of lengths [J] of J capsules and the margin loss on them: it keeps the capsules."""
    numbers = parents * dim
    saved = Numbers(wide=_MARGIN_NUMBERS * parents + numbers)
    return _elementwise(name, numbers + _MARGIN_NUMBERS * parents, saved=saved, gradients=2)


def loss_cost(name: str, pixels: int) -> LayerCost:
    """Return the cost of a sigmoid and the squared error of its result: both are kept, in fp32."""
    return _elementwise(name, pixels, saved=Numbers(wide=2 * pixels), gradients=3)


def _elementwise(
    name: str, numbers: int, *, saved: Numbers, gradients: int, parameters: int = 0
) -> LayerCost:
    """Return the cost of a layer without products, whose backward pass has some gradients of its size."""
    size = _FP32 * numbers
    return LayerCost(
        name,
        parameters=parameters,
        saved=saved,
        forward_peaks=(Bytes(2 * size),),
        backward_peaks=(Bytes(gradients * size),),
    )


def _blocked(channels: int) -> int:
    return -(-channels // _BLOCK) * _BLOCK
