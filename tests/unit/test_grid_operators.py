"""Routing between grids as operators: compiled whole, exported, and refused where it has no derivative."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from onnx_program import in_onnx_runtime
from torch import Tensor, nn

from capsdist.models.conv_capsules import ConvCapsules, SharedClassCapsules
from capsdist.models.em_capsnet import EMCapsNet
from capsdist.routing import RoutingOptions, explain
from capsdist.routing.common.fields import Fields, fields_of, whole_field
from capsdist.routing.dynamic.fields.call import FieldCall
from capsdist.routing.em.api import route_em
from capsdist.routing.em.options import EMCall, EMOptions


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


class Deep(nn.Module):
    """Two convolutional layers and class capsules, all with dynamic routing."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvCapsules(
                3, 4, 5, 3, kernel_size=(3, 2), stride=(2, 1), bias=True, log_priors=True, **options
            ),
            ConvCapsules(5, 3, 2, 4, padding="same", competition="position", **options),
            SharedClassCapsules(2, 4, 3, 5, **options),
        )

    def forward(self, poses: Tensor) -> Tensor:
        return self.layers(poses)


class Matrices(nn.Module):
    """Matrix capsules with EM routing."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.network = EMCapsNet(
            (1, 21, 19), 3, conv_channels=4, primary_types=2, capsule_types=(3, 2), pose_side=3, **options
        )

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(images)
        return torch.cat((output.scores, output.parent_poses.flatten(1)), 1)


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "dynamic": (Deep, (7, 6, 3, 4)),
    "em": (Matrices, (1, 21, 19)),
}


def built(name: str, **options: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    kind, shape = NETWORKS[name]
    network = kind(iterations=2, **options).double()
    return network, torch.rand(2, *shape, dtype=torch.float64)


def gradients(run: Any, network: nn.Module, inputs: Tensor) -> list[Tensor]:
    inputs = inputs.clone().requires_grad_()
    found = run(inputs)
    return [found, *torch.autograd.grad(found.square().sum(), [inputs, *network.parameters()])]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_compiles_whole(name: str, backend: str) -> None:
    network, inputs = built(name, backend=backend)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        gradients(compiled, network, inputs), gradients(network, network, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", NETWORKS)
def test_exports_with_any_number_of_images(name: str, backend: str) -> None:
    network, inputs = built(name, backend=backend)
    dynamic = {0: torch.export.Dim("images", min=1, max=64)}
    program = torch.export.export(network, (inputs,), dynamic_shapes=(dynamic,))
    more = torch.rand(5, *inputs.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(program.module()(more), network(more), atol=1e-12, rtol=1e-9)
    called = [node for node in program.graph.nodes if "streamed" in str(node.target)]
    assert len(called) == (3 if backend == "auto" else 0)  # one operator a layer of capsules


@pytest.mark.parametrize("name", [pytest.param("em", marks=pytest.mark.slow), "dynamic"])
def test_onnx_runtime_computes_the_same_for_extreme_activations_too(name: str, tmp_path: Path) -> None:
    """A sigmoid that underflows, as of trained networks, must not become the logarithm of 0."""
    network, inputs = built(name, backend="auto")
    network, inputs = network.float(), torch.cat((inputs, torch.ones_like(inputs[:1]))).float()
    for module in network.modules():
        if isinstance(beta := getattr(module, "beta_a", None), nn.Parameter):
            nn.init.uniform_(beta, -2e5, 1e4)  # lambda is 5e-4 at first
    with torch.no_grad():
        expected = network(inputs)
    found = in_onnx_runtime(network, inputs, tmp_path)
    # scores alone: ONNX Runtime rounds sigmoids below 1e-7 to 0, and with them poses without children
    scores = slice(None) if name == "dynamic" else slice(3)
    torch.testing.assert_close(found[:, scores], expected[:, scores], atol=1e-5, rtol=1e-3)


def fields_operands(without: bool) -> tuple[Any, ...]:
    fields = Fields((5, 4), (3, 2), (2, 1))
    shapes = (2, 20, 3, 2), (4, 3, 2, 3 * 6), (4, 3), (18, 4)
    poses, weights, bias, priors = (torch.randn(*each, dtype=torch.float64) for each in shapes)
    rest = (None, None) if without else (bias.requires_grad_(), priors.requires_grad_())
    return poses.requires_grad_(), weights.requires_grad_(), *rest, *fields.numbers, "field", 2, False, "full"


def em_operands(without: bool) -> tuple[Any, ...]:
    fields = whole_field((3, 2))
    shapes = (2, 6, 3, 2, 2), (2, 6, 3), (1, 3, 4, 2, 2), (4,), (4,)
    operands = [torch.rand(*each, dtype=torch.float64).requires_grad_() for each in shapes]
    offsets = None if without else torch.rand(6, 2, 2, dtype=torch.float64)
    return *operands, offsets, *fields.numbers, *EMOptions(2).numbers


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize("name", ["route_fields_streamed", "route_em_streamed"])
def test_opcheck_each_way(name: str, without: bool) -> None:
    arguments = fields_operands(without) if "fields" in name else em_operands(without)
    torch.library.opcheck(getattr(torch.ops.capsdist, name).default, arguments)
    plain = tuple(each.detach() if isinstance(each, Tensor) else each for each in arguments)
    given = [torch.randn_like(each) for each in getattr(torch.ops.capsdist, name)(*plain)]
    found = getattr(torch.ops.capsdist, name)(*plain)
    number = 1 if "fields" in name else 2  # results; the rest is what is kept
    torch.library.opcheck(
        getattr(torch.ops.capsdist, f"{name}_backward").default,
        (*given[:number], *found[number:], *plain),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_second_derivatives_are_refused_by_name() -> None:
    network, inputs = built("em", backend="streamed")
    inputs.requires_grad_()
    (grad,) = torch.autograd.grad(network(inputs).sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match="choose backend='reference'"):
        torch.autograd.grad(grad.sum(), inputs)


def test_offsets_have_no_gradient_but_zeros() -> None:
    fields = whole_field((2, 2))
    offsets = torch.rand(4, 2, 2, requires_grad=True)
    poses, activations, weights, beta = (
        torch.rand(1, 4, 2, 2, 2),
        torch.rand(1, 4, 2),
        torch.rand(1, 2, 3, 2, 2),
        torch.zeros(3),
    )
    found, _ = route_em(poses, activations, weights, beta, beta, fields, offsets=offsets, backend="streamed")
    (grad,) = torch.autograd.grad(found.sum(), offsets)
    assert torch.equal(grad, torch.zeros_like(offsets))


def test_fields_come_back_from_their_numbers() -> None:
    for fields in (Fields((5, 7), (3, 2), (2, 1), "same"), whole_field((4,))):
        assert fields_of(*fields.numbers) == fields


def test_one_explain_knows_every_call() -> None:
    fields = Fields((5, 4), (3, 2), (2, 1))
    call = FieldCall(torch.rand(2, 20, 3, 2), torch.rand(4, 3, 2, 3 * 6), fields, RoutingOptions())
    assert explain(call).backend == "streamed"
    shapes = (2, 6, 3, 2, 2), (2, 6, 3), (1, 3, 4, 2, 2), (4,), (4,)
    operands = [torch.rand(*each) for each in shapes]
    for backend in ("streamed", "reference"):
        em = EMCall(*operands, whole_field((3, 2)), EMOptions(backend=backend))  # pyright: ignore[reportArgumentType]
        assert explain(em).backend == backend
