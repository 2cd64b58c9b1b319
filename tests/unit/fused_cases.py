"""Operands for the tests of the fused backend, and the two sides that they compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from capsdist.routing import pack_weights, route_reference
from capsdist.routing.dynamic.fused import route_fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # there Triton interprets, see tests/conftest.py

Sizes = tuple[int, int, int, int, int]  # B, I, J, D, E


@dataclass(frozen=True)
class Operands:
    """Poses [B, I, D], weights [I, J, D, E], bias [J, E], priors [I, J] (or None), gradient [B, J, E]."""

    child_poses: Tensor
    weights: Tensor
    bias: Tensor | None
    log_priors: Tensor | None
    grad: Tensor

    def to(self, dtype: torch.dtype) -> Operands:
        """The same numbers, rounded to `dtype`."""
        rounded = {name: value.to(dtype) for name, value in vars(self).items() if value is not None}
        return replace(self, **rounded)

    def leaves(self) -> dict[str, Tensor]:
        """Fresh leaves, by the names of the arguments, without those that are None."""
        named = {name: value for name, value in vars(self).items() if name != "grad"}
        return {k: v.detach().clone().requires_grad_() for k, v in named.items() if v is not None}


def operands(sizes: Sizes, seed: int, bias: bool = False, priors: bool = False) -> Operands:
    """Draw operands in float64, of a scale at which couplings are far from uniform."""
    num_images, num_children, num_parents, child_dim, parent_dim = sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE)

    return Operands(
        child_poses=draw(num_images, num_children, child_dim) / child_dim**0.5,
        weights=draw(num_children, num_parents, child_dim, parent_dim),
        bias=draw(num_parents, parent_dim) if bias else None,
        log_priors=draw(num_children, num_parents) if priors else None,
        grad=draw(num_images, num_parents, parent_dim),
    )


def fused(child_poses: Tensor, weights: Tensor, iterations: int, **options: Any) -> Tensor:
    """The fused backend, of weights [I, J, D, E] as the reference has them."""
    return route_fused(child_poses, pack_weights(weights), iterations, **options)


def run(route: Any, given: Operands, iterations: int, **options: object) -> dict[str, Tensor]:
    """Run `route` forward and backward; return the result and the gradients of all operands, by name."""
    leaves = given.leaves()
    result = route(leaves["child_poses"], leaves["weights"], iterations, **options, **_rest(leaves))
    grads = torch.autograd.grad(result, list(leaves.values()), given.grad.to(result.dtype))
    return {"parent_poses": result.detach(), **dict(zip(leaves, grads, strict=True))}


def _rest(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: leaf for name, leaf in leaves.items() if name not in ("child_poses", "weights")}


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest absolute difference of two results, each scaled by the largest expected number."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name].double() - value.double()).abs().max() / value.double().abs().max())
        for name, value in expected.items()
    )


def error_of_fused(given: Operands, iterations: int, **options: object) -> float:
    """Return how far the fused backend in fp32 is from the reference in float64."""
    expected = run(route_reference, given, iterations, **options)
    return largest_error(run(fused, given.to(torch.float32), iterations, **options), expected)


def rms_error(found: Tensor, expected: Tensor) -> float:
    """Return the root of the mean squared difference, relative to that of `expected`."""
    difference = found.double() - expected.double()
    return float(difference.square().mean().sqrt() / expected.double().square().mean().sqrt())
