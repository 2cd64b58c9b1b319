"""The fused backend as an operator: compilers, exporters, autograd and autocast see what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from fused_cases import DEVICE, fused, fused_packed, largest_error, operands

from capsdist.routing import pack_weights, route_reference
from capsdist.routing.dynamic.fused import fused_refusal
from capsdist.routing.dynamic.fused.call import Call
from routing_cases import kept_for_backward, values_and_gradients

SIZES = (2, 5, 3, 2, 4)  # B, I, J, D, E


@pytest.fixture(autouse=True)
def default_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSDIST_TUNE", "0")


def leaves(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Child poses, packed weights, bias and log-priors in fp32, all of which want gradients."""
    given = operands(SIZES, seed, bias=True, priors=True).to(torch.float32)
    drawn = (given.child_poses, pack_weights(given.weights), given.bias, given.log_priors)
    return tuple(t.clone().requires_grad_() for t in drawn if t is not None)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("without", [False, True])
def test_opcheck_of_the_forward_operator(without: bool) -> None:
    poses, weights, bias, priors = leaves()
    rest = (None, None, 2, False, torch.bfloat16) if without else (bias, priors, 2, True, None)
    torch.library.opcheck(torch.ops.capsdist.route_fused.default, (poses, weights, *rest))


@pytest.mark.parametrize("want_weights", [False, True])
def test_opcheck_of_the_backward_operator(want_weights: bool) -> None:
    poses, weights, bias, priors = (leaf.detach() for leaf in leaves())
    result, totals = torch.ops.capsdist.route_fused(poses, weights, bias, priors, 2, False, None)
    torch.library.opcheck(
        torch.ops.capsdist.route_fused_backward.default,
        (result, poses, weights, priors, totals, False, None, want_weights, not want_weights),
    )


def test_compiles_whole() -> None:
    def step(poses: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        return (2 * fused_packed(poses, weights, 2, bias=bias)).square().sum()

    operands_ = leaves()[:3]
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"  # a C++ compiler takes its time
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    expected = torch.autograd.grad(step(*operands_), operands_)
    for found, wanted in zip(torch.autograd.grad(compiled(*operands_), operands_), expected, strict=True):
        torch.testing.assert_close(found, wanted)


class Layer(nn.Module):
    """Nothing but routing."""

    def __init__(self, packed_weights: Tensor) -> None:
        super().__init__()
        self.packed_weights = nn.Parameter(packed_weights)

    def forward(self, child_poses: Tensor) -> Tensor:
        return fused_packed(child_poses, self.packed_weights, 2)


def test_exports() -> None:
    poses, weights, _, _ = (leaf.detach() for leaf in leaves())
    layer = Layer(weights)
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (poses,), dynamic_shapes={"child_poses": {0: batch}})
    assert "capsdist.route_fused.default" in program.graph_module.code
    more = torch.cat((poses, poses, poses))
    torch.testing.assert_close(program.module()(more), layer(more))


def test_keeps_the_parameter_itself_and_no_votes() -> None:
    poses, weights, _, priors = leaves()
    kept = kept_for_backward(lambda: fused_packed(poses, weights, 3, log_priors=priors))
    assert any(tensor is weights for tensor in kept)
    assert [list(tensor.shape) for tensor in kept] == [[2, 5, 2], [3, 4, 2, 5], [5, 3], [3, 3, 2, 4]]


@pytest.mark.parametrize("poses_dtype", [torch.float32, torch.bfloat16])  # the second: from a convolution
def test_autocast_rounds_the_products_and_keeps_what_it_was_given(poses_dtype: torch.dtype) -> None:
    poses, weights, bias, priors = leaves()
    poses = poses.detach().to(poses_dtype).requires_grad_()
    kept: list[Tensor] = []
    with (
        torch.autocast(DEVICE, torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t),
    ):
        under_autocast = fused_packed(poses, weights, 2, bias=bias, log_priors=priors)
    assert any(tensor is weights for tensor in kept)
    grads = torch.autograd.grad(under_autocast.sum(), (poses, weights, bias, priors))
    assert [grad.dtype for grad in grads] == [poses_dtype, *[torch.float32] * 3]
    named, _ = torch.ops.capsdist.route_fused(poses, weights, bias, priors, 2, False, torch.bfloat16)
    assert torch.equal(under_autocast, named)
    assert not torch.equal(under_autocast, fused_packed(poses, weights, 2, bias=bias, log_priors=priors))


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_any_single_gradient(wanted: int) -> None:
    given = operands(SIZES, 1, bias=True, priors=True)
    expected = values_and_gradients(route_reference, given, 2)
    inputs = [leaf.detach() for leaf in leaves(seed=1)]
    inputs[wanted].requires_grad_()
    result = fused_packed(inputs[0], inputs[1], 2, bias=inputs[2], log_priors=inputs[3])
    (grad,) = torch.autograd.grad(result, inputs[wanted], given.grad.float())
    name = ("child_poses", "weights", "bias", "log_priors")[wanted]
    wanted_grad = pack_weights(expected[name]) if name == "weights" else expected[name]
    torch.testing.assert_close(grad.double(), wanted_grad, atol=5e-5, rtol=0)


def test_layouts_of_the_operands_do_not_matter() -> None:
    given = operands((3, 5, 3, 2, 4), seed=2).to(torch.float32)
    expected = values_and_gradients(fused, given, 2)
    poses = given.child_poses.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    weights = given.weights.transpose(0, 3).contiguous().transpose(0, 3).requires_grad_()
    packed = weights.permute(1, 3, 2, 0)
    result, _ = torch.ops.capsdist.route_fused(poses, packed, None, None, 2, False, None)
    grads = torch.autograd.grad(
        result, (poses, weights), given.grad.transpose(0, 2).contiguous().transpose(0, 2)
    )
    found = {"parent_poses": result.detach(), "child_poses": grads[0], "weights": grads[1]}
    assert largest_error(found, expected) < 1e-6
    assert result.is_contiguous()


def test_an_empty_batch_gives_an_empty_result() -> None:
    _, weights, bias, priors = leaves()
    poses = torch.zeros(0, 5, 2, device=DEVICE, requires_grad=True)
    result = fused_packed(poses, weights, 2, bias=bias, log_priors=priors)
    grads = torch.autograd.grad(result.sum(), (poses, weights, bias, priors))
    assert result.shape == (0, 3, 4)
    assert all(bool((grad == 0).all()) for grad in grads)


@pytest.mark.parametrize("wanted", [0, 1])
def test_a_second_derivative_is_refused_at_once(wanted: int) -> None:
    operands_ = leaves()
    result = fused_packed(operands_[0], operands_[1], 2).sum()
    message = "fused routing is differentiable once; for create_graph=True choose backend='reference'"
    with pytest.raises(NotImplementedError, match=re.escape(message)):
        torch.autograd.grad(result, operands_[wanted], create_graph=True)


REFUSED = [
    pytest.param(
        torch.zeros(2, 5, 3, dtype=torch.float64),
        torch.zeros(4, 6, 3, 5),
        "child_poses are torch.float64, weights torch.float32; it takes float32, bfloat16 and float16",
        id="float64",
    ),
    pytest.param(
        torch.zeros(2, 5, 3),
        torch.zeros(4, 6, 3, 5),
        "the operands are on cpu; it runs on an NVIDIA GPU",
        id="cpu",
    ),
]


@pytest.mark.parametrize(("poses", "weights", "message"), REFUSED)
def test_refusals_name_the_value(poses: Tensor, weights: Tensor, message: str) -> None:
    assert fused_refusal(poses, weights) == message


def test_the_interpreter_is_accepted_only_where_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    operands_ = torch.zeros(2, 5, 3), torch.zeros(4, 6, 3, 5)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert fused_refusal(*operands_, interpreter=True) is None
    monkeypatch.delenv("TRITON_INTERPRET")
    refusal = fused_refusal(*operands_, interpreter=True)
    assert refusal is not None
    assert refusal.endswith("it runs on an NVIDIA GPU, or for tests with TRITON_INTERPRET=1")


@pytest.mark.parametrize("sizes", [(70_000, 2, 3, 4), (2, 70_000, 3, 4), (2, 3, 300, 4), (2, 3, 4, 300)])
def test_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int, int]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    num_children, num_parents, child_dim, parent_dim = sizes
    poses = torch.zeros(()).expand(2, num_children, child_dim)  # of which one number is stored
    weights = torch.zeros(()).expand(num_parents, parent_dim, child_dim, num_children)
    assert fused_refusal(poses, weights, interpreter=True) is None


@pytest.fixture
def precision() -> Iterator[Any]:
    """Where `fp32_precision` can be set, as it was afterwards."""
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    yield setting
    setting.fp32_precision = before


@pytest.mark.parametrize(("asked", "expected"), [("tf32", "tf32"), ("ieee", "tf32x3"), ("none", "tf32x3")])
def test_precision_is_what_torch_is_asked_for(precision: Any, asked: str, expected: str) -> None:
    precision.fp32_precision = asked  # torch.get_float32_matmul_precision raises from here on
    poses, weights, _, _ = (leaf.detach() for leaf in leaves())
    assert Call.prepare(poses, weights, None, False, torch.float32).precision == expected


def test_importing_it_needs_no_triton() -> None:
    program = """
import os, sys
sys.modules["triton"] = None  # as if it were not installed
os.environ["TRITON_INTERPRET"] = "1"
import torch
from capsdist.routing.dynamic.fused import fused_refusal
print(fused_refusal(torch.zeros(2, 5, 3), torch.zeros(4, 6, 3, 5), interpreter=True))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "Triton is not installed; a CUDA build of torch brings it along\n"
