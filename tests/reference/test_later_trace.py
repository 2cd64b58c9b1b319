"""The traces of later routing algorithms are those of their equations, written out child by child."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from capsdist.errors import ShapeError
from capsdist.routing import RoutingOptions, trace_routing
from capsdist.routing.later import trace
from capsdist.routing.later.grouped import trace_grouped
from capsdist.routing.later.heinsen import EPSILON
from capsdist.routing.later.inverted import update_inverted
from capsdist.routing.later.trace import LaterTrace, trace_attention, trace_heinsen, trace_inverted

SIZES = [(3, 7, 5, 2, 3), (2, 1, 3, 1, 2), (3, 5, 1, 2, 1)]  # B, I, J, D, E
Logits = list[list[list[Tensor]]]  # of each pass, child and parent of an image


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operands(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    num_images, num_children, num_parents, child_dim, parent_dim = sizes
    poses = draw(1, num_images, num_children, child_dim)
    return poses, draw(2, num_parents, parent_dim, child_dim, num_children)


def votes_of(poses: Tensor, weights: Tensor) -> list[list[Tensor]]:
    """The votes of the children of one image, by child and parent."""
    return [[each[:, :, i] @ pose for each in weights] for i, pose in enumerate(poses)]


def loops_of_attention(poses: Tensor, weights: Tensor) -> Logits:
    votes = votes_of(poses, weights)
    scale, parents = math.sqrt(weights.shape[1]), range(len(weights))

    def logit(i: int, j: int) -> Tensor:
        return torch.stack([votes[i][j] @ row[j] / scale for row in votes]).sum()

    return [[[logit(i, j) for j in parents] for i in range(len(poses))]]


def loops_of_inverted(poses: Tensor, weights: Tensor, scale: Tensor, shift: Tensor) -> Logits:
    """Three passes of Procedure 1, the first from poses 0."""
    votes, passes = votes_of(poses, weights), []
    parents = [torch.zeros_like(each) for each in votes[0]]
    for _ in range(3):
        passes.append([[pose @ vote for pose, vote in zip(parents, row, strict=True)] for row in votes])
        shares = [torch.stack(row).softmax(0) for row in passes[-1]]
        for j in range(len(weights)):
            total = torch.stack([share[j] * row[j] for share, row in zip(shares, votes, strict=True)]).sum(0)
            parents[j] = functional.layer_norm(total, scale.shape, scale, shift)
    return passes


def loops_of_heinsen(poses: Tensor, weights: Tensor, bias: Tensor, use: Tensor, ignore: Tensor) -> Logits:
    """Three iterations of Algorithm 1, with the length of a child as f(a_i)."""
    children, parents = range(len(poses)), range(len(weights))
    votes = [
        [vote + bias[j, :, i] for j, vote in enumerate(row)] for i, row in enumerate(votes_of(poses, weights))
    ]
    active = [pose.norm() for pose in poses]
    passes: Logits = [[[torch.zeros((), dtype=torch.float64) for _ in parents] for _ in children]]
    for _ in range(2):
        shares = [torch.stack(row).softmax(0) for row in passes[-1]]
        passes.append([[] for _ in children])
        for j in parents:
            used = [active[i] * shares[i][j] for i in children]
            scores = [use[i, j] * used[i] - ignore[i, j] * (active[i] - used[i]) for i in children]
            weight = torch.stack(used).sum() + EPSILON
            mean = torch.stack([used[i] * votes[i][j] for i in children]).sum(0) / weight
            spread = torch.stack([used[i] * (votes[i][j] - mean) ** 2 for i in children]).sum(0) / weight
            variance = spread + EPSILON
            for i in children:
                exponents = (votes[i][j] - mean) ** 2 / (2 * variance) + (2 * math.pi * variance).log() / 2
                passes[-1][i].append(torch.stack(scores).sum().sigmoid().log() - exponents.sum())
    return passes


def trace_of(images: list[Logits]) -> LaterTrace:
    """The trace of the logits of each image, straight from the definitions."""
    changes, entropies, shares = [], [], []
    for passes in images:
        logits = torch.stack(
            [torch.stack([torch.stack(row) for row in each]) for each in passes]
        )  # [R, I, J]
        coupling = logits.exp() / logits.exp().sum(2, keepdim=True)
        largest = math.log(logits.shape[2]) or 1.0
        entropies.append(-(coupling * coupling.log()).sum(2).mean(1) / largest)
        shares.append(coupling.mean(1))
        moved = logits[1:] - logits[:-1]
        changes.append((moved - moved.mean(2, keepdim=True)).abs().mean((1, 2)))
    return LaterTrace(*(torch.stack(each, 1) for each in (changes, entropies, shares)))


def inverted(poses: Tensor, weights: Tensor, scale: Tensor, shift: Tensor) -> LaterTrace:
    passes, parents = [], None
    for _ in range(3):
        passes.append((poses, parents))
        parents = update_inverted(poses, weights, scale, shift, parents)
    return trace_inverted(passes, weights)


ALGORITHMS: dict[str, tuple[Callable[..., LaterTrace], Callable[..., Logits]]] = {
    "attention": (trace_attention, loops_of_attention),
    "inverted": (inverted, loops_of_inverted),
    "heinsen": (trace_heinsen, loops_of_heinsen),
}


def parameters_of(name: str, weights: Tensor) -> list[Tensor]:
    num_parents, parent_dim, _, num_children = weights.shape
    shapes = {
        "attention": [],
        "inverted": [(parent_dim,), (parent_dim,)],
        "heinsen": [(num_parents, parent_dim, num_children), *[(num_children, num_parents)] * 2],
    }[name]
    return [0.5 * draw(3 + number, *shape) for number, shape in enumerate(shapes)]


@pytest.mark.property("later-trace", "traces of later algorithms tell of the couplings of their equations")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_trace_is_that_of_loops(
    name: str, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    poses, weights = operands(sizes)
    run, loops = ALGORITHMS[name]
    parameters = parameters_of(name, weights)
    expected = trace_of([loops(image, weights, *parameters) for image in poses])
    assert len(expected.relative_entropy) == (1 if name == "attention" else 3)
    for room in (None, 0):  # all images in a block, and one
        if room is not None:
            monkeypatch.setattr(trace, "chunk_bytes", lambda device: 0)
        for found, wanted in zip(run(poses, weights, *parameters), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_half_precision_is_traced_in_fp32_without_gradients(name: str) -> None:
    poses, weights = operands(SIZES[0])
    given = [each.bfloat16() for each in (poses / 3, weights, *parameters_of(name, weights))]
    run, _ = ALGORITHMS[name]
    found = run(given[0].requires_grad_(), *given[1:])
    for one, exact in zip(found, run(*(each.detach().double() for each in given)), strict=True):
        assert one.dtype == torch.float32
        assert not one.requires_grad
        limit = 0.05 if name == "inverted" else 1e-4  # whose poses are rounded between passes
        torch.testing.assert_close(one.double(), exact, atol=limit, rtol=limit)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_children_of_length_0_are_finite(name: str) -> None:
    poses, weights = operands(SIZES[0])
    poses[0], poses[1, ::2] = 0.0, 0.0
    run, _ = ALGORITHMS[name]
    found = run(poses.float(), weights.float(), *(each.float() for each in parameters_of(name, weights)))
    assert all(each.isfinite().all() for each in found)
    if name != "heinsen":  # whose bias votes for them
        assert found.relative_entropy[-1, 0] == pytest.approx(1)


def test_what_cannot_be_routed_is_not_traced() -> None:
    poses, weights = operands(SIZES[0])
    for run in (trace_attention, lambda *given: trace_inverted([(given[0], None)], given[1])):
        with pytest.raises(ShapeError, match=r"^child_poses \[3, 6, 2\] do not fit packed_weights"):
            run(poses[:, 1:], weights)
    with pytest.raises(NotImplementedError, match=r"^trace_attention has no gradient"):
        torch.func.grad(lambda given: trace_attention(given, weights).relative_entropy.sum())(poses)


def test_the_trace_of_groups_is_the_mean_over_their_children() -> None:
    poses, grouped, bias, priors = draw(0, 5, 21, 3), draw(3, 3, 4, 6, 3, 7), draw(1, 4, 6), draw(2, 21, 4)
    found = trace_grouped(poses, grouped, RoutingOptions(3, True), bias=bias, log_priors=priors)
    total = [torch.zeros_like(each) for each in found]
    for number, children in enumerate((slice(7), slice(7, 14), slice(14, 21))):
        options: dict[str, Any] = {"bias": bias, "log_priors": priors[children], "none_of_the_above": True}
        own = trace_routing(poses[:, children], grouped[number], 3, **options)
        total = [before + 7 * each for before, each in zip(total, own, strict=True)]
    for one, summed in zip(found, total, strict=True):
        torch.testing.assert_close(one, summed / 21)
    assert (found.parent_shares.sum(2) < 1).all()
