"""Convolution whose weights' gradient is computed as a forward convolution, where a fixed rule says so.

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
    """Return ``functional.conv2d(input, weight, bias, stride, zeros)``.

    Values and the gradients of `input` and `bias` are those of torch to the bit. The gradient of `weight`
    comes from `weight_gradient` where `zeros` is (0, 0) and `is_faster` says so, and differs from torch's
    by rounding. Compilers, exporters, torch.func, batched gradients and those that are to be
    differentiated again get torch's.

    Args:
        input: [B, C, H, W], any floating dtype.
        weight: [O, C, K, L].
        bias: [O], or None.
        stride: of rows and columns, at least 1.
        zeros: rows above and below, columns left and right.

    Returns:
        [B, O, H', W'].
    """
    if zeros == (0, 0) and is_faster(input, weight) and _is_plain(input, weight):
        return _Convolution.apply(input, weight, bias, stride)  # pyright: ignore[reportReturnType]
    return functional.conv2d(input, weight, bias, stride, zeros)


def weight_gradient(grad: Tensor, input: Tensor, kernel: Pair, stride: Pair) -> Tensor:
    """Return the gradient of a convolution's weight as a forward convolution. The convolution added no zeros.

    Args:
        grad: gradient of the output, [B, O, H', W'].
        input: [B, C, H, W], of the same dtype.
        kernel: its rows and columns K, L.
        stride: of the convolution.

    Returns:
        [O, C, K, L], contiguous.
    """
    # Rows below and columns to the right that no output pixel sees would become further rows of the kernel.
    rows, columns = ((n - 1) * s + k for n, s, k in zip(grad.shape[2:], stride, kernel, strict=True))
    seen = input[:, :, :rows, :columns]
    found = functional.conv2d(seen.transpose(0, 1), grad.transpose(0, 1), dilation=stride)  # [C, O, K, L]
    return found.transpose(0, 1).contiguous()


def is_faster(input: Tensor, weight: Tensor) -> bool:
    """Say whether `weight_gradient` is taken: a rule by kernel, dtype and processor.

    A rule and no trial at the first use: the choice changes the last bits of a gradient, and a run that is
    repeated or resumed has to choose alike. It rests on few and noisy trials on one machine (an AMD EPYC with
    AVX2, 2 cores; torch 2.13). The form was faster there for kernels of 9, and for those of 3 and 5, which
    the rule leaves to torch. Only the paper's primary capsules were tried at several batch sizes. With zeros
    around the image it was faster in some trials and slower in others. Other processors were not tried.
    ``jobs/bench_training.py --goals`` measures the paper's layer.
    """
    return (
        min(weight.shape[2:]) >= 9
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
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride = stride
        return functional.conv2d(input, weight, bias, stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        # With create_graph, torch.func or batched gradients, torch's own: it has derivatives and batches.
        ours = wanted[1] and not torch.is_grad_enabled() and has_values_at_hand(grad)
        wanted[1] = wanted[1] and not ours
        found = torch.ops.aten.convolution_backward(
            grad, input, weight, [len(weight)], ctx.stride, (0, 0), (1, 1), False, (0, 0), 1, wanted
        )
        gradients = [each if asked else None for each, asked in zip(found, wanted, strict=True)]
        if ours:
            gradients[1] = weight_gradient(grad, input, (weight.shape[2], weight.shape[3]), ctx.stride)
        return *gradients, None
