"""The trace of routing is that of the reference's own logits, however the work is cut."""

from __future__ import annotations

import doctest
import itertools
import math
import re

import pytest
import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing import logits_reference, pack_weights, trace_routing
from capsdist.routing.dynamic import cuts, trace
from capsdist.routing.dynamic.trace import Trace
from routing_cases import Operands, operands

SIZES = [(1, 1, 1, 1, 1), (3, 7, 5, 4, 2), (11, 21, 6, 3, 6)]  # B, I, J, D, E


def traced(given: Operands, iterations: int, none: bool) -> Trace:
    return trace_routing(
        given.child_poses,
        pack_weights(given.weights),
        iterations,
        bias=given.bias,
        log_priors=given.log_priors,
        none_of_the_above=none,
    )


def logits_of_the_reference(given: Operands, iterations: int, none: bool) -> list[Tensor]:
    """The logits [B, I, J] that the reference couples by, in every iteration."""
    logits = logits_reference(
        given.child_poses,
        given.weights,
        iterations,
        bias=given.bias,
        log_priors=given.log_priors,
        none_of_the_above=none,
    )
    return list(logits)


def trace_of(logits: list[Tensor], none: bool) -> Trace:
    """The trace of all but the last logits, straight from the definitions."""
    changes, entropies, shares = [], [], []
    for before, after in itertools.pairwise(logits):
        changes.append((after - before).abs().mean((1, 2)))
        padded = torch.nn.functional.pad(before, (0, int(none)))
        coupling = padded.softmax(2)
        entropies.append(-(coupling * coupling.log()).sum(2).mean(1))
        shares.append(coupling[..., : before.shape[2]].mean(1))
    return Trace(torch.stack(changes), torch.stack(entropies), torch.stack(shares))


@pytest.mark.property("trace", "the trace tells of the logits of Procedure 1")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("iterations", [1, 2, 4])
@pytest.mark.parametrize("none", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_the_trace_is_that_of_the_references_logits(
    sizes: tuple[int, int, int, int, int],
    iterations: int,
    none: bool,
    learned: bool,
) -> None:
    given = operands(sizes, seed=sum(sizes) + iterations, bias=learned, priors=learned)
    expected = trace_of(logits_of_the_reference(given, iterations + 1, none), none)
    for found, wanted in zip(traced(given, iterations, none), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("chunk_bytes", [10_000, 1])
def test_cuts_do_not_change_the_trace(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    given = operands((11, 21, 6, 3, 6), seed=chunk_bytes, bias=True, priors=True)
    whole = traced(given, 3, none=True)
    monkeypatch.setattr(cuts, "chunk_bytes", lambda device: chunk_bytes)
    monkeypatch.setattr(cuts, "BLOCK_BYTES", 10_000)
    for found, wanted in zip(traced(given, 3, none=True), whole, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.defect("trace", "logits averaged over the batch")
def test_logits_averaged_over_the_batch_would_show() -> None:
    given = operands((3, 7, 5, 4, 2), seed=1)
    logits = logits_of_the_reference(given, 4, none=False)
    averaged = [each.mean(0, keepdim=True).expand_as(each) for each in logits]
    found = traced(given, 3, none=False)
    expected = trace_of(averaged, none=False)
    assert (found.coupling_entropy - expected.coupling_entropy).abs().max() > 1e-3


@pytest.mark.parametrize("none", [False, True])
def test_undecided_children_and_their_shares(none: bool) -> None:
    given = operands((2, 7, 5, 4, 3), seed=2)
    found = traced(given, 3, none)
    choices = 5 + none
    assert found.coupling_entropy[0].tolist() == pytest.approx([math.log(choices)] * 2)
    assert found.parent_shares[0].flatten().tolist() == pytest.approx([1 / choices] * 10)
    sums = found.parent_shares.sum(2)
    assert (sums < 1).all() if none else torch.allclose(sums, torch.ones_like(sums))
    assert (found.coupling_entropy[1:] < math.log(choices)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_traced_in_fp32_without_gradients(dtype: torch.dtype) -> None:
    given = operands((3, 7, 5, 4, 2), seed=3)
    rounded = given.to(dtype)
    poses = rounded.child_poses.requires_grad_()
    found = traced(rounded.with_(child_poses=poses), 3, none=False)
    exact = traced(rounded.with_(child_poses=poses.detach()).to(torch.float64), 3, none=False)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert not one.requires_grad
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_routed_is_not_traced() -> None:
    message = "iterations=0 must be a whole number of at least 1; the paper has 3"
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        trace_routing(torch.zeros(2, 5, 3), torch.zeros(4, 6, 3, 5), 0)


def test_a_trace_does_not_pass_for_a_constant() -> None:
    packed = torch.zeros(4, 6, 3, 5)
    with pytest.raises(NotImplementedError, match=r"^trace_routing has no gradient"):
        torch.func.grad(lambda poses: trace_routing(poses, packed).logit_change.sum())(torch.zeros(2, 5, 3))


def test_the_papers_layout_is_named_where_it_does_not_fit() -> None:
    message = (
        "child_poses [2, 5, 3] do not fit packed_weights [J, E, D, I] = [5, 4, 3, 6], but would if these "
        "were [I, J, D, E]; pass pack_weights(weights) or call route"
    )
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        trace_routing(torch.zeros(2, 5, 3), torch.zeros(5, 4, 3, 6))


def test_without_numbers_there_are_shapes() -> None:
    found = trace_routing(torch.zeros(2, 5, 3, device="meta"), torch.zeros(4, 6, 3, 5, device="meta"), 2)
    assert [each.shape for each in found] == [(2, 2), (2, 2), (2, 2, 4)]


def test_the_example_of_the_docstring_runs() -> None:
    names = {"torch": torch, "trace_routing": trace_routing}
    results = [doctest.DocTestRunner().run(test) for test in doctest.DocTestFinder().find(trace, globs=names)]
    assert (sum(r.attempted for r in results), sum(r.failed for r in results)) == (2, 0)
