"""The trace of routing between grids is that of votes and logits written out, however the work is cut."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from capsdist.ops import squash
from capsdist.routing.common.fields import Fields, whole_field
from capsdist.routing.common.sharing import share
from capsdist.routing.dynamic.fields import trace
from capsdist.routing.dynamic.fields.api import route_field_call
from capsdist.routing.dynamic.fields.call import FieldCall
from capsdist.routing.dynamic.fields.trace import FieldTrace, trace_fields
from capsdist.routing.dynamic.options import RoutingOptions

GRIDS = [
    Fields((5, 4), (3, 2), (2, 1), "same"), Fields((6, 5), (2, 2), (3, 2)), Fields((7,), (3,), (1,), "same"),
    whole_field((3, 4)), Fields((2, 3), (1, 1), (1, 1)),
]  # fmt: skip


def call_of(fields: Fields, competition: str, *, none: bool, learned: bool, iterations: int) -> FieldCall:
    generator = torch.Generator().manual_seed(fields.num_children + iterations)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return FieldCall(
        draw(3, fields.num_children, 2, 3),
        draw(4, 5, 3, 2 * fields.num_matrices) * 2,
        fields,
        RoutingOptions(iterations, none),
        competition,  # pyright: ignore[reportArgumentType]
        draw(4, 5) if learned else None,
        draw(2 * fields.size, 4) if learned else None,
    )


def written_out(call: FieldCall) -> FieldTrace:
    """The trace from votes, a loop over children, and the definitions."""
    fields, none = call.fields, call.options.none_of_the_above
    seen = functional.pad(call.child_poses, (0, 0, 0, 0, 0, 1))[:, fields.children]
    votes = torch.einsum("bkptd,jedtk->bkptje", seen, call.unpacked)
    logits = torch.zeros(votes.shape[:-1], dtype=votes.dtype)
    if call.log_priors is not None:
        logits = logits + call.log_priors.unflatten(0, (-1, fields.size)).transpose(0, 1)[:, None]
    there = fields.children < fields.num_children  # [K, P]
    changes, entropies, shares = [], [], []
    for _ in range(call.options.iterations):
        coupling = share(logits, fields, call.competition, none_of_the_above=none)
        totals = torch.einsum("bkptj,bkptje->bpje", coupling, votes)
        poses = squash(totals if call.bias is None else totals + call.bias)
        agreement = torch.einsum("bkptje,bpje->bkptj", votes, poses)
        changes.append(agreement[:, there].abs().mean((1, 2, 3)))
        distributions = []  # of each image: lists of choices
        for child in range(fields.num_children):
            own = coupling[:, fields.children == child]  # [b, places, T, J]
            if call.competition == "field":
                distributions.append(own.transpose(1, 2).flatten(2))
            else:
                distributions += list(own.unbind(1))
        distributions = [each for each in distributions if each.shape[2]]
        found = []
        for each in distributions:
            rest = 1 - each.sum(2, keepdim=True)
            assert rest.abs().max() < 1e-12 or none
            whole = torch.cat((each, rest), 2) if none else each
            if whole.shape[2] > 1:
                found.append(torch.special.entr(whole.clamp(min=0)).sum(2) / math.log(whole.shape[2]))
        entropies.append(torch.stack(found).mean((0, 2)) if found else torch.zeros(3, dtype=votes.dtype))
        by_type = torch.stack([each.unflatten(2, (-1, 4)).sum(2) for each in distributions])
        shares.append(by_type.mean((0, 2)))
        logits = logits + agreement
    return FieldTrace(torch.stack(changes), torch.stack(entropies), torch.stack(shares))


@pytest.mark.parametrize("fields", GRIDS)
@pytest.mark.parametrize("competition", ["field", "position"])
@pytest.mark.parametrize(("none", "learned", "iterations"), [(False, False, 3), (True, True, 2)])
def test_the_trace_is_that_of_votes_written_out(
    fields: Fields, competition: str, none: bool, learned: bool, iterations: int
) -> None:
    call = call_of(fields, competition, none=none, learned=learned, iterations=iterations)
    for found, wanted in zip(trace_fields(call), written_out(call), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


def test_blocks_of_images_do_not_change_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(GRIDS[0], "field", none=True, learned=True, iterations=3)
    whole = trace_fields(call)
    monkeypatch.setattr(trace, "_BLOCK_BYTES", 1)
    for found, wanted in zip(trace_fields(call), whole, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_it_ends_where_routing_ends() -> None:
    call = call_of(GRIDS[0], "field", none=False, learned=True, iterations=3)
    block = trace._Block(call)
    trace_of = trace._traced(call)
    assert trace_of.type_shares.sum(2).allclose(torch.ones(3, 3, dtype=torch.float64))
    pose = torch.zeros_like(block.state)
    assert call.bias is not None
    for _ in range(3):
        totals = torch.zeros_like(block.state)
        for logits, add_to in block.by_type(block.state, priors=True):
            add_to(totals, block.coupling(logits))
        pose = squash(totals + call.bias)
        block.state += pose
    torch.testing.assert_close(pose, route_field_call(call), atol=1e-12, rtol=0)
