"""The public functions of routing: layouts, dtypes, refusals, and what they do not promise."""

from __future__ import annotations

import doctest
import re

import pytest
import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing import choose_form, dispatch, pack_weights, route, route_packed, unpack_weights


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_packing_moves_every_weight_and_unpacking_is_a_view() -> None:
    weights = draw(7, 4, 3, 5)
    packed = pack_weights(weights)
    assert packed.shape == (4, 5, 3, 7)
    assert packed.is_contiguous()
    assert packed[1, 2, 0, 6] == weights[6, 1, 0, 2]
    assert torch.equal(unpack_weights(packed), weights)
    assert unpack_weights(packed).data_ptr() == packed.data_ptr()
    assert pack_weights(unpack_weights(packed)).data_ptr() == packed.data_ptr()


@pytest.mark.parametrize("form", ["auto", "streamed", "reference"])
def test_both_layouts_give_the_same(form) -> None:
    poses, weights, bias = draw(3, 7, 4), draw(7, 5, 4, 6, seed=1), draw(5, 6, seed=2)
    plain = route(poses, weights, 2, bias=bias, none_of_the_above=True, form=form)
    packed = route_packed(poses, pack_weights(weights), 2, bias=bias, none_of_the_above=True, form=form)
    assert plain.shape == (3, 5, 6)
    torch.testing.assert_close(plain, packed)


@pytest.mark.parametrize("form", ["streamed", "reference"])
@pytest.mark.parametrize("poses_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights_dtype", [torch.float32, torch.bfloat16])
def test_results_and_gradients_have_the_dtype_of_their_operand(form, poses_dtype, weights_dtype) -> None:
    poses = draw(2, 5, 3, dtype=poses_dtype).requires_grad_()
    weights = draw(5, 4, 3, 6, dtype=weights_dtype).requires_grad_()
    bias = draw(4, 6).requires_grad_()
    parent_poses = route(poses, weights, bias=bias, form=form)
    parent_poses.sum().backward()
    assert parent_poses.dtype == poses_dtype
    for operand in (poses, weights, bias):
        assert operand.grad is not None
        assert operand.grad.dtype == operand.dtype


@pytest.mark.parametrize("form", ["streamed", "reference"])
def test_an_empty_batch_gives_an_empty_result(form) -> None:
    poses, weights = torch.zeros(0, 5, 3, requires_grad=True), draw(5, 4, 3, 6).requires_grad_()
    parent_poses = route(poses, weights, form=form)
    parent_poses.sum().backward()
    assert parent_poses.shape == (0, 4, 6)
    assert weights.grad is not None
    assert (weights.grad == 0).all()


@pytest.mark.parametrize(
    ("name", "form"), [("auto", "streamed"), ("streamed", "streamed"), ("reference", "reference")]
)
def test_names_of_forms(name: str, form: str) -> None:
    assert choose_form(name) == form


def test_streamed_refuses_a_second_derivative() -> None:
    poses = draw(2, 5, 3).requires_grad_()
    message = "streamed routing is differentiable once; for create_graph=True choose form='reference'"
    with pytest.raises(NotImplementedError, match=f"^{re.escape(message)}$"):
        torch.autograd.grad(route(poses, draw(5, 4, 3, 6)).sum(), poses, create_graph=True)


def test_the_reference_has_a_second_derivative() -> None:
    poses, weights = draw(2, 3, 2).double(), draw(3, 4, 2, 3).double()
    assert torch.autograd.gradgradcheck(
        lambda u, w: route(u, w, form="reference"), (poses.requires_grad_(), weights.requires_grad_())
    )


def test_the_example_of_the_docstring_runs() -> None:
    test = doctest.DocTestFinder().find(
        route, "route", module=dispatch, globs={"torch": torch, "route": route}
    )
    assert sum(doctest.DocTestRunner().run(example).attempted for example in test) == 2


POSES, WEIGHTS = torch.zeros(2, 5, 3), torch.zeros(5, 4, 3, 6)
REFUSED = [
    pytest.param(
        {"child_poses": torch.zeros(2, 15)},
        "child_poses has shape [2, 15]; pass [B, I, D], 3 dimensions",
        id="poses-dims",
    ),
    pytest.param(
        {"weights": torch.zeros(5, 4, 3)},
        "weights has shape [5, 4, 3]; pass [I, J, D, E], 4 dimensions",
        id="weights-dims",
    ),
    pytest.param(
        {"child_poses": torch.zeros(2, 6, 3)},
        "child_poses [2, 6, 3] do not fit weights [I, J, D, E] = [5, 4, 3, 6]; "
        "pass [B, I, D] = [B, 5, 3] or other weights",
        id="children",
    ),
    pytest.param(
        {"child_poses": torch.zeros(2, 5, 8)},
        "child_poses [2, 5, 8] do not fit weights [I, J, D, E] = [5, 4, 3, 6]; "
        "pass [B, I, D] = [B, 5, 3] or other weights",
        id="child-dim",
    ),
    pytest.param(
        {"weights": torch.zeros(5, 0, 3, 6)},
        "weights [I, J, D, E] = [5, 0, 3, 6] are empty; give all sizes at least 1",
        id="no-parents",
    ),
    pytest.param({"bias": torch.zeros(6)}, "bias has shape [6]; pass [J, E] = [4, 6]", id="bias-shape"),
    pytest.param(
        {"iterations": 0},
        "iterations=0 must be a whole number of at least 1; the paper has 3",
        id="no-iterations",
    ),
    pytest.param(
        {"iterations": 2.5},
        "iterations=2.5 must be a whole number of at least 1; the paper has 3",
        id="half-iterations",
    ),
    pytest.param(
        {"iterations": True},
        "iterations=True must be a whole number of at least 1; the paper has 3",
        id="bool-iterations",
    ),
    pytest.param(
        {"form": "triton"},
        "form='triton' is no form of routing; choose 'auto', 'streamed' or 'reference'",
        id="form",
    ),
    pytest.param(
        {"child_poses": torch.zeros(2, 5, 3, dtype=torch.int64)},
        "child_poses has dtype torch.int64; make it floating, such as with .float()",
        id="integers",
    ),
    pytest.param(
        {"weights": WEIGHTS.double()},
        "weights has dtype torch.float64 but child_poses torch.float32; make all of them float64, or none",
        id="float64-weights",
    ),
    pytest.param(
        {"child_poses": POSES.double(), "weights": WEIGHTS.double(), "bias": torch.zeros(4, 6)},
        "bias has dtype torch.float32 but child_poses torch.float64; make all of them float64, or none",
        id="float64-poses",
    ),
    pytest.param(
        {"weights": WEIGHTS.to("meta")},
        "weights is on meta but child_poses on cpu; use one device",
        id="device",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refusals_name_value_and_remedy(changes: dict, message: str) -> None:
    arguments: dict = {"child_poses": POSES, "weights": WEIGHTS} | changes
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        route(**arguments)


def test_packed_weights_are_named_in_the_refusal() -> None:
    message = "packed_weights has shape [5, 4, 3]; pass [J, E, D, I], 4 dimensions"
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        route_packed(POSES, torch.zeros(5, 4, 3))
