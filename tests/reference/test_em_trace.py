"""The trace of EM routing is that of Procedure 1 in plain loops, however the work is cut, and finite."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from capsdist.routing.common.fields import Fields, whole_field
from capsdist.routing.em import streamed_passes
from capsdist.routing.em.api import route_em_call
from capsdist.routing.em.options import EMCall, EMOptions
from capsdist.routing.em.trace import EMTrace, trace_em

GRIDS = {
    "odd sides": Fields((5, 3), (3, 2), (2, 1)),
    "same padding": Fields((3, 4), (3, 2), (2, 1), "same"),
    "one direction": Fields((7,), (3,), (2,), "same"),
    "one field": whole_field((3, 2)),
    "children that nobody sees": Fields((5, 4), (2, 1), (3, 2)),
}
Capsule = tuple[int, int]  # position and type


def call_of(fields: Fields, types: int = 2, parents: int = 3, images: int = 2, **options: object) -> EMCall:
    generator = torch.Generator().manual_seed(fields.num_children)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return EMCall(
        draw(images, fields.num_children, types, 2, 2),
        draw(images, fields.num_children, types).sigmoid(),
        draw(fields.num_matrices, types, parents, 2, 2),
        0.1 * draw(parents),
        0.1 * draw(parents),
        fields,
        EMOptions(inverse_temperature=0.7, **options),  # type: ignore[arg-type]
        draw(fields.size, 2, 2),
    )


def votes_of(call: EMCall, image: int) -> dict[tuple[Capsule, Capsule], Tensor]:
    """The votes of one image, for each pair of a child and a parent that sees it."""
    fields = call.fields
    weights = call.weights.expand(fields.size, *call.weights.shape[1:])
    votes = {}
    for k, row in enumerate(fields.children.tolist()):
        for p, n in enumerate(row):
            if n == fields.num_children:
                continue
            for t, c in itertools.product(*map(range, call.weights.shape[1:3])):
                vote = call.poses[image, n, t] @ weights[k, t, c]
                votes[(n, t), (p, c)] = (vote if call.offsets is None else vote + call.offsets[k]).flatten()
    return votes


def choices_of(pairs: list[tuple[Capsule, Capsule]], competition: str) -> list[tuple[Capsule, list[Capsule]]]:
    """Every child with the parents that compete for it."""
    chosen = []
    for i in sorted({i for i, _ in pairs}):
        seeing = [j for child, j in pairs if child == i]
        if competition == "field":
            chosen.append((i, seeing))
        else:
            chosen += [(i, [j for j in seeing if j[0] == p]) for p in sorted({p for p, _ in seeing})]
    return chosen


def added(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).sum(0)


def in_loops(call: EMCall, image: int) -> tuple[EMTrace, Tensor]:
    """The trace of Procedure 1 of one image, by loops over children and parents; and the parents' means."""
    options, votes = call.options, votes_of(call, image)
    chosen = choices_of(list(votes), options.competition)
    zero = torch.zeros((), dtype=torch.float64)
    assigned = {(i, j): zero + 1 / len(among) for i, among in chosen for j in among}
    before = dict.fromkeys(votes, zero)
    changes, entropies, shares, mean, logits = [], [], [], {}, {}
    for inverse_temperature in options.lambdas():
        if logits:  # E-step, of the M-step before
            change = []
            for i, among in chosen:
                own = torch.stack([logits[i, j] for j in among])
                for j, share, moved in zip(among, own.softmax(0), own - own.mean(), strict=True):
                    change.append((moved - before[i, j]).abs())
                    assigned[i, j], before[i, j] = share, moved
            changes.append(torch.stack(change).mean())
        found = [zero]
        for i, among in chosen:
            if len(among) > 1:
                own = torch.stack([assigned[i, j] for j in among])
                found.append(torch.special.entr(own).sum() / math.log(len(among)))
        entropies.append(added(found) / max(1, len(found) - 1))
        for c in range(call.weights.shape[2]):
            shares.append(added([share for (_, j), share in assigned.items() if j[1] == c]) / len(chosen))
        for j in sorted({j for _, j in votes}):
            own = {i: assigned[i, j] * call.activations[image, i[0], i[1]] for i, k in votes if k == j}
            total = added(list(own.values()))
            mean[j] = added([share * votes[i, j] for i, share in own.items()]) / total
            spread = added([share * (votes[i, j] - mean[j]) ** 2 for i, share in own.items()]) / total
            variance = spread + options.variance_floor
            cost = ((call.beta_u[j[1]] + variance.sqrt().log()) * total).sum()
            active = torch.sigmoid(inverse_temperature * (call.beta_a[j[1]] - cost))
            for i in own:
                exponent = -((votes[i, j] - mean[j]) ** 2 / (2 * variance)).sum()
                logits[i, j] = active.log() + exponent - (2 * torch.pi * variance).log().sum() / 2
    change = torch.stack(changes) if changes else zero[None][:0]
    trace = EMTrace(
        change, torch.stack(entropies), torch.stack(shares).unflatten(0, (options.iterations, -1))
    )
    return trace, torch.stack([mean[j] for j in sorted(mean)])


@pytest.mark.property("em-trace", "the trace of EM routing tells of the assignments of Procedure 1")
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("competition", ["field", "position"])
@pytest.mark.parametrize(("parents", "iterations"), [(3, 3), (1, 2), (2, 1)])
def test_the_trace_is_that_of_loops(name: str, competition: str, parents: int, iterations: int) -> None:
    call = call_of(GRIDS[name], parents=parents, iterations=iterations, competition=competition)
    found = trace_em(call)
    poses, _ = route_em_call(call)
    assert found.logit_change.shape == (iterations - 1, 2)
    for image in range(2):
        right, mean = in_loops(call, image)
        torch.testing.assert_close(poses[image].flatten(0, 1).flatten(1), mean)  # the loops are the algorithm
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one[:, image], other, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found.type_shares.sum(2), torch.ones_like(found.relative_entropy))


@pytest.mark.defect("em-trace", "a softmax over the types at each position")
def test_a_softmax_at_each_position_would_show() -> None:
    call = call_of(GRIDS["odd sides"], iterations=3)
    by_position = trace_em(replace(call, options=replace(call.options, competition="position")))
    assert (by_position.relative_entropy - trace_em(call).relative_entropy)[1:].abs().min() > 1e-2


@pytest.mark.parametrize("name", ["same padding", "one field"])
def test_tiles_do_not_change_the_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(GRIDS[name], images=5, iterations=3)
    whole = trace_em(call)
    monkeypatch.setattr(streamed_passes, "_MAX_TILE_BYTES", 1 << 10)
    for found, wanted in zip(trace_em(call), whole, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("competition", ["field", "position"])
def test_it_is_finite_of_absent_children_and_of_parents_without_share(
    dtype: torch.dtype, competition: str
) -> None:
    call = call_of(GRIDS["same padding"], images=3, iterations=4, competition=competition)
    activations = call.activations.clone()
    activations[0], activations[1, ::2] = 0.0, 0.0
    weights = call.weights.clone()
    weights[:, :, 0] *= 1e4  # far from each other, where the votes for other types agree
    weights[:, :, 1] = 0.0
    poses, beta_u, beta_a = (each.to(dtype) for each in (call.poses, call.beta_u, call.beta_a))
    activations, weights = activations.to(dtype), weights.to(dtype)
    found = trace_em(EMCall(poses, activations, weights, beta_u, beta_a, call.fields, call.options))
    assert all(each.isfinite().all() for each in found)
    assert found.type_shares[-1, :, 0].max() < 1e-3
    assert found.relative_entropy.min() >= 0
    assert found.relative_entropy.max() <= 1 + 1e-6


def test_a_trace_does_not_pass_for_a_constant() -> None:
    call = call_of(GRIDS["one field"])
    with pytest.raises(NotImplementedError, match=r"^trace_em has no gradient"):
        torch.func.grad(lambda poses: trace_em(replace(call, poses=poses)).logit_change.sum())(call.poses)
