"""Random operands of routing, what is compared between two backends of it, and what one keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Route = Callable[..., Tensor]


@dataclass(frozen=True)
class Operands:
    """Child poses [B, I, D], weights [I, J, D, E], a gradient [B, J, E]; bias [J, E], log priors [I, J]."""

    child_poses: Tensor
    weights: Tensor
    grad: Tensor
    bias: Tensor | None = None
    log_priors: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """All but the gradient, by name, without those that are None."""
        given = {name: getattr(self, name) for name in ("child_poses", "weights", "bias", "log_priors")}
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def to(self, target: torch.dtype | str) -> Operands:
        """The same numbers, rounded to a dtype or moved to a device."""
        moved = {name: tensor.to(target) for name, tensor in self.inputs.items()}
        return Operands(**moved, grad=self.grad.to(target))

    def with_(self, **changes: Tensor | None) -> Operands:
        """The same operands but for `changes`."""
        return replace(self, **changes)


def operands(
    sizes: tuple[int, int, int, int, int], seed: int, *, bias: bool = False, priors: bool = False
) -> Operands:
    """Draw operands of sizes B, I, J, D, E in float64, of a scale at which couplings are far from uniform."""
    num_images, num_children, num_parents, child_dim, parent_dim = sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Operands(
        child_poses=draw(num_images, num_children, child_dim) / child_dim**0.5,
        weights=draw(num_children, num_parents, child_dim, parent_dim),
        grad=draw(num_images, num_parents, parent_dim),
        bias=draw(num_parents, parent_dim) if bias else None,
        log_priors=draw(num_children, num_parents) if priors else None,
    )


def values_and_gradients(
    route: Route, given: Operands, iterations: int, **options: object
) -> dict[str, Tensor]:
    """Run `route` forward and backward; return the result and the gradients of all operands, by name."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.inputs.items()}
    learned = {name: leaves[name] for name in leaves if name in ("bias", "log_priors")}
    parent_poses = route(leaves["child_poses"], leaves["weights"], iterations, **learned, **options)
    grads = torch.autograd.grad(parent_poses, list(leaves.values()), given.grad.to(parent_poses.dtype))
    return {"parent_poses": parent_poses.detach(), **dict(zip(leaves, grads, strict=True))}


def largest_error(
    found: dict[str, Tensor], expected: dict[str, Tensor], smallest_scale: float = 1.0
) -> float:
    """Return the largest absolute difference of two results, each scaled by the largest expected number.

    The scale is at least `smallest_scale`.
    """
    assert found.keys() == expected.keys()

    def scale(value: Tensor) -> Tensor:
        return value.double().abs().max().clamp_min(smallest_scale)

    return max(
        float((found[name].double() - value.double()).abs().max() / scale(value))
        for name, value in expected.items()
    )


def rms_error(found: Tensor, expected: Tensor) -> float:
    """Return the root of the mean squared difference, relative to that of `expected`."""
    difference = found.double() - expected.double()
    return float(difference.square().mean().sqrt() / expected.double().square().mean().sqrt())


def kept_for_backward(run: Callable[[], object]) -> list[Tensor]:
    """Return the tensors that autograd keeps while `run` runs."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return kept
