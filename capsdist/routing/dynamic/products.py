"""How many matrix products `streamed` and `fused` do, each of 2 B I J D E FLOP. Imports nothing."""

from __future__ import annotations

__all__ = ["backward_products", "forward_products", "model_backward_products"]


def forward_products(iterations: int) -> int:
    """Return two products an iteration, agreement and totals; there is no agreement before the first."""
    return 2 * iterations - 1


def backward_products(
    iterations: int, *, uniform: bool, want_poses: bool = True, want_weights: bool = True
) -> int:
    """Return three products an iteration, two more for weights; one each where the coupling is `uniform`.

    uniform: the first of the iterations that gradients go through has no agreement and no priors.
    """
    return (iterations - uniform) * (3 + 2 * want_weights) + uniform * (want_poses + want_weights)


def model_backward_products(iterations: int, *, last_only: bool = False) -> int:
    """Return the products of the backward pass that repeat nothing of the forward pass: two for each of its.

    last_only: gradients go through the totals of the last iteration only.
    """
    return 2 if last_only else 2 * forward_products(iterations)
