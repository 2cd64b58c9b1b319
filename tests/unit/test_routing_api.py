"""The public functions of routing: layouts, dtypes, explanations, and what they do not promise."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from capsdist.config import Routing
from capsdist.errors import ShapeError
from capsdist.routing import (
    RoutingKeywords,
    RoutingOptions,
    explain,
    pack_weights,
    route,
    route_packed,
    route_reference,
    unpack_weights,
)
from capsdist.routing.dynamic import api, backends
from routing_cases import kept_for_backward

POSES, WEIGHTS = torch.zeros(2, 5, 3), torch.zeros(5, 4, 3, 6)


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


def test_every_option_but_iterations_is_a_keyword() -> None:
    names = {field.name for field in dataclasses.fields(RoutingOptions)}
    assert names == {"iterations", *RoutingKeywords.__annotations__}
    others = {"algorithm", "groups", "hidden_capsules", "concurrent"}  # of other algorithms
    assert names | others == set(Routing.model_fields)
    assert Routing().model_dump(exclude=others) == dataclasses.asdict(RoutingOptions())


def test_options_are_frozen_and_of_pythons_own_types() -> None:
    options = RoutingOptions(np.int64(2), np.bool_(True))  # pyright: ignore[reportArgumentType]
    assert [type(options.iterations), type(options.none_of_the_above)] == [int, bool]
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.iterations = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("backend", ["auto", "streamed", "reference"])
def test_both_layouts_give_the_same(backend) -> None:
    poses, weights, bias = draw(3, 7, 4), draw(7, 5, 4, 6, seed=1), draw(5, 6, seed=2)
    plain = route(poses, weights, 2, bias=bias, none_of_the_above=True, backend=backend)
    packed = route_packed(poses, pack_weights(weights), 2, bias=bias, none_of_the_above=True, backend=backend)
    assert plain.shape == (3, 5, 6)
    torch.testing.assert_close(plain, packed)


@pytest.mark.parametrize("backend", ["streamed", "reference"])
@pytest.mark.parametrize("poses_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights_dtype", [torch.float32, torch.bfloat16])
def test_results_and_gradients_have_the_dtype_of_their_operand(backend, poses_dtype, weights_dtype) -> None:
    poses = draw(2, 5, 3, dtype=poses_dtype).requires_grad_()
    weights = draw(5, 4, 3, 6, dtype=weights_dtype).requires_grad_()
    bias = draw(4, 6).requires_grad_()
    parent_poses = route(poses, weights, bias=bias, backend=backend)
    parent_poses.sum().backward()
    assert parent_poses.dtype == poses_dtype
    for operand in (poses, weights, bias):
        assert operand.grad is not None
        assert operand.grad.dtype == operand.dtype


@pytest.mark.parametrize("backend", ["streamed", "reference"])
def test_an_empty_batch_gives_an_empty_result(backend) -> None:
    poses, weights = torch.zeros(0, 5, 3, requires_grad=True), draw(5, 4, 3, 6).requires_grad_()
    parent_poses = route(poses, weights, backend=backend)
    parent_poses.sum().backward()
    assert parent_poses.shape == (0, 4, 6)
    assert weights.grad is not None
    assert (weights.grad == 0).all()


@pytest.mark.parametrize("backend", ["streamed", "reference"])
def test_iterations_are_any_integer(backend) -> None:
    poses, weights = draw(2, 5, 3), draw(5, 4, 3, 6)
    expected = route(poses, weights, 2, backend=backend)
    for iterations in (np.int64(2), np.uint8(2), torch.tensor(2)):
        assert torch.equal(route(poses, weights, iterations, backend=backend), expected)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("backend", ["streamed", "reference"])
@pytest.mark.parametrize("none", [False, True])
def test_truth_values_are_of_any_type(backend, none: bool) -> None:
    poses, weights = draw(2, 5, 3), draw(5, 4, 3, 6)
    expected = route(poses, weights, none_of_the_above=none, backend=backend)
    assert torch.equal(route(poses, weights, none_of_the_above=np.bool_(none), backend=backend), expected)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("backend", ["streamed", "reference"])
def test_without_numbers_there_are_shapes(backend) -> None:
    poses, weights = POSES.to("meta").requires_grad_(), WEIGHTS.to("meta")
    parent_poses = route(poses, weights, backend=backend)
    (grad,) = torch.autograd.grad(parent_poses.sum(), poses)
    assert (parent_poses.shape, grad.shape) == ((2, 4, 6), (2, 5, 3))


@pytest.mark.parametrize("backend", ["streamed", "reference"])
def test_options_reach_the_backend(backend) -> None:
    poses, weights = draw(3, 7, 4).double(), draw(7, 5, 4, 6, seed=1).double()
    priors = draw(7, 5, seed=2).double().requires_grad_()
    options = {"log_priors": priors, "none_of_the_above": True, "gradient": "last"}
    expected = route_reference(poses, weights, 3, **options)
    found = route(poses, weights, 3, backend=backend, **options)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(result.sum(), priors)[0] for result in (found, expected)]
    torch.testing.assert_close(*grads)
    packed = route_packed(poses, pack_weights(weights), 3, backend=backend, **options)
    torch.testing.assert_close(packed, expected)


def test_a_parameter_is_kept_as_it_is() -> None:
    parameter = torch.nn.Parameter(pack_weights(draw(7, 5, 4, 6)))
    kept = kept_for_backward(lambda: route_packed(draw(3, 7, 4), parameter))
    assert any(tensor is parameter for tensor in kept)


NEVER_STORED = "never stores votes, and has its own backward pass"
EXPLAINED = [
    pytest.param(
        {},
        """
        fused      refused: child_poses are on the CPU
        streamed   taken: never stores votes, and has its own backward pass
        reference  not needed: Procedure 1 as it is written, which keeps all votes
        """,
        id="auto",
    ),
    pytest.param(
        {"gradient": "last", "backend": "reference"},
        """
        fused      refused: gradient='last' is not in its kernels
        streamed   not needed: never stores votes, and has its own backward pass
        reference  taken: Procedure 1 as it is written, which keeps all votes
        """,
        id="by-name",
    ),
    pytest.param(
        {"recompute": "iterations"},
        """
        fused      refused: recompute='iterations' is for autograd, and this backend has its own backward pass
        streamed   refused: recompute='iterations' is for autograd, and this backend has its own backward pass
        reference  taken: Procedure 1 as it is written, which keeps all votes
        """,
        id="recompute",
    ),
]


@pytest.mark.parametrize(("options", "text"), EXPLAINED)
def test_the_explanation_has_a_line_for_each_backend(options: dict, text: str) -> None:
    assert str(explain(POSES, WEIGHTS, **options)) == inspect.cleandoc(text)


@pytest.mark.parametrize("options", [example.values[0] for example in EXPLAINED])
def test_the_backend_that_is_explained_is_the_one_that_runs(
    monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    ran: list[str] = []
    for backend in ("streamed", "reference"):
        function = getattr(backends, f"route_{backend}")
        spied = partial(_spied, ran, backend, function)
        monkeypatch.setattr(backends, f"route_{backend}", spied)
    route(POSES, WEIGHTS, **options)
    assert ran == [explain(POSES, WEIGHTS, **options).backend]


def _spied(ran: list[str], backend: str, function, *args, **options) -> Tensor:
    ran.append(backend)
    return function(*args, **options)


def test_on_the_cpu_kernels_run_by_name_and_interpreted_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ShapeError,
        match="cannot be taken: the operands are on cpu; it runs on an NVIDIA GPU, or for tests with TRITON",
    ):
        explain(POSES, WEIGHTS, backend="fused")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert explain(POSES, WEIGHTS, backend="fused").backend == "fused"
    assert explain(POSES, WEIGHTS).backend == "streamed"


def test_on_another_device_the_kernels_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = types.ModuleType("capsdist.routing.dynamic.fused")
    answers = {"meta": "they know no meta device"}
    kernels.fused_refusal = lambda poses, *args, **options: answers.get(poses.device.type)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "capsdist.routing.dynamic.fused", kernels)
    poses, weights = POSES.to("meta"), WEIGHTS.to("meta")
    refused = explain(poses, weights)
    assert (refused.backend, refused.others["fused"]) == ("streamed", "refused: they know no meta device")
    answers.clear()
    taken = explain(poses, weights)
    assert (taken.backend, taken.others["streamed"]) == ("fused", f"not needed: {NEVER_STORED}")


def test_the_reference_has_a_second_derivative() -> None:
    poses, weights = draw(2, 3, 2).double(), draw(3, 4, 2, 3).double()
    assert torch.autograd.gradgradcheck(
        lambda u, w: route(u, w, backend="reference"), (poses.requires_grad_(), weights.requires_grad_())
    )


def test_the_examples_of_the_docstrings_run() -> None:
    names = {"torch": torch, "route": route, "explain": explain}
    tests = doctest.DocTestFinder().find(api, globs=names)
    results = [doctest.DocTestRunner().run(test) for test in tests]
    assert sum(result.attempted for result in results) == 3
    assert sum(result.failed for result in results) == 0
