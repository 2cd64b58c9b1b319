"""The convolution whose weights' gradient is a forward convolution: against torch's, and who may take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from capsdist.models.layers import Conv2d, Padding
from capsdist.ops import convolution
from capsdist.ops.convolution import convolve, weight_gradient

SHAPES = [  # B, C, O, H, W, kernel, stride, zeros
    (3, 2, 5, 11, 8, (4, 3), (2, 1), (0, 0)),
    (1, 3, 1, 7, 10, (3, 3), (3, 3), (0, 0)),
    (4, 5, 2, 6, 6, (1, 1), (2, 2), (0, 0)),
    (2, 3, 3, 5, 5, (5, 5), (1, 1), (0, 0)),
    (2, 1, 4, 9, 12, (5, 2), (2, 3), (2, 0)),
]


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Take it for every shape, dtype and processor; return the shapes of the gradients it computed."""
    calls: list[torch.Size] = []

    def counted(*arguments: Any) -> Tensor:
        found = weight_gradient(*arguments)
        calls.append(found.shape)
        return found

    monkeypatch.setattr(convolution, "is_faster", lambda *_: True)
    monkeypatch.setattr(convolution, "weight_gradient", counted)
    return calls


def drawn(shape: Any, *, images_too: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    num, channels, outs, height, width, kernel, *_ = shape
    torch.manual_seed(sum(shape[:5]))
    images = torch.randn(num, channels, height, width, dtype=torch.float64, requires_grad=images_too)
    weight = torch.randn(outs, channels, *kernel, dtype=torch.float64, requires_grad=True)
    return images, weight, torch.randn(outs, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("images_too", [True, False])
@pytest.mark.parametrize("bias_too", [True, False])
def test_value_and_gradients_are_those_of_torch(
    shape: Any, images_too: bool, bias_too: bool, ours: list[torch.Size]
) -> None:
    (images, weight, bias), (stride, zeros) = drawn(shape, images_too=images_too), shape[6:]
    operands = images, weight, bias if bias_too else None
    found, expected = convolve(*operands, stride, zeros), functional.conv2d(*operands, stride, zeros)
    assert torch.equal(found, expected)
    grad = torch.randn_like(found)
    wanted = [each for each in operands if each is not None and each.requires_grad]
    gradients = torch.autograd.grad(found, wanted, grad)
    for one, other in zip(gradients, torch.autograd.grad(expected, wanted, grad), strict=True):
        torch.testing.assert_close(one, other)
        assert one.is_contiguous()
    assert ours == ([weight.shape] if zeros == (0, 0) else [])


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("stride", "kernel", "side"), [(1, 4, 9), (2, 9, 20), (2, 3, 7), (3, 5, 13), (3, 2, 9)]
)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_layer_trains_by_it(
    padding: Padding, stride: int, kernel: int, side: int, scale: float | None, ours: list[torch.Size],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    torch.manual_seed(side)
    layer = Conv2d(3, 4, kernel, stride, padding, scale).double()
    features = torch.randn(2, 3, side, side + 1, dtype=torch.float64, requires_grad=True)
    wanted = features, *layer.parameters()
    gradients = torch.autograd.grad(layer(features).square().sum(), wanted)
    assert ours == [layer.weight.shape]
    monkeypatch.setattr(convolution, "is_faster", lambda *_: False)
    torch.testing.assert_close(gradients, torch.autograd.grad(layer(features).square().sum(), wanted))
    assert len(ours) == 1


def test_second_and_batched_derivatives_and_torch_func_are_exact_and_take_torchs_pass(
    ours: list[torch.Size],
) -> None:
    images, weight, bias = drawn(SHAPES[1])

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *operands: function(*operands, (3, 3), (0, 0))

    assert torch.autograd.gradgradcheck(of(convolve), (images, weight, bias), fast_mode=True)

    def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *operands: of(function)(*operands).square().sum()

    operands = tuple(each.detach() for each in (images, weight, bias))
    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        torch.testing.assert_close(
            transform(loss(convolve), 1)(*operands), transform(loss(functional.conv2d), 1)(*operands)
        )
    assert ours == []
    rows = torch.autograd.functional.jacobian(of(convolve), operands, vectorize=True)
    torch.testing.assert_close(
        rows, torch.autograd.functional.jacobian(of(functional.conv2d), operands, vectorize=True)
    )
    assert ours == []  # gradients that autograd.grad batches are no transform of torch.func


def test_a_penalty_of_gradients_trains_by_torchs_pass_and_then_by_ours(ours: list[torch.Size]) -> None:
    operands, found = drawn(SHAPES[1]), []
    for function in (functional.conv2d, convolve):
        loss = function(*operands, (3, 3), (0, 0)).pow(3).sum()
        gradients = torch.autograd.grad(loss, operands, create_graph=True)
        assert ours == []
        penalty = sum(each.square().sum() for each in gradients)
        assert isinstance(penalty, Tensor)
        found.append(torch.autograd.grad(penalty, operands))
    torch.testing.assert_close(*found)
    assert ours == [operands[1].shape]


def test_compilers_and_exporters_see_an_ordinary_convolution(ours: list[torch.Size]) -> None:
    layer, features = Conv2d(3, 4, 3, 2), torch.randn(2, 3, 7, 7)
    expected = layer(features)
    program = torch.export.export(layer, (features,))
    assert "conv2d" in str(program.graph)
    assert torch.equal(program.module()(features), expected)
    found = torch.compile(layer, backend="aot_eager", fullgraph=True)(features)
    found.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        layer(features).float().sum().backward()
    with torch.no_grad():
        layer(features)
    assert torch.equal(found, expected)
    assert ours == []


@pytest.mark.parametrize("processor", ["AVX2", "AVX512"])
def test_the_rule_depends_on_kernel_dtype_and_processor_alone(
    processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs on one machine choose alike; batch size and threads play no part."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    features, weight = torch.empty(1, 256, 20, 20), torch.empty(256, 256, 9, 9)
    assert convolution.is_faster(features, weight) == (processor == "AVX2")
    assert not convolution.is_faster(features, weight[:, :, :3, :3])
    assert not convolution.is_faster(features.double(), weight.double())
