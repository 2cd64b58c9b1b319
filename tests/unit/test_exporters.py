"""What tools make of a network of the default backend: torch.export, torch.jit.trace, ONNX, torch.fx."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from capsdist import CapsNet, margin_loss
from capsdist.errors import ShapeError
from capsdist.models import ClassCapsules, PrimaryCapsules
from capsdist.ops import lengths, reconstruction_loss, squash

SMALL: dict[str, Any] = {
    "image_shape": (1, 9, 9), "num_classes": 4, "conv_channels": 4, "conv_kernel": 3, "primary_types": 3,
    "primary_dim": 2, "primary_kernel": 3, "class_dim": 6, "decoder_hidden": (5, 7),
}  # fmt: skip
RECORDED = "torch.jit.trace and ONNX record the reference only"


def images_of(num: int) -> Tensor:
    return torch.rand(num, 1, 9, 9, generator=torch.Generator().manual_seed(num))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an exported network lies, with images for it and what it says of them."""
    folder = tmp_path_factory.mktemp("exported")
    network, batch = CapsNet(**SMALL).eval(), torch.export.Dim("batch")
    program = torch.export.export(network, (images_of(3),), dynamic_shapes={"images": {0: batch}})
    assert "capsdist.route_streamed.default" in program.graph_module.code
    torch.export.save(program, folder / "network.pt2")
    more = images_of(7)
    torch.save((more, tuple(network(more))), folder / "expected.pt")
    return folder


@pytest.mark.parametrize(
    "imports",
    ["import capsdist, torch", "import torch, capsdist", "from capsdist.ops import squash; import torch"],
)
def test_importing_capsdist_is_enough_to_load_an_exported_network(imports: str, exported: Path) -> None:
    load = f"""
{imports}
import sys
network = torch.export.load(sys.argv[1] + "/network.pt2").module()
images, expected = torch.load(sys.argv[1] + "/expected.pt")
for one, other in zip(network(images), expected, strict=True):
    torch.testing.assert_close(one, other)
print(torch.ops.capsdist.route_fused, [each for each in sys.meta_path if "_AfterTorch" in str(each)])
"""
    words = [sys.executable, "-c", load, str(exported)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "capsdist.route_fused []\n"


@pytest.mark.parametrize("backend", ["streamed", "reference"])
def test_an_exported_layer_can_be_trained_on(backend: Any) -> None:
    layer = ClassCapsules(5, 2, 4, 6, bias=True, log_priors=True, backend=backend).double()
    poses = torch.randn(3, 5, 2, dtype=torch.float64)
    program = torch.export.export(layer, (poses,)).module()
    grads = []
    for each in (layer, program):
        each(poses).square().sum().backward()
        grads.append({name: parameter.grad for name, parameter in each.named_parameters()})
    assert grads[0].keys() == grads[1].keys() == {"packed_weights", "bias", "log_priors"}
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-14, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_network_is_that_of_the_default_backend_for_other_batches_too() -> None:
    network = CapsNet(**SMALL).eval()
    traced = torch.jit.trace(network, (images_of(2),))
    for found, expected in zip(traced(images_of(5)), network(images_of(5)), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_layer_has_the_gradients_of_the_default_backend() -> None:
    layer, poses = ClassCapsules(5, 2, 4, 6).double(), torch.randn(3, 5, 2, dtype=torch.float64)
    traced = torch.jit.trace(layer, (poses,))
    grads = [
        torch.autograd.grad(run(poses).square().sum(), layer.packed_weights)[0] for run in (layer, traced)
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_trace_refuses_the_streamed_backend_by_name() -> None:
    layer = ClassCapsules(5, 2, 4, 6, backend="streamed")
    message = f"^backend='streamed' cannot be taken: {RECORDED}; choose backend='auto'$"
    with pytest.raises(ShapeError, match=message):
        torch.jit.trace(layer, (torch.randn(3, 5, 2),))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_onnx_computes_the_default_backend_for_batches_of_all_sizes() -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it: pip install onnxscript")
    from onnx.reference import ReferenceEvaluator

    network = CapsNet(**SMALL, decoder=False).eval()
    shapes = {"images": {0: torch.export.Dim("batch", min=2)}}
    program = torch.onnx.export(network, (images_of(2),), dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    found = ReferenceEvaluator(program.model_proto).run(None, {"images": images_of(5).numpy()})
    expected = network(images_of(5))
    for one, other in zip(found, (expected.scores, expected.parent_poses), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other)


class Mixed(nn.Module):
    """A user's network around our layers."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.classes = PrimaryCapsules(1, 3, 2, 3), ClassCapsules(3 * 4 * 4, 2, 4, 6)

    def forward(self, images: Tensor) -> Tensor:
        return self.classes(self.primary(2 * images)).norm(dim=-1)


class OursAreLeaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__module__.startswith("capsdist.") or super().is_leaf_module(m, module_qualified_name)


PROXY = (
    "is a Proxy of torch.fx.symbolic_trace, which has no shape to check; "
    "call torch.export.export, or make the capsule layers leaves of a torch.fx.Tracer"
)
TRACED = {
    "network": (lambda: CapsNet(**SMALL), "images"),
    "a network with capsule layers": (Mixed, "input"),
    "layer": (lambda: ClassCapsules(5, 2, 4, 6), "child_poses"),
    "reference": (lambda: ClassCapsules(5, 2, 4, 6, backend="reference"), "child_poses"),
    "squash": (lambda: lambda x: squash(x), "totals"),
    "lengths": (lambda: lambda x: lengths(x), "poses"),
    "margin loss": (lambda: lambda x, y: margin_loss(x, y), "lengths"),
    "reconstruction loss": (lambda: lambda x, y: reconstruction_loss(x, y), "reconstructions"),
}


@pytest.mark.parametrize("name", TRACED)
def test_symbolic_trace_is_refused_with_what_to_do_instead(name: str) -> None:
    build, argument = TRACED[name]
    with pytest.raises(ShapeError, match=f"^{argument} {re.escape(PROXY)}$"):
        fx.symbolic_trace(build())


def test_what_is_to_do_instead_of_symbolic_trace_works() -> None:
    network = Mixed()
    graph = OursAreLeaves().trace(network)
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["primary", "classes"]
    images = images_of(3)
    torch.testing.assert_close(fx.GraphModule(network, graph)(images), network(images))
    exported = torch.export.export(network, (images,)).module()
    assert isinstance(exported, fx.GraphModule)
    torch.testing.assert_close(exported(images), network(images))
