"""Benchmark the convolution of the primary capsules on a CPU, fp32: our training of it against torch's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight
from torch.utils.flop_counter import FlopCounterMode

from capsdist.bench.ceilings import matrix_product
from capsdist.bench.timer import time_side_by_side
from capsdist.ops.convolution import convolve, weight_gradient

__all__ = ["convolution_figures"]


def convolution_figures(
    step: Callable[[], object], *, num_images: int, budget_s: float = 15.0
) -> dict[str, float]:
    """Return the named figures of the 256 -> 256 channels, 9x9, stride 2 of the MNIST network, in turns.

    `convolution_speedup`: forward and all gradients, torch's median time over that of `convolve`; 1 where its
    rule takes torch's. `weight_gradient_speedup`: that gradient alone, whatever the rule says.
    `step_share_of_gemm_rate`: rate of `step` over that of a plain matrix product; its FLOP are those of the
    products and convolutions counted in one step, those that routing repeats in its backward pass included.

    Args:
        step: one training step of the MNIST network with `num_images` images.
        num_images: images of a batch.
        budget_s: seconds for all.
    """
    features = torch.rand(num_images, 256, 20, 20, requires_grad=True)
    weight = torch.randn(256, 256, 9, 9).mul_(0.01).requires_grad_()
    bias = torch.zeros(256, requires_grad=True)
    operands, grad = (features, weight, bias), torch.randn(num_images, 256, 6, 6)
    plain = features.detach()
    product, product_flop = matrix_product("cpu")
    with FlopCounterMode(display=False) as counter:
        step()

    def trained(function: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(*operands, (2, 2), (0, 0)), operands, grad)

    runs: dict[str, Callable[[], object]] = {
        "product": product,
        "step": step,
        "torch": trained(functional.conv2d),
        "ours": trained(convolve),
        "weight torch": lambda: conv2d_weight(plain, weight.shape, grad, 2),
        "weight ours": lambda: weight_gradient(grad, plain, (9, 9), (2, 2)),
    }
    times = {name: each.median_s for name, each in time_side_by_side(runs, budget_s=budget_s).items()}
    rate = counter.get_total_flops() / times["step"]
    return {
        "convolution_speedup": times["torch"] / times["ours"],
        "weight_gradient_speedup": times["weight torch"] / times["weight ours"],
        "step_share_of_gemm_rate": rate / (product_flop / times["product"]),
    }
