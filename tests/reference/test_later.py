"""The later routing algorithms: the lean form against the equations, and wrong variants that must differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.ops import lengths
from capsdist.routing import RoutingOptions, pack_weights, route, route_packed
from capsdist.routing.dynamic.coupled import sum_coupled
from capsdist.routing.later.attention import route_attention, soft_squash
from capsdist.routing.later.grouped import route_grouped
from capsdist.routing.later.heinsen import route_heinsen
from capsdist.routing.later.inverted import update_inverted
from routing_cases import kept_for_backward

SIZES = [(5, 23, 4, 3, 6), (1, 1, 2, 1, 1), (3, 70, 3, 5, 2), (20, 9, 7, 2, 5)]  # B, I, J, D, E


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inverted(*operands: Tensor, iterations: int = 3, **options: Any) -> Tensor:
    poses = None
    for _ in range(iterations):
        poses = update_inverted(*operands, poses, **options)
    assert poses is not None
    return poses


def operands(name: str, sizes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """Poses, packed weights, and the parameters of an algorithm."""
    num_images, num_children, num_parents, child_dim, parent_dim = sizes
    own = {
        "attention": [(num_children, num_parents)],
        "attention without priors": [],
        "inverted": [(parent_dim,), (parent_dim,)],
        "heinsen": [(num_parents, parent_dim, num_children), *[(num_children, num_parents)] * 2],
    }[name]
    shapes = (num_images, num_children, child_dim), (num_parents, parent_dim, child_dim, num_children), *own
    drawn = [draw(seed + number, *shape) for number, shape in enumerate(shapes)]
    drawn[0] /= math.sqrt(child_dim)
    return drawn


ROUTES: dict[str, Callable[..., Tensor]] = {
    "attention": route_attention,
    "attention without priors": route_attention,
    "inverted": inverted,
    "heinsen": route_heinsen,
}


def results(run: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """What `run` returns, and the gradients of all operands."""
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    found = run(*leaves)
    grad = draw(99, *found.shape)
    return [found.detach(), *torch.autograd.grad(found, leaves, grad)]


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest number of each tensor."""
    pairs = zip(found, expected, strict=True)
    return max(float((one - other).abs().max() / other.abs().max().clamp_min(1e-3)) for one, other in pairs)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.property("later", "later algorithms: the numbers and gradients of their papers' equations")
def test_the_lean_form_has_the_numbers_and_gradients_of_the_equations(name: str, sizes: Any) -> None:
    seed = int(torch.randint(1 << 30, ()))
    given = operands(name, sizes, seed)
    found, expected = (
        results(partial(ROUTES[name], backend=backend), given) for backend in ("streamed", "reference")
    )
    assert error(found, expected) < 1e-9, f"seed {seed}"


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("name", ["inverted", "heinsen"])
def test_any_number_of_iterations(name: str, iterations: int) -> None:
    given = operands(name, SIZES[0])
    run = partial(ROUTES[name], iterations=iterations)
    found, expected = (results(partial(run, backend=backend), given) for backend in ("streamed", "reference"))
    assert error(found, expected) < 1e-9


@pytest.mark.parametrize("room", [0, 3000, 20_000])
@pytest.mark.parametrize("name", ROUTES)
def test_tiles_of_any_size(name: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("dynamic.cuts", "later.heinsen_sums"):
        monkeypatch.setattr(f"capsdist.routing.{module}.chunk_bytes", lambda device: room)
    given = operands(name, SIZES[2])
    found, expected = (
        results(partial(ROUTES[name], backend=backend), given) for backend in ("streamed", "reference")
    )
    assert error(found, expected) < 1e-9


@pytest.mark.parametrize("name", ROUTES)
def test_votes_are_not_kept_for_the_backward_pass(name: str) -> None:
    sizes = (8, 100, 4, 3, 6)
    given = [tensor.requires_grad_() for tensor in operands(name, sizes)]
    votes = math.prod((*sizes[:3], sizes[4]))
    own = {tensor.untyped_storage().data_ptr() for tensor in given}
    for backend, keeps in (("streamed", False), ("reference", True)):
        kept = kept_for_backward(partial(ROUTES[name], *given, backend=backend))
        sizes_of = {each.untyped_storage().data_ptr(): each.numel() for each in kept}
        more = [number for place, number in sizes_of.items() if place not in own]
        assert (max(more) >= votes) == keeps
        assert (2 * sum(more) < votes) != keeps


def loops_of_attention(poses: Tensor, packed: Tensor, priors: Tensor) -> Tensor:
    """Self-attention routing of one image by plain loops over children and parents."""
    num_parents, parent_dim, _, num_children = packed.shape
    votes = [[packed[j, :, :, i] @ poses[i] for j in range(num_parents)] for i in range(num_children)]
    totals = torch.zeros(num_parents, parent_dim, dtype=poses.dtype)
    for i in range(num_children):
        logits = torch.stack(
            [sum(votes[i][j] @ votes[k][j] for k in range(num_children)) / parent_dim**0.5
             for j in range(num_parents)]
        )  # fmt: skip
        for j, share in enumerate(logits.softmax(0) + priors[i]):
            totals[j] += share * votes[i][j]
    norms = totals.norm(dim=1, keepdim=True)
    return (1 - 1 / norms.exp()) * totals / norms


def test_attention_of_one_image_by_loops() -> None:
    poses, packed, priors = operands("attention", (1, 5, 3, 2, 4))
    expected = loops_of_attention(poses[0], packed, priors)
    torch.testing.assert_close(route_attention(poses, packed, priors)[0], expected)


def mutant_of_attention(
    poses: Tensor, packed: Tensor, priors: Tensor, *, dim: int = 2, inside: bool = False, scaled: bool = True
) -> Tensor:
    votes = torch.einsum("bid,jedi->bije", poses, packed)
    logits = torch.einsum("bije,bje->bij", votes, votes.sum(1)) / (votes.shape[3] ** 0.5 if scaled else 1)
    coupling = (logits + priors).softmax(dim) if inside else logits.softmax(dim) + priors
    return soft_squash(torch.einsum("bij,bije->bje", coupling, votes))


WRONG_ATTENTION = {
    "softmax over children": {"dim": 1},
    "priors inside the softmax": {"inside": True},
    "agreement not scaled": {"scaled": False},
}


@pytest.mark.parametrize("wrong", WRONG_ATTENTION)
@pytest.mark.defect("later", "attention over children, priors inside the softmax, agreement not scaled")
def test_wrong_attention_differs(wrong: str) -> None:
    given = operands("attention", SIZES[0])
    expected = results(route_attention, given)
    assert error(results(mutant_of_attention, given), expected) < 1e-9
    assert error(results(partial(mutant_of_attention, **WRONG_ATTENTION[wrong]), given), expected) > 1e-2


def mutant_of_heinsen(
    poses: Tensor,
    packed: Tensor,
    bias: Tensor,
    use: Tensor,
    ignore: Tensor,
    *,
    benefit: bool = True,
    scored: bool = True,
    dim: int = 2,
) -> Tensor:
    votes = torch.einsum("bid,jedi->bije", poses, packed) + bias.permute(2, 0, 1)
    active, routed = lengths(poses)[..., None], torch.full_like(votes[..., 0], 1 / votes.shape[2])
    for iteration in range(3):
        used = active * routed
        score = (use * used - benefit * ignore * (active - used)).sum(1)
        weight = used.sum(1)[..., None] + 1e-5
        mean = (used[..., None] * votes).sum(1) / weight
        variance = (used[..., None] * (votes - mean[:, None]) ** 2).sum(1) / weight + 1e-5
        if iteration == 2:
            break
        normal = torch.distributions.Normal(mean[:, None], variance.sqrt()[:, None])
        logits = normal.log_prob(votes).sum(3)
        routed = (logits + score.sigmoid().log()[:, None] * scored).softmax(dim)
    return torch.nn.functional.normalize(mean, dim=-1) * score.sigmoid()[..., None]


@pytest.mark.parametrize("wrong", [{"benefit": False}, {"scored": False}, {"dim": 1}], ids=str)
@pytest.mark.defect("later", "Heinsen routing without the cost of ignoring, or without scores in the E-step")
def test_wrong_heinsen_routing_differs(wrong: dict[str, Any]) -> None:
    given = operands("heinsen", SIZES[0])
    expected = results(route_heinsen, given)
    assert error(results(mutant_of_heinsen, given), expected) < 1e-8
    assert error(results(partial(mutant_of_heinsen, **wrong), given), expected) > 1e-2


def test_each_child_is_shared_exactly_once_whatever_the_state() -> None:
    poses, packed = operands("attention without priors", SIZES[0])
    same = packed[:1].expand(packed.shape).contiguous()
    sums = sum_coupled(poses, same, draw(7, 5, 4, 6))
    torch.testing.assert_close(sums.sum(1), torch.einsum("bid,edi->be", poses, same[0]))


def test_inverted_attention_begins_uniform_and_ends_with_layer_norm() -> None:
    poses, packed, scale, shift = operands("inverted", SIZES[0])
    votes = torch.einsum("bid,jedi->bije", poses, packed)
    first = torch.nn.functional.layer_norm(votes.sum(1) / 4, (6,), scale, shift)
    torch.testing.assert_close(update_inverted(poses, packed, scale, shift), first)
    coupling = (votes * first[:, None]).sum(3).softmax(2)
    second = torch.nn.functional.layer_norm((coupling[..., None] * votes).sum(1), (6,), scale, shift)
    torch.testing.assert_close(update_inverted(poses, packed, scale, shift, first), second)
    wrong = (votes * first[:, None]).sum(3).softmax(1)
    over_children = torch.nn.functional.layer_norm((wrong[..., None] * votes).sum(1), (6,), scale, shift)
    assert float((over_children - second).abs().max()) > 1e-2


def test_one_group_is_dynamic_routing() -> None:
    poses, weights = draw(0, 5, 23, 3), draw(1, 23, 4, 3, 6)
    grouped = pack_weights(weights)[None]
    torch.testing.assert_close(route_grouped(poses, grouped, RoutingOptions(3)), route(poses, weights, 3))


def test_groups_of_children_are_routed_by_themselves_and_added_up() -> None:
    poses, grouped, bias, priors = draw(0, 5, 21, 3), draw(3, 3, 4, 6, 3, 7), draw(1, 4, 6), draw(2, 21, 4)
    options = {"bias": bias, "none_of_the_above": True, "backend": "reference"}
    expected = sum(
        route_packed(poses[:, group], grouped[number], 3, log_priors=priors[group], **options)
        for number, group in enumerate((slice(7), slice(7, 14), slice(14, 21)))
    )
    routing = RoutingOptions(3, none_of_the_above=True)
    found = route_grouped(poses, grouped, routing, bias=bias, log_priors=priors)
    torch.testing.assert_close(found, expected)
    whole = torch.cat(tuple(grouped), 3)
    together = route_packed(poses, whole, 3, log_priors=priors, **options)
    assert float((together - found).abs().max()) > 1e-2  # one routing of all children is another algorithm


@pytest.mark.parametrize(("name", "shape"), [("child_poses", (5, 20, 3)), ("log_priors", (20, 4))])
def test_groups_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]) -> None:
    given = {"child_poses": draw(0, 5, 21, 3), "log_priors": draw(2, 21, 4)} | {name: draw(1, *shape)}
    with pytest.raises(ShapeError, match=rf"{name} \[.*20.*do not fit 3 groups of 7 children; pass I = 21"):
        route_grouped(grouped_weights=draw(3, 3, 4, 6, 3, 7), options=RoutingOptions(3), **given)


def test_soft_squash() -> None:
    totals = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-9, 0.0]], dtype=torch.float64, requires_grad=True)
    found = soft_squash(totals)
    expected = (1 - math.exp(-5)) / 5 * totals[0]
    torch.testing.assert_close(found[0], expected)
    assert found[1].tolist() == [0, 0]
    torch.testing.assert_close(found[2, 0], totals[2, 0])
    (grad,) = torch.autograd.grad(found.sum(), totals)
    assert grad[1].tolist() == [1, 1]
