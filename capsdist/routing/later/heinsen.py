"""Heinsen routing: EM with a net benefit of using, or ignoring, what each child says.

Source: Heinsen, "An Algorithm for Routing Capsules in All Domains" (arXiv 1911.00792, 2019), Algorithm 1. A
parent has a score a_j in (-inf, inf) and a Gaussian over votes V_ij = W_ij u_i + B_ij, of mean mu_j and
variance s2_j in each dimension. With f the logistic function:

    E-step  R_ij = 1 / J at first, then f(a_j) P_j(V_ij) normalised over j
    D-step  use_ij = f(a_i) R_ij,  ignore_ij = f(a_i) - use_ij
    M-step  a_j = sum_i beta_use_ij use_ij - beta_ignore_ij ignore_ij,
            mu_j and s2_j: mean and variance of the votes weighted by use_ij

As in the author's code, EPSILON is added to the weights' sum, which is 0 where all children are, and to the
variance. Chosen here: f(a_i) of a child is its length, because primary capsules have no other score.

`streamed` never stores votes: an iteration is four sums over children (`heinsen_sums`). Their squares are
taken from a centre near the mean, so that they do not cancel: the mean of the pass before, at first that of
uniform weights.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from capsdist.ops import lengths
from capsdist.routing.common.sharing import log_sigmoid
from capsdist.routing.later.forms import Backend, linear_votes, make_votes, run_form, with_lengths
from capsdist.routing.later.heinsen_sums import heinsen_sums

__all__ = ["EPSILON", "heinsen_states", "route_heinsen"]

EPSILON = 1e-5
"""Added to sums of weights and to variances; the value of the author's code."""


def route_heinsen(
    child_poses: Tensor,
    packed_weights: Tensor,
    vote_bias: Tensor,
    beta_use: Tensor,
    beta_ignore: Tensor,
    iterations: int = 3,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return the parents as capsules: direction of mu_j, and length f(a_j).

    Args:
        child_poses: [B, I, D], of 16, 32 or 64 bits. Float64 is computed in float64, all else in fp32.
        packed_weights: [J, E, D, I] W.
        vote_bias: [J, E, I] B.
        beta_use, beta_ignore: [I, J] net benefit of using, and net cost of ignoring a child.
        iterations: of all three steps.
        backend: see `LaterOptions`.

    Returns:
        [B, J, E] in the dtype of `child_poses`.

    Cost: an iteration computes all votes once forward, and twice backward with their gradients. Kept for the
    backward pass: the arguments, and of each iteration a few [B, J, E].

    Raises:
        ShapeError: a shape, dtype, device or name that cannot be.
        NotImplementedError: a second derivative of `streamed` is asked for.
    """
    streamed, reference = (partial(form, iterations=iterations) for form in (_streamed, _reference))
    parameters = vote_bias, beta_use, beta_ignore
    return run_form(streamed, reference, backend, child_poses, packed_weights, *parameters)


def heinsen_states(*operands: Tensor, iterations: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return what each iteration couples children by: offset [B, J], mean and precision [B, J, E].

    R_ij is the softmax over j of offset_j - 1/2 sum_e precision_je (V_ije - mean_je)^2. Operands are those of
    `route_heinsen`, from `child_poses` to `beta_ignore`, all fp32 or all float64.
    """
    states: list[tuple[Tensor, Tensor, Tensor]] = []
    _streamed(*operands, iterations=iterations, states=states)
    return states


def _streamed(
    child_poses: Tensor,
    packed_weights: Tensor,
    vote_bias: Tensor,
    beta_use: Tensor,
    beta_ignore: Tensor,
    *,
    iterations: int,
    states: list[tuple[Tensor, Tensor, Tensor]] | None = None,
) -> Tensor:
    active = lengths(child_poses)
    with torch.no_grad():  # results do not depend on the first centre
        sums = linear_votes(child_poses * active[..., None], packed_weights)
        mean = (sums + torch.einsum("bi,jei->bje", active, vote_bias)) / (
            active.sum(1)[:, None, None] + EPSILON
        )
        precision, offset = torch.zeros_like(mean), torch.zeros_like(mean[..., 0])
    score = offset
    for iteration in range(iterations):
        if states is not None:
            states.append((offset, mean, precision))
        operands = active, child_poses, packed_weights, vote_bias, beta_use, beta_ignore
        weight, score, first, second = heinsen_sums(*operands, offset, mean, precision)
        weight = weight[..., None]
        centre, mean = mean, (first + weight * mean) / (weight + EPSILON)
        if iteration < iterations - 1:
            moved = mean - centre
            squares = second - 2 * moved * first + moved * moved * weight
            variance = squares / (weight + EPSILON) + EPSILON
            precision, offset = _densities(score, variance)
    return with_lengths(mean, score)


def _densities(score: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 / s2 [B, J, E], and what log f(a) P has besides the squares, [B, J], but for a constant."""
    return 1 / variance, log_sigmoid(score) - 0.5 * variance.log().sum(2)


def _reference(
    child_poses: Tensor,
    packed_weights: Tensor,
    vote_bias: Tensor,
    beta_use: Tensor,
    beta_ignore: Tensor,
    *,
    iterations: int,
) -> Tensor:
    votes = make_votes(child_poses, packed_weights) + vote_bias.permute(2, 0, 1)
    active = lengths(child_poses)[..., None]
    routed = torch.full_like(votes[..., 0], 1 / votes.shape[2])
    for iteration in range(iterations):
        use = active * routed
        ignore = active - use
        score = (beta_use * use - beta_ignore * ignore).sum(1)
        weight = use.sum(1)[..., None] + EPSILON
        mean = torch.einsum("bij,bije->bje", use, votes) / weight
        difference = votes - mean[:, None]
        variance = torch.einsum("bij,bije->bje", use, difference.square()) / weight + EPSILON
        if iteration == iterations - 1:
            return with_lengths(mean, score)
        log_density = -0.5 * (difference.square() / variance[:, None] + variance.log()[:, None]).sum(3)
        routed = (log_sigmoid(score)[:, None] + log_density).softmax(2)
    raise AssertionError("there is an iteration")
