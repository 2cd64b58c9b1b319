"""The streamed backend as an operator: what compilers, autocast and torch.func make of it."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from capsdist.errors import ShapeError
from capsdist.routing import RoutingOptions, explain, route_packed, unpack_weights
from capsdist.routing.dynamic.options import RoutingCall
from capsdist.routing.dynamic.streamed import route_streamed

B, I, J, D, E = 3, 5, 4, 2, 6  # noqa: E741
ONCE = (
    "streamed routing is differentiable once, backward; for other derivatives choose backend='reference', "
    "with no children split over ranks"
)
COMPILER = "inside of a compiler torch.func and forward mode differentiate the reference only"

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


def drawn(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Child poses, packed weights, bias and log priors."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, I, D), (J, E, D, I), (J, E), (I, J)
    poses, weights, bias, priors = (torch.randn(*s, generator=generator, dtype=dtype) for s in shapes)
    return poses, weights, bias, priors


def leaves(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(tensor.requires_grad_() for tensor in drawn(seed, dtype))


def loss(*operands: Tensor, **options: Any) -> Tensor:
    """A number whose gradient depends on all operands."""
    poses, weights, bias, priors = operands
    return route_packed(poses, weights, bias=bias, log_priors=priors, **options).square().sum()


def reference(*operands: Tensor, **options: Any) -> Tensor:
    return loss(*operands, backend="reference", **options)


def compiled(function: Any, backend: Any = "aot_eager") -> Any:
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize("gradient", ["full", "last"])
def test_opcheck_of_the_forward_operator(without: bool, gradient: str) -> None:
    poses, weights, bias, priors = leaves()
    rest = (None, None, 2, False) if without else (bias, priors, 2, True)
    operator = torch.ops.capsdist.route_streamed.default
    torch.library.opcheck(operator, (poses, weights, *rest, gradient, None))


@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False), (False, False, False)])
def test_opcheck_of_the_backward_operator(wanted: tuple[bool, ...]) -> None:
    operands = drawn(dtype=torch.bfloat16)
    grad, totals = torch.ops.capsdist.route_streamed(*operands, 2, False, "full", None)
    operator = torch.ops.capsdist.route_streamed_backward.default
    torch.library.opcheck(operator, (grad, totals, *operands, 2, False, "full", None, *wanted))


@pytest.mark.parametrize("backend", ["auto", "streamed", "reference"])
@pytest.mark.parametrize("options", [{}, {"gradient": "last", "none_of_the_above": True, "iterations": 2}])
def test_compiles_whole(backend: str, options: dict[str, Any]) -> None:
    def step(*operands: Tensor) -> Tensor:
        return loss(*operands, backend=backend, **options)

    operands = leaves()
    expected, found = step(*operands), compiled(step)(*operands)
    assert torch.equal(found, expected)
    grads = [torch.autograd.grad(result, operands) for result in (found, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-14, rtol=0)


def test_a_compiler_sees_one_operator_each_way() -> None:
    programs: list[str] = []

    def backend(program: torch.fx.GraphModule, examples: list[Tensor]) -> Any:
        programs.append(program.code)
        return program

    torch.autograd.grad(compiled(loss, backend)(*(operands := leaves())), operands)
    assert [program.count("capsdist.route_streamed") for program in programs] == [1]


@pytest.mark.parametrize("recompute", ["none", "iterations"])
def test_checkpointed_iterations_compile_too(recompute: str) -> None:
    def step(*operands: Tensor) -> Tensor:
        return loss(*operands, recompute=recompute)

    operands = leaves()
    grads = [torch.autograd.grad(run(*operands), operands) for run in (step, compiled(step))]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-14, rtol=0)


def test_autocast_takes_nothing_away_from_compiled_routing() -> None:
    operands = leaves(dtype=torch.float32)
    expected = loss(*operands)
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled(loss)(*operands)
    assert torch.equal(found, expected)
    grads = [torch.autograd.grad(result, operands) for result in (found, expected)]
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_explaining_and_checking_compile_too() -> None:
    def backend_of(poses: Tensor, weights: Tensor) -> str:
        return str(explain(poses, unpack_weights(weights)))

    poses, weights, _, _ = drawn()
    assert compiled(backend_of)(poses, weights) == backend_of(poses, weights)


def test_one_program_for_batches_of_all_sizes() -> None:
    _, weights, bias, priors = leaves()
    backend = CompileCounterWithBackend("aot_eager")
    step = compiled(loss, backend)
    for num_images in (3, 5, 2, 9):
        poses = torch.randn(num_images, I, D, dtype=torch.float64).requires_grad_()
        torch._dynamo.mark_dynamic(poses, 0)
        operands = (poses, weights, bias, priors)
        grads = [torch.autograd.grad(run(*operands), operands) for run in (step, loss)]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other)
    assert backend.frame_count == 1


@pytest.mark.parametrize("options", [{}, {"gradient": "last", "none_of_the_above": True}])
def test_gradients_by_torch_func(options: dict[str, Any]) -> None:
    operands, every = drawn(), (0, 1, 2, 3)
    found = torch.func.grad(loss, every)(*operands, **options)
    expected = torch.func.grad(reference, every)(*operands, **options)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_rows_of_the_jacobian_by_torch_func() -> None:
    poses, weights, _, _ = drawn()

    def parents(poses: Tensor, backend: Any) -> Tensor:
        return route_packed(poses, weights, backend=backend)

    found, expected = (torch.func.jacrev(parents)(poses, backend) for backend in ("streamed", "reference"))
    torch.testing.assert_close(found, expected)
    pull = torch.func.vjp(lambda poses: parents(poses, "streamed"), poses)[1]
    torch.testing.assert_close(pull(torch.ones(B, J, E).double())[0], expected.sum((0, 1, 2)))
    with torch.no_grad():
        torch.testing.assert_close(pull(torch.ones(B, J, E).double())[0], expected.sum((0, 1, 2)))


IN_DIMS = [
    pytest.param((0, None, None, None), id="poses"),
    pytest.param((2, None, None, None), id="poses-by-their-third-dimension"),
    pytest.param((None, 0, None, None), id="weights"),
    pytest.param((1, 3, 0, 2), id="all"),
]


@pytest.mark.parametrize("in_dims", IN_DIMS)
def test_every_element_of_a_vmap_is_routed_by_itself(in_dims: tuple[int | None, ...]) -> None:
    added = [torch.stack(each) for each in zip(*(drawn(seed) for seed in range(3)), strict=True)]
    operands = [
        each[0] if dim is None else each.movedim(0, dim) for each, dim in zip(added, in_dims, strict=True)
    ]
    grads = [
        torch.vmap(torch.func.grad(function, (0, 1, 2, 3)), in_dims)(*operands)
        for function in (loss, reference)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    values = [torch.vmap(function, in_dims)(*operands) for function in (loss, reference)]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("in_dims", IN_DIMS)
def test_a_vmap_over_nothing_is_empty(in_dims: tuple[int | None, ...]) -> None:
    operands = [
        each if dim is None else each.new_zeros(0, *each.shape).movedim(0, dim)
        for each, dim in zip(drawn(), in_dims, strict=True)
    ]
    assert torch.vmap(loss, in_dims)(*operands).shape == (0,)
    grads = torch.vmap(torch.func.grad(loss, (0, 1, 2, 3)), in_dims)(*operands)
    assert [grad.shape for grad in grads] == [(0, *operand.shape) for operand in drawn()]


def test_the_gradient_of_a_vmap() -> None:
    operands = torch.stack([drawn(seed)[0] for seed in range(3)]), *drawn()[1:]

    def total(*operands: Tensor, backend: str) -> Tensor:
        return torch.vmap(lambda poses: loss(poses, *operands[1:], backend=backend))(operands[0]).sum()

    grads = [torch.func.grad(total, (0, 1, 2, 3))(*operands, backend=f) for f in ("streamed", "reference")]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.property(
    "derivatives", "a derivative that `streamed` does not have is refused, and never passes for 0"
)
@pytest.mark.parametrize("wanted", range(4))
@pytest.mark.parametrize("constant", [True, False])  # whether the gradient that is differentiated again is
def test_there_is_no_second_derivative(wanted: int, constant: bool) -> None:
    operands = list(drawn())
    operands[wanted].requires_grad_()
    poses, weights, bias, priors = operands
    parents = route_packed(poses, weights, bias=bias, log_priors=priors)
    result = parents.sum() if constant else parents.square().sum()
    (grad,) = torch.autograd.grad(result, operands[wanted], create_graph=True)
    with pytest.raises(NotImplementedError, match=f"^{re.escape(ONCE)}$"):
        grad.sum().backward()


@pytest.mark.property("derivatives")
def test_torch_func_has_no_second_derivative_either() -> None:
    operands = drawn()
    with pytest.raises(NotImplementedError, match=f"^{re.escape(ONCE)}$"):
        torch.func.grad(lambda poses: torch.func.grad(loss)(poses, *operands[1:]).sum())(operands[0])


FORWARD_MODE = [
    pytest.param(lambda f, x: torch.func.jvp(f, (x,), (x,))[1], id="jvp"),
    pytest.param(lambda f, x: torch.func.jacfwd(f)(x), id="jacfwd"),
    pytest.param(lambda f, x: torch.func.hessian(f)(x), id="hessian"),
    pytest.param(lambda f, x: torch.func.jacrev(torch.func.jacfwd(f))(x), id="hessian-in-reverse"),
    pytest.param(lambda f, x: torch.func.jvp(lambda x: torch.vmap(f)(x[None]), (x,), (x,))[1], id="vmap"),
]


@pytest.mark.parametrize("derivative", FORWARD_MODE)
@pytest.mark.parametrize("place", range(4))
def test_forward_mode_takes_the_reference(derivative: Any, place: int) -> None:
    operands = drawn()

    def of(run: Any, operand: Tensor) -> Tensor:
        return run(*operands[:place], operand, *operands[place + 1 :])

    found, expected = (derivative(partial(of, run), operands[place]) for run in (loss, reference))
    torch.testing.assert_close(found, expected)


def streamed(poses: Tensor, weights: Tensor) -> Tensor:
    """The backend itself, which no function has chosen."""
    return route_streamed(RoutingCall(poses, weights, RoutingOptions()))


@pytest.mark.property("derivatives")
def test_streamed_refuses_forward_mode() -> None:
    poses, weights, _, _ = drawn()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(poses, poses)
        expected = "refused: forward mode differentiates the reference only"
        assert explain(dual, unpack_weights(weights)).others["streamed"] == expected
        assert explain(poses, unpack_weights(weights)).backend == "streamed"  # a constant
        with pytest.raises(
            ShapeError, match="backend='streamed' cannot be taken: forward mode differentiates"
        ):
            route_packed(dual, weights, backend="streamed")
        with pytest.raises(
            NotImplementedError, match="forward mode differentiates the reference only; choose"
        ):
            streamed(dual, weights)


@pytest.mark.defect("derivatives", "an operator of torch.library in forward mode")
def test_forward_mode_takes_a_bare_operator_for_a_constant() -> None:
    poses, *rest = drawn()

    def bare(poses: Tensor) -> Tensor:
        return torch.ops.capsdist.route_streamed(poses, *rest, 3, False, "full", None)[0]

    assert torch.func.jvp(bare, (poses,), (poses,))[1].abs().max() == 0
    assert torch.func.jvp(lambda poses: reference(poses, *rest), (poses,), (poses,))[1].abs().max() > 0.1


@pytest.mark.parametrize(
    "derivative", [torch.func.grad, lambda f: lambda *given: torch.func.jvp(f, given, given)]
)
def test_inside_of_a_compiler_torch_func_takes_the_reference(derivative: Any) -> None:
    operands = drawn()
    found = compiled(derivative(loss))(*operands)
    torch.testing.assert_close(found, derivative(reference)(*operands))
    with pytest.raises(Exception, match=COMPILER):
        compiled(derivative(lambda *given: loss(*given, backend="streamed")))(*operands)


def test_inside_of_a_compiler_forward_mode_takes_the_reference() -> None:
    poses, *rest = drawn()
    step = compiled(loss)
    step(poses, *rest)  # a program of its own, without tangents
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(poses, poses)
        found = forward_ad.unpack_dual(step(dual, *rest)).tangent
        expected = forward_ad.unpack_dual(reference(dual, *rest)).tangent
        with pytest.raises(Exception, match=COMPILER):
            compiled(streamed)(dual, rest[0])
    torch.testing.assert_close(found, expected)


def test_torch_func_takes_no_kernels() -> None:
    poses, weights, _, _ = (tensor.float().to("meta") for tensor in drawn())
    seen: list[str] = []

    def reason(poses: Tensor) -> Tensor:
        seen.append(explain(poses, unpack_weights(weights)).others["fused"])
        return poses

    torch.func.vmap(reason)(poses[None])
    assert seen == ["refused: torch.func and forward mode do not know its kernels"]
