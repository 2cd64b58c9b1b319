"""Convolution whose weights' gradient is computed as a forward convolution, where that is faster.

The gradient of a weight sums over images and output pixels: ``dW[o, c, y, x] = sum over b, i, j of
g[b, o, i, j] u[b, c, s i + y, s j + x]``. With images as channels and channels as images, that is a
convolution of the input u with kernel g, dilated by the stride s. It has the same products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from capsdist.ops.checks import has_values_at_hand

__all__ = ["convolve", "is_faster", "weight_gradient"]

Pair = tuple[int, int]


def convolve(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair = (1, 1), zeros: Pair = (0, 0)
) -> Tensor:
    """Return ``functional.conv2d(input, weight, bias, stride, zeros)``, trained faster where it can be.

    Values and the gradients of `input` and `bias` are those of torch to the bit. The gradient of `weight`
    comes from `weight_gradient` where `is_faster` says so, and differs from torch's by rounding.

    Args:
        input: [B, C, H, W], any floating dtype.
        weight: [O, C, K, L].
        bias: [O], or None.
        stride: of rows and columns, at least 1.
        zeros: rows above and below, columns left and right.

    Returns:
        [B, O, H', W'].
    """
    if is_faster(input, weight, zeros) and _is_plain(input, weight):
        return _Convolution.apply(input, weight, bias, stride, zeros)  # pyright: ignore[reportReturnType]
    return functional.conv2d(input, weight, bias, stride, zeros)


def weight_gradient(grad: Tensor, input: Tensor, kernel: Pair, stride: Pair, zeros: Pair) -> Tensor:
    """Return the gradient of a convolution's weight as a forward convolution.

    Args:
        grad: gradient of the output, [B, O, H', W'].
        input: [B, C, H, W], of the same dtype.
        kernel: its rows and columns K, L.
        stride: of the convolution.
        zeros: rows above and below, columns left and right that it added.

    Returns:
        [O, C, K, L], contiguous.
    """
    # Rows below and columns to the right that no output pixel sees would become further rows of the kernel.
    seen = [(n - 1) * s + k for n, s, k in zip(grad.shape[2:], stride, kernel, strict=True)]
    rest = [size + 2 * z - n for size, z, n in zip(input.shape[2:], zeros, seen, strict=True)]
    if zeros == (0, 0):
        input = input[:, :, : seen[0], : seen[1]]
    elif any(rest):
        (top, left), (bottom, right) = zeros, (z - r for z, r in zip(zeros, rest, strict=True))
        input, zeros = functional.pad(input, (left, right, top, bottom)), (0, 0)  # below 0, pad cuts
    found = functional.conv2d(
        input.transpose(0, 1), grad.transpose(0, 1), padding=zeros, dilation=stride
    )  # [C, O, K, L]
    return found.transpose(0, 1).contiguous()


def is_faster(input: Tensor, weight: Tensor, zeros: Pair) -> bool:
    """Say whether `weight_gradient` is the faster form: a rule by kernel, zeros, dtype and processor.

    A rule and no trial at the first use: the choice changes the last bits of a gradient, and a run that is
    repeated or resumed has to choose alike. The rule takes the cases in which it won all trials (torch 2.13,
    AVX2, batches of 1 to 128): kernels of 9 and more without zeros around the image. With zeros, or
    kernels of 3 and 5, it won some and lost others. Other processors were not measured.
    """
    return (
        zeros == (0, 0)
        and min(weight.shape[2:]) >= 9
        and weight.dtype == input.dtype == torch.float32
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )


def _is_plain(input: Tensor, weight: Tensor) -> bool:
    """Say whether autograd alone looks at an eager call on the CPU, and wants the weight's gradient."""
    return (
        has_values_at_hand(input)
        and torch.is_grad_enabled()
        and weight.requires_grad
        and type(weight) in (Tensor, nn.Parameter)
        and input.dim() == 4
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, zeros: Pair
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.zeros = stride, zeros
        return functional.conv2d(input, weight, bias, stride, zeros)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        # With create_graph, or under torch.func, torch's own pass: it can be differentiated and vectorized.
        ours = wanted[1] and not torch.is_grad_enabled() and has_values_at_hand(grad)
        wanted[1] = wanted[1] and not ours
        found = torch.ops.aten.convolution_backward(
            grad, input, weight, [len(weight)], ctx.stride, ctx.zeros, (1, 1), False, (0, 0), 1, wanted
        )
        gradients = [each if asked else None for each, asked in zip(found, wanted, strict=True)]
        if ours:
            kernel = weight.shape[2], weight.shape[3]
            gradients[1] = weight_gradient(grad, input, kernel, ctx.stride, ctx.zeros)
        return *gradients, None, None
