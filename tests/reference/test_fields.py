"""Routing between grids: who competes for a child is a literal table here, and known mistakes break it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.ops import squash
from capsdist.routing.common.fields import Fields, whole_field
from capsdist.routing.common.sharing import share
from capsdist.routing.dynamic.fields import passes
from capsdist.routing.dynamic.fields.api import route_field_call
from capsdist.routing.dynamic.fields.call import FieldCall
from capsdist.routing.dynamic.fields.reference import route_fields_reference
from capsdist.routing.dynamic.fields.streamed import route_fields_streamed
from capsdist.routing.dynamic.options import RoutingOptions
from capsdist.routing.em import streamed_passes
from capsdist.routing.em.options import EMCall, EMOptions
from capsdist.routing.em.reference import route_em_reference
from capsdist.routing.em.streamed import route_em_streamed

FIELDS = {
    "odd sides": Fields((5, 7), (3, 3), (2, 2)),
    "same padding": Fields((5, 6), (3, 2), (2, 1), "same"),
    "one direction": Fields((9,), (3,), (2,)),
    "one field": whole_field((3, 2)),
    "children that nobody sees": Fields((6, 5), (2, 2), (3, 3)),
}


def table(fields: Fields) -> list[tuple[int, int, int]]:
    """Every (child position, place, parent position) of a grid, counted out."""
    found = []
    axes = []
    for size, kernel, stride, parents in zip(
        fields.child_shape, fields.kernel, fields.stride, fields.parent_shape, strict=True
    ):
        before = max(0, (parents - 1) * stride + kernel - size) // 2 if fields.padding == "same" else 0
        axes.append([(p, k, p * stride + k - before) for p in range(parents) for k in range(kernel)])
    for links in itertools.product(*axes):
        if all(0 <= child < size for (_, _, child), size in zip(links, fields.child_shape, strict=True)):
            numbers = [0, 0, 0]
            for (p, k, child), size, kernel, parents in zip(
                links, fields.child_shape, fields.kernel, fields.parent_shape, strict=True
            ):
                numbers = [numbers[0] * size + child, numbers[1] * kernel + k, numbers[2] * parents + p]
            found.append((numbers[0], numbers[1], numbers[2]))
    return found


def dense_share(logits: Tensor, fields: Fields) -> Tensor:
    """The shares of `share`, by a softmax over all parents of an image: minus infinity if unseen."""
    *lead, _, num_parents, types, parents = logits.shape
    dense = logits.new_full((*lead, fields.num_children, types, num_parents, parents), float("-inf"))
    links = table(fields)
    for child, place, parent in links:
        dense[..., child, :, parent, :] = logits[..., place, parent, :, :]
    shares = dense.flatten(-2).softmax(-1).unflatten(-1, (num_parents, parents))
    found = torch.zeros_like(logits)
    for child, place, parent in links:
        found[..., place, parent, :, :] = shares[..., child, :, parent, :]
    return found


def valid(fields: Fields) -> Tensor:
    """Whether there is a child at a place [K, P]."""
    return fields.children < fields.num_children


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_the_tables_are_those_that_are_counted_out(fields: Fields) -> None:
    counted = {(place, parent): child for child, place, parent in table(fields)}
    for place, parent in itertools.product(range(fields.size), range(fields.num_parents)):
        assert fields.children[place, parent] == counted.get((place, parent), fields.num_children)
    for child in range(fields.num_children):
        seen = {int(flat) for flat in fields.parents[:, child]} - {fields.size * fields.num_parents}
        assert seen == {place * fields.num_parents + p for c, place, p in table(fields) if c == child}
        assert fields.num_seeing[child] == len(seen)


@pytest.mark.property("field", "a child divides itself over all parents that see it, and over no other")
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_shares_are_a_softmax_over_the_parents_that_see_the_child(fields: Fields) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, fields.size, fields.num_parents, 3, 4, dtype=torch.float64)
    there = valid(fields)[:, :, None, None]
    torch.testing.assert_close(share(logits, fields, "field") * there, dense_share(logits, fields) * there)


@pytest.mark.defect("field", "a softmax over the types at each position")
def test_a_softmax_at_each_position_is_another_algorithm() -> None:
    fields = FIELDS["odd sides"]
    logits = torch.randn(1, fields.size, fields.num_parents, 2, 3, dtype=torch.float64)
    by_position = share(logits, fields, "position")
    assert (by_position - dense_share(logits, fields)).abs().max() > 0.1
    total = torch.zeros(fields.num_children, dtype=torch.float64)
    for child, place, parent in table(fields):
        total[child] += by_position[0, place, parent, 0].sum()
    assert total.max() > 1.5  # a child counts once a position


@pytest.mark.defect("field", "shares given to parents whose field does not contain the child")
def test_a_softmax_over_all_positions_gives_shares_to_parents_that_do_not_see_the_child() -> None:
    fields = FIELDS["odd sides"]
    logits = torch.zeros(1, fields.size, fields.num_parents, 1, 1, dtype=torch.float64)
    everywhere = 1 / fields.num_parents
    found = share(logits, fields, "field")[0, ..., 0, 0]
    assert (found[valid(fields)] > everywhere + 0.01).all()


@dataclass(frozen=True)
class Case:
    """Sizes of a call: images, child types, parent types."""

    images: int = 3
    types: int = 2
    parents: int = 5


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dynamic_call(fields: Fields, case: Case = Case(), **options: object) -> FieldCall:
    """Random operands, of a scale at which shares are far from equal."""
    competition = options.pop("competition", "field")
    bias, priors = options.pop("bias", True), options.pop("priors", True)
    return FieldCall(
        draw(case.images, fields.num_children, case.types, 3, seed=1).requires_grad_(),
        draw(case.parents, 4, 3, case.types * fields.num_matrices, seed=2).requires_grad_(),
        fields,
        RoutingOptions(**options),  # type: ignore[arg-type]
        competition,  # type: ignore[arg-type]
        draw(case.parents, 4, seed=3).requires_grad_() if bias else None,
        draw(case.types * fields.size, case.parents, seed=4).requires_grad_() if priors else None,
    )


def em_call(fields: Fields, case: Case = Case(), side: int = 4, seed: int = 0, **options: object) -> EMCall:
    """Random operands, at a temperature at which activations are far from a half."""
    options = {"inverse_temperature": 0.7, **options}
    weights = 0.5 * draw(fields.num_matrices, case.types, case.parents, side, side, seed=seed + 3)
    return EMCall(
        draw(case.images, fields.num_children, case.types, side, side, seed=seed + 1).requires_grad_(),
        draw(case.images, fields.num_children, case.types, seed=seed + 2).sigmoid().requires_grad_(),
        weights.requires_grad_(),
        (0.1 * draw(case.parents, seed=seed + 4)).requires_grad_(),
        (0.1 * draw(case.parents, seed=seed + 5)).requires_grad_(),
        fields,
        EMOptions(**options),  # type: ignore[arg-type]
        draw(fields.size, side, side, seed=seed + 6),
    )


def found_by(route: object, call: FieldCall | EMCall) -> list[Tensor]:
    """Results and gradients of all operands."""
    results = route(call)  # type: ignore[operator]
    results = results if isinstance(results, tuple) else (results,)
    total = sum((each * draw(*each.shape, seed=9)).sum() for each in results)
    inputs = [each for each in vars(call).values() if isinstance(each, Tensor) and each.requires_grad]
    return [*results, *torch.autograd.grad(total, inputs)]  # type: ignore[arg-type]


def largest_error(found: list[Tensor], right: list[Tensor]) -> float:
    return max(
        float(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).detach())
        for a, b in zip(found, right, strict=True)
    )


OPTIONS = [
    {"iterations": 1, "bias": False, "priors": False},
    {"iterations": 3},
    {"iterations": 3, "none_of_the_above": True, "priors": False},
    {"iterations": 2, "gradient": "last", "bias": False},
    {"iterations": 3, "competition": "position", "none_of_the_above": True},
]


@pytest.mark.property("grids", "streamed routing between grids has the reference's numbers and gradients")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())))
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("budget", [None, 1 << 13])
def test_streamed_dynamic_routing_agrees_to_1e9(
    fields: Fields, options: dict[str, object], budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if budget:
        monkeypatch.setattr(passes, "chunk_bytes", lambda device: budget)
        monkeypatch.setattr(passes, "_BLOCK_BYTES", budget)
    call = dynamic_call(fields, **options)
    right = found_by(route_fields_reference, call)
    assert largest_error(found_by(route_fields_streamed, call), right) < 1e-9


@pytest.mark.property("grids")
@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("competition", ["field", "position"])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("tile", [None, 1 << 12])
def test_streamed_em_routing_agrees_to_1e9(
    fields: Fields, competition: str, iterations: int, tile: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tile:
        monkeypatch.setattr(streamed_passes, "_MAX_TILE_BYTES", tile)
    call = em_call(fields, iterations=iterations, competition=competition, side=4 if tile else 3)
    right = found_by(route_em_reference, call)
    assert largest_error(found_by(route_em_streamed, call), right) < 1e-9


def test_one_field_without_shared_weights_is_routing_of_a_layer() -> None:
    fields = Fields((2, 3), (2, 3), (1, 1))
    call = dynamic_call(fields, iterations=3, priors=False)
    votes = torch.einsum("bntd,jedtn->bntje", call.child_poses, call.unpacked).flatten(1, 2)
    logits = votes.new_zeros(votes.shape[:3])
    for _ in range(3):
        poses = squash(torch.einsum("bij,bije->bje", logits.softmax(2), votes) + call.bias)
        logits = logits + torch.einsum("bije,bje->bij", votes, poses)
    torch.testing.assert_close(route_field_call(call)[:, 0], poses)


DEFECTS = UNWEIGHTED, PER_SHARE, ONE_TEMPERATURE, LIKELIHOOD = (
    "absent children in the M-step", "a cost without the share", "one temperature", "no parents in the E-step"
)  # fmt: skip


def em_in_loops(call: EMCall, defect: str = "") -> tuple[Tensor, Tensor]:
    """Procedure 1 of the paper in plain loops over children and parents, for one image; or with a defect."""
    fields, options = call.fields, call.options
    links = table(fields)
    types, parents = call.weights.shape[1:3]
    weights = call.weights.expand(fields.size, *call.weights.shape[1:])
    children = [(n, t) for n in range(fields.num_children) for t in range(types)]
    pairs = [(p, c) for p in range(fields.num_parents) for c in range(parents)]
    votes = {}
    for n, k, p in links:
        for t, c in itertools.product(range(types), range(parents)):
            offset = 0 if call.offsets is None else call.offsets[k]
            votes[(n, t), (p, c)] = (call.poses[0, n, t] @ weights[k, t, c] + offset).flatten()
    seen = {i: [j for j in pairs if (i, j) in votes] for i in children}
    assigned = {(i, j): 1 / len(seen[i]) for i, j in votes}
    for step in range(options.iterations):
        mean, variance, active = {}, {}, {}
        for j in pairs:
            own = [i for i in children if (i, j) in votes]
            present = {i: 1 if defect == UNWEIGHTED else call.activations[0, i[0], i[1]] for i in own}
            shares = {i: assigned[i, j] * present[i] for i in own}
            total = sum(shares.values())
            over = total if total > 0 else torch.inf  # of no active child: mean and variance 0
            mean[j] = sum(shares[i] * votes[i, j] for i in own) / over
            spread = sum(shares[i] * (votes[i, j] - mean[j]) ** 2 for i in own) / over
            variance[j] = spread + options.variance_floor
            cost = (call.beta_u[j[1]] + variance[j].sqrt().log()) * (1 if defect == PER_SHARE else total)
            passed = options.iterations if defect == ONE_TEMPERATURE else step + 1
            inverse = options.inverse_temperature * (1 - options.temperature_decay**passed)
            active[j] = torch.sigmoid(inverse * (call.beta_a[j[1]] - cost.sum()))
        for i in children:
            density = {
                j: (1 if defect == LIKELIHOOD else active[j])
                * torch.exp(-((votes[i, j] - mean[j]) ** 2 / (2 * variance[j])).sum())
                / torch.sqrt(torch.prod(2 * torch.pi * variance[j]))
                for j in seen[i]
            }
            for j in seen[i]:
                assigned[i, j] = density[j] / sum(density.values())
    poses = torch.stack([mean[j] for j in pairs]).unflatten(0, (-1, parents))
    return poses, torch.stack([active[j] for j in pairs]).unflatten(0, (-1, parents))


@pytest.mark.property("em", "the reference of EM routing is Procedure 1 of its paper in plain loops")
@pytest.mark.parametrize("name", ["odd sides", "same padding", "one field"])
def test_the_reference_of_em_routing_is_procedure_1_number_by_number(name: str) -> None:
    call = em_call(FIELDS[name], Case(1, 2, 2), side=2)
    poses, active = route_em_reference(call)
    right = em_in_loops(call)
    torch.testing.assert_close(poses[0].flatten(-2), right[0])
    torch.testing.assert_close(active[0], right[1])


@pytest.mark.property("alone-in-grids", "an image is routed between grids as if alone")
def test_an_image_is_routed_as_if_alone() -> None:
    fields = FIELDS["odd sides"]
    together = route_em_streamed(em_call(fields))[0]
    alone = em_call(fields)
    one = EMCall(
        alone.poses[1:2], alone.activations[1:2], alone.weights, alone.beta_u, alone.beta_a, fields,
        alone.options, alone.offsets,
    )  # fmt: skip
    torch.testing.assert_close(route_em_streamed(one)[0], together[1:2])


@pytest.mark.defect("alone-in-grids", "positions folded into the batch")
def test_positions_folded_into_the_batch_are_another_algorithm() -> None:
    """Each parent position routed by itself is a softmax over the types at that position."""
    fields = FIELDS["odd sides"]
    call = dynamic_call(fields, bias=False, priors=False)
    padded = torch.nn.functional.pad(call.child_poses, (0, 0, 0, 0, 0, 1))[:, fields.children]
    patches = padded.permute(0, 2, 1, 3, 4).flatten(0, 1)  # [B P, K, T, D]
    one = Fields(fields.kernel, fields.kernel, (1,) * len(fields.kernel))
    folded = FieldCall(patches, call.packed_weights, one, call.options)
    found = route_field_call(folded).unflatten(0, (-1, fields.num_parents))[:, :, 0]
    by_position = dynamic_call(fields, bias=False, priors=False, competition="position")
    torch.testing.assert_close(found, route_field_call(by_position))
    assert (found - route_field_call(call)).abs().max() > 0.01


@pytest.mark.property("grids")
def test_streamed_keeps_neither_votes_nor_patches() -> None:
    def kept(route: object, call: FieldCall | EMCall) -> int:
        sizes = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            route(call)  # type: ignore[operator]
        own = {each.untyped_storage().data_ptr() for each in vars(call).values() if isinstance(each, Tensor)}
        return sum(size for place, size in sizes.items() if place not in own)

    fields = Fields((10, 10), (3, 3), (1, 1))
    for call, reference, streamed in (
        (dynamic_call(fields, Case(2, 8, 8)), route_fields_reference, route_fields_streamed),
        (em_call(fields, Case(2, 8, 8)), route_em_reference, route_em_streamed),
    ):
        assert kept(reference, call) > 10 * kept(streamed, call)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((5,), (6,), (1,)), "kernel=(6,) is larger than child_shape=(5,)"),
        (((5, 4), (3,), (1, 1)), "kernel=(3,) has 1 numbers"),
        (((5, 0), (3, 1), (1, 1)), "child_shape=(5, 0)"),
        (((5, 4), (3, 3), (1, 1), "full"), "padding='full' is unknown"),
    ],
)
def test_what_cannot_be_a_field_is_refused(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(ShapeError) as caught:
        Fields(*arguments)  # type: ignore[arg-type]
    assert words in str(caught.value)
