"""Properties of routing as numbers: how far a backend, or a mutant with a known defect, is from each.

`PROPERTIES` are measured on any function with the signature of `route`; `DEFECTS` are the mutants.
`scoreboard` makes the tables of README.md from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from mutants import pack_by_reshape, route_mutant, squash_unguarded
from torch import Tensor

from capsdist.ops import squash
from capsdist.routing import RoutingOptions, pack_weights, route, route_packed, route_reference
from capsdist.routing.later.attention import route_attention
from capsdist.routing.later.grouped import route_grouped
from capsdist.routing.later.heinsen import route_heinsen
from capsdist.routing.later.inverted import update_inverted
from routing_cases import Operands, largest_error, operands, values_and_gradients

Route = Callable[..., Tensor]
SIZES = (5, 23, 4, 3, 6)  # B, I, J, D, E


@dataclass(frozen=True)
class Property:
    """A sentence, a number that is 0 where it is obeyed exactly, and how large rounding may make it.

    `limit` is for what computes in float64, `limit_fp32` for the kernels of the fused backend.
    """

    sentence: str
    distance: Callable[[Route, int], float]
    limit: float
    limit_fp32: float

    def obeyed_by(self, backend: str, seed: int) -> bool:
        """Measure one of `BACKENDS`."""
        return self.distance(BACKENDS[backend], seed) < (
            self.limit_fp32 if backend == "fused" else self.limit
        )


def error_against_procedure_1(route: Route, seed: int) -> float:
    """Largest error of results and gradients; the reference is held against plain loops in its own test."""
    given = operands(SIZES, seed)
    return largest_error(
        values_and_gradients(route, given, 3), values_and_gradients(route_reference, given, 3)
    )


def unsquash(poses: Tensor) -> Tensor:
    """The totals s whose squash the poses are: |v| = |s|^2 / (1 + |s|^2), solved for |s|."""
    norm = poses.norm(dim=-1, keepdim=True)
    return poses / norm * (norm / (1 - norm)).sqrt()


def lost_by_coupling(route: Route, seed: int) -> float:
    """Give all parents the same votes but different biases: together they must get each child once."""
    given = operands(SIZES, seed, bias=True)
    shared = given.weights[:, :1].expand_as(given.weights)
    assert given.bias is not None
    totals = unsquash(route(given.child_poses, shared, 3, bias=given.bias)) - given.bias
    sum_of_votes = torch.einsum("bid,ide->be", given.child_poses, shared[:, 0])
    return float((totals.sum(1) - sum_of_votes).abs().max())


def change_by_company(route: Route, seed: int) -> float:
    """Route an image in a batch and alone."""
    given = operands(SIZES, seed)
    together = route(given.child_poses, given.weights, 3)
    alone = route(given.child_poses[2:3], given.weights, 3)
    return float((together[2:3] - alone).abs().max())


def error_of_one_and_two_iterations(route: Route, seed: int) -> float:
    """Compare r = 1 and r = 2 with their closed forms."""
    given = operands(SIZES, seed)
    votes = torch.einsum("bid,ijde->bije", given.child_poses, given.weights)
    once = squash(votes.sum(1) / SIZES[2])
    coupling = torch.einsum("bije,bje->bij", votes, once).softmax(2)
    twice = squash((coupling[..., None] * votes).sum(1))
    return max(
        float((route(given.child_poses, given.weights, r) - expected).abs().max())
        for r, expected in ((1, once), (2, twice))
    )


def change_by_permutation(route: Route, seed: int) -> float:
    """Reorder children and parents."""
    given = operands(SIZES, seed)
    generator = torch.Generator().manual_seed(seed)
    children = torch.randperm(SIZES[1], generator=generator)
    parents = torch.tensor([2, 3, 1, 0])
    plain = route(given.child_poses, given.weights, 3)
    moved = route(given.child_poses[:, children], given.weights[children][:, parents], 3)
    return float((plain[:, parents] - moved).abs().max())


def error_of_directional_derivative(route: Route, seed: int, step: float = 2e-3) -> float:
    """Compare the gradient of the weights with differences along a random direction.

    Those of two steps are combined so that the error is of the fourth order: the step may then be so long
    that fp32 tells the values apart. What computes in float64 and is strongly curved takes a shorter one.
    """
    given = operands(SIZES, seed)
    direction = operands(SIZES, seed + 1).weights

    def slope(step: float) -> float:
        values = [route(given.child_poses, given.weights + s * direction, 3) for s in (step, -step)]
        return float(((values[0] - values[1]) * given.grad).sum()) / (2 * step)

    numeric = (4 * slope(step) - slope(2 * step)) / 3
    exact = float((values_and_gradients(route, given, 3)["weights"] * direction).sum())
    return abs(exact - numeric) / abs(numeric)


def not_numbers(route: Route, given: Operands) -> float:
    """Count what is not finite among results and gradients."""
    return sum(float((~t.isfinite()).sum()) for t in values_and_gradients(route, given, 3).values())


def not_numbers_at_zero_poses(route: Route, seed: int) -> float:
    """Count what is not finite where all poses are zero."""
    given = operands(SIZES, seed)
    return not_numbers(route, given.with_(child_poses=torch.zeros_like(given.child_poses)))


PROPERTIES = {
    "numbers": Property("the numbers and gradients of Procedure 1", error_against_procedure_1, 1e-10, 1e-4),
    "sharing": Property("parents share each child exactly once", lost_by_coupling, 1e-9, 1e-3),
    "company": Property("an image is routed as if alone", change_by_company, 1e-12, 1e-4),
    "iterations": Property("r iterations are r softmax passes", error_of_one_and_two_iterations, 1e-12, 1e-4),
    "order": Property("children and parents have no order", change_by_permutation, 1e-12, 1e-4),
    "gradient": Property(
        "the gradient is that of all iterations", error_of_directional_derivative, 1e-6, 1e-2
    ),
    "zero": Property("gradients are finite at zero poses", not_numbers_at_zero_poses, 0.5, 0.5),
}


def _reshaped(child_poses: Tensor, weights: Tensor, iterations: int, **options: object) -> Tensor:
    packed = pack_by_reshape(weights)
    return route_packed(child_poses, packed, iterations, backend="streamed", **options)  # pyright: ignore[reportArgumentType]


def _fused(child_poses: Tensor, weights: Tensor, iterations: int, *, bias: Tensor | None = None) -> Tensor:
    """The fused backend in fp32, of and to float64; on a GPU if there is one, else interpreted."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = [None if t is None else t.to(device, torch.float32) for t in (child_poses, weights, bias)]
    found = route(given[0], given[1], iterations, bias=given[2], backend="fused")  # pyright: ignore[reportArgumentType]
    return found.to(child_poses.device, torch.float64)


BACKENDS: dict[str, Route] = {
    backend: partial(route, backend=backend) for backend in ("reference", "streamed")
}
if find_spec("triton") is not None:
    BACKENDS["fused"] = _fused


def _attention(child_poses: Tensor, weights: Tensor, iterations: int) -> Tensor:
    return route_attention(child_poses, pack_weights(weights))


def _inverted(child_poses: Tensor, weights: Tensor, iterations: int) -> Tensor:
    packed, poses = pack_weights(weights), None
    scale = packed.new_ones(packed.shape[1])
    for _ in range(iterations):
        poses = update_inverted(child_poses, packed, scale, 0 * scale, poses)
    assert poses is not None
    return poses


def _heinsen(child_poses: Tensor, weights: Tensor, iterations: int) -> Tensor:
    packed = pack_weights(weights)
    num_parents, parent_dim, _, num_children = packed.shape
    bias = packed.new_zeros(num_parents, parent_dim, num_children)
    betas = (packed.new_full((num_children, num_parents), value) for value in (0.3, -0.2))
    return route_heinsen(child_poses, packed, bias, *betas, iterations)


def _grouped(child_poses: Tensor, weights: Tensor, iterations: int) -> Tensor:
    """Two groups of children, the odd one left out."""
    part = child_poses.shape[1] // 2
    grouped = torch.stack([pack_weights(weights[part * g : part * (g + 1)]) for g in range(2)])
    return route_grouped(child_poses[:, : 2 * part], grouped, RoutingOptions(iterations))


LATER: dict[str, Route] = {
    "attention": _attention, "inverted": _inverted, "heinsen": _heinsen, "grouped": _grouped,
}  # fmt: skip
"""Later algorithms in their lean form."""
OF_LATER = ("company", "order", "gradient", "zero")
"""The properties that mean the same of them."""
NOT_OBEYED = {("order", "grouped")}
"""Those that an algorithm breaks by what it is: a child belongs to the group that its place tells."""
DEFECTS: dict[str, tuple[Route, str]] = {
    "softmax over the children": (partial(route_mutant, softmax_dim=1), "sharing"),
    "logits averaged over the batch": (partial(route_mutant, mean_over_batch=True), "company"),
    "r that means r + 1": (partial(route_mutant, extra_passes=1), "iterations"),
    "weights reshaped, not transposed": (_reshaped, "order"),
    "votes detached": (partial(route_mutant, detach_votes=True), "gradient"),
    "squash with 0/0": (partial(route_mutant, squash=squash_unguarded), "zero"),
}
"""Defects of public code: the mutant that has it, and the property that is there to notice it."""
