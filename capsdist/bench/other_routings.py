"""Benchmark routings besides that of the paper against their references, which store votes.

EM routing, dynamic routing between grids, and later algorithms. The whole of a network or layer is measured,
forward and backward, with random inputs and weights of seed 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from capsdist.algorithms import find_algorithm
from capsdist.bench.memory import peak_bytes, saved_bytes
from capsdist.bench.timer import time_side_by_side
from capsdist.config import get_preset
from capsdist.models import build_model
from capsdist.models.conv_capsules import ConvCapsules

__all__ = ["LATER", "conv_run", "em_run", "later_run", "other_goals"]

Figures = dict[str, float]


@dataclass(frozen=True)
class _Run:
    """Forward and backward pass of a module for one input."""

    module: nn.Module
    inputs: Tensor

    def __call__(self) -> tuple[Tensor, ...]:
        """Return the gradients of inputs and parameters."""
        result = self.forward()
        grad = torch.linspace(-1, 1, result.numel(), device=result.device).view_as(result)
        return torch.autograd.grad(result, (self.inputs, *self.module.parameters()), grad)

    def forward(self) -> Tensor:
        """Return scores or poses."""
        found = self.module(self.inputs)
        return found if isinstance(found, Tensor) else found.scores

    @property
    def saved_bytes(self) -> int:
        """Bytes that autograd keeps, parameters and the input aside."""
        return saved_bytes(self.forward, exclude=[self.inputs, *self.module.parameters()])


def em_run(backend: str, device: str = "cpu", num_images: int = 8) -> _Run:
    """Return the run of the network of `smallnorb_em_small`."""
    config = get_preset("smallnorb_em_small")
    torch.manual_seed(0)
    network = build_model(config.model, config.routing.model_copy(update={"backend": backend}))
    return _Run(network.to(device), torch.rand(num_images, 2, 32, 32, device=device, requires_grad=True))


def conv_run(backend: str, device: str = "cpu", num_images: int = 4, side: int = 32) -> _Run:
    """Return the run of one layer: 3x3 kernel, 8 types of 8D to 8 types of 16D, 3 iterations."""
    torch.manual_seed(0)
    layer = ConvCapsules(8, 8, 8, 16, 3, iterations=3, backend=backend)  # pyright: ignore[reportArgumentType]
    poses = torch.randn(num_images, side, side, 8, 8, device=device).mul_(0.3)
    return _Run(layer.to(device), poses.requires_grad_())


def later_run(algorithm: str, backend: str, device: str = "cpu", num_images: int = 32) -> _Run:
    """Return the run of the class capsules of the MNIST network, with the options of `digits_ALGORITHM`."""
    config, make = get_preset(f"digits_{algorithm}"), find_algorithm(algorithm).layer
    assert make is not None
    torch.manual_seed(0)
    layer = make(config.model, config.routing.model_copy(update={"backend": backend}))(1152, 8, 10, 16)
    poses = torch.randn(num_images, 8, 1152, device=device).mul_(0.3).transpose(1, 2)
    return _Run(layer.to(device), poses.requires_grad_())


LATER = ("attention", "inverted", "heinsen", "grouped")
_GOALS: dict[str, tuple[Callable[[str, str, int], _Run], int, str]] = {  # ..., images of a batch, figure
    "em": (em_run, 8, "em_speedup_vs_reference"),
    "conv": (conv_run, 4, "conv_speedup_vs_unfold"),
    **{name: (partial(later_run, name), 32, f"{name}_speedup_vs_reference") for name in LATER},
}


def other_goals(device: str = "cpu", budget_s: float = 40.0, max_images: int = 32) -> Figures:
    """Measure the named figures of EM routing, convolutional dynamic routing and the later algorithms.

    Batches have 8, 4 and 32 images, and at most `max_images`.

    Returns, where NAME is em, conv or one of `LATER`:
        NAME_speedup_vs_reference, conv_speedup_vs_unfold: ratio of median times of the form that stores votes
            (for `conv` patches are unfolded before) over the form that does not. The reference of `attention`
            computes its matrix [J, I, I] as well, which takes nearly all of its time.
        NAME_saved_bytes_ratio: the same of the bytes kept for the backward pass.
        NAME_peak_bytes: above inputs and gradients, of the form without votes.
        And the numbers that they are made of, units in the names.
    """
    found: Figures = {}
    for name, (make, num_images, speedup) in _GOALS.items():
        batch = min(num_images, max_images)
        ours, votes = (make(backend, device, batch) for backend in ("streamed", "reference"))
        times = time_side_by_side({"ours": ours, "votes": votes}, budget_s=budget_s / 4)
        saved = ours.saved_bytes, votes.saved_bytes
        found |= {
            speedup: times["votes"].median_s / times["ours"].median_s,
            f"{name}_saved_bytes_ratio": saved[1] / saved[0],
            f"{name}_peak_bytes": peak_bytes(ours, device),
            f"{name}_ms": 1e3 * times["ours"].median_s,
            f"{name}_votes_ms": 1e3 * times["votes"].median_s,
            f"{name}_saved_bytes": saved[0],
            f"num_{name}_runs": len(times["ours"].seconds),
        }
    return found
