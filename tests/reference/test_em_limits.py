"""EM routing of parents without active children, and of those with one child: finite and right."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_fields import DEFECTS, FIELDS, Case, em_call, em_in_loops, found_by, largest_error, table
from torch import Tensor

from capsdist.routing.common.fields import Fields
from capsdist.routing.em import reference, streamed_passes
from capsdist.routing.em.options import EMCall
from capsdist.routing.em.reference import route_em_reference
from capsdist.routing.em.streamed import route_em_streamed

BACKENDS = {"reference": route_em_reference, "streamed": route_em_streamed}


def one_image(activations: Tensor, fields: Fields) -> None:
    activations[1] = 0


def all_images(activations: Tensor, fields: Fields) -> None:
    activations.zero_()


def one_field(activations: Tensor, fields: Fields) -> None:
    seen = fields.children[:, fields.num_parents // 2]
    activations[0, seen[seen < fields.num_children]] = 0


def all_but_one_child(activations: Tensor, fields: Fields) -> None:
    activations[:, 1:] = 0
    activations[:, 0, 1:] = 0


SILENCE: dict[str, Callable[[Tensor, Fields], None]] = {
    each.__name__: each for each in (one_image, all_images, one_field, all_but_one_child)
}


def call_with(fields: Fields, silence: str, seed: int, case: Case, **options: object) -> EMCall:
    """Random operands, some of whose activations are 0."""
    call = em_call(fields, case, side=2, seed=seed, **options)
    activations = call.activations.detach().clone()
    SILENCE[silence](activations, fields)
    return replace(call, activations=activations.requires_grad_())


def as_fp32(call: EMCall, factor: float = 1) -> EMCall:
    """The call in fp32, its activations times a factor."""
    changed = {
        name: each.detach().float().requires_grad_(each.requires_grad)
        for name, each in vars(call).items()
        if isinstance(each, Tensor)
    }
    changed["activations"] = (call.activations.detach().float() * factor).requires_grad_()
    return replace(call, **changed)


def is_finite(found: list[Tensor]) -> bool:
    return all(bool(each.isfinite().all()) for each in found)


def loops(call: EMCall) -> tuple[Tensor, Tensor]:
    poses, active = em_in_loops(call)
    return poses.unflatten(-1, call.poses.shape[-2:])[None], active[None]


@pytest.mark.property("silent", "EM routing: a parent without active children has pose 0, finite gradients")
@pytest.mark.parametrize("silence", ["all_images", "one_field", "all_but_one_child"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["odd sides", "one direction"])
def test_numbers_and_gradients_are_those_of_loops(name: str, backend: str, silence: str) -> None:
    seed = random.randrange(1 << 30)
    call = call_with(FIELDS[name], silence, seed, Case(1, 2, 2), variance_floor=0.5)  # loops underflow
    found, right = found_by(BACKENDS[backend], call), found_by(loops, call)
    assert is_finite(right), f"seed {seed}"
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9, msg=lambda text: f"{seed}: {text}")
    seen = {parent for child, _, parent in table(FIELDS[name]) if call.activations[0, child].any()}
    silent = sorted(set(range(FIELDS[name].num_parents)) - seen)
    assert silent
    assert (found[0][0, silent] == 0).all()


@pytest.mark.property("silent")
@pytest.mark.parametrize("silence", SILENCE)
@pytest.mark.parametrize("competition", ["field", "position"])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_streamed_agrees_in_both_precisions(fields: Fields, competition: str, silence: str) -> None:
    seed = random.randrange(1 << 30)
    call = call_with(fields, silence, seed, Case(), competition=competition)
    found, right = (found_by(route, call) for route in (route_em_streamed, route_em_reference))
    assert is_finite([*found, *right]), f"seed {seed}"
    assert largest_error(found, right) < 1e-9, f"seed {seed}"
    short = as_fp32(call)
    for route in BACKENDS.values():
        assert is_finite(found_by(route, short)), f"seed {seed}"


@pytest.mark.property("silent")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [1e-20, 1e-30, 1e-34, 1e-37, 1e-40])
def test_gradients_are_finite_however_small_activations_are(factor: float, backend: str) -> None:
    seed = random.randrange(1 << 30)
    call = as_fp32(em_call(FIELDS["odd sides"], seed=seed), factor)
    found = found_by(BACKENDS[backend], call)
    assert is_finite(found), f"seed {seed}"


@pytest.mark.property("silent")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_type_to_which_no_child_gives_a_share_is_finite(backend: str) -> None:
    """The density of its votes, which are spread over a far larger space, is 0 in fp32."""
    seed = random.randrange(1 << 30)
    call = as_fp32(em_call(FIELDS["odd sides"], seed=seed))
    with torch.no_grad():
        call.weights[:, :, 1] *= 1e6
    poses, *rest = found_by(BACKENDS[backend], call)
    assert is_finite([poses, *rest]), f"seed {seed}"
    assert (poses[:, :, 1] == 0).all()
    assert (poses[:, :, 0] != 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("silent", [False, True])
def test_a_parent_with_one_child_has_its_vote_and_the_floor(silent: bool, backend: str) -> None:
    seed, fields = random.randrange(1 << 30), Fields((3,), (1,), (1,))
    call = em_call(fields, Case(2, 1, 4), side=3, seed=seed, iterations=1)
    call = replace(call, activations=(call.activations.detach() * (not silent)).requires_grad_())
    found = found_by(BACKENDS[backend], call)
    assert is_finite(found), f"seed {seed}"
    assert call.offsets is not None
    votes = torch.einsum("bptrx,ktcxs->bpcrs", call.poses, call.weights) + call.offsets
    total, dims = call.activations / 4, votes[0, 0, 0].numel()  # shared by 4 parents
    cost = dims * (call.beta_u + 0.5 * torch.tensor(call.options.variance_floor).double().log()) * total
    active = (call.options.lambdas()[0] * (call.beta_a - cost)).sigmoid()
    expected = found_by(lambda call: (votes * (not silent), active), call)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text: f"seed {seed}: {text}")
    longer = found_by(BACKENDS[backend], replace(call, options=replace(call.options, iterations=3)))
    assert is_finite(longer), f"seed {seed}"
    torch.testing.assert_close(longer[0], found[0], msg=lambda text: f"seed {seed}: {text}")


@pytest.mark.defect("silent", "gradients over the smallest number")
@pytest.mark.parametrize("backend", BACKENDS)
def test_dividing_by_the_smallest_number_is_not_finite(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (reference, streamed_passes):
        monkeypatch.setattr(module, "least_total", lambda dtype: 0.0)
    call = as_fp32(call_with(FIELDS["odd sides"], "one_field", random.randrange(1 << 30), Case()))
    smallest = call.activations.detach().clamp(min=1e-39).requires_grad_()
    assert not is_finite(found_by(BACKENDS[backend], replace(call, activations=smallest)))


@pytest.mark.defect(
    "em", "absent children in the M-step, a cost without the share, one temperature, no parents in the E-step"
)
@pytest.mark.parametrize("defect", DEFECTS)
def test_another_procedure_has_other_numbers(defect: str) -> None:
    call = em_call(FIELDS["odd sides"], Case(1, 2, 2), side=2)
    for found, right in zip(em_in_loops(call, defect), em_in_loops(call), strict=True):
        assert (found - right).abs().max() > 1e-3
