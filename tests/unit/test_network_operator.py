"""A whole network under compilers and torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from capsdist.models import CapsNet
from capsdist.ops import margin_loss, reconstruction_loss

B, J, E = 3, 4, 6


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


def small_network(**changes: Any) -> CapsNet:
    torch.manual_seed(0)
    sizes = {"image_shape": (1, 9, 9), "num_classes": J, "conv_channels": 4, "conv_kernel": 3}
    primary = {"primary_types": 3, "primary_dim": 2, "primary_kernel": 3, "class_dim": E}
    return CapsNet(**{**sizes, **primary, "decoder_hidden": (5, 7), **changes})


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_dynamic_shapes_are_compiled_once(backend: Any) -> None:
    network = small_network(backend=backend)
    backend = CompileCounterWithBackend("aot_eager")
    step = torch.compile(network, dynamic=True, fullgraph=True, backend=backend)
    for num_images in (3, 5, 2, 9):
        images = torch.rand(num_images, 1, 9, 9)
        grads = [
            torch.autograd.grad(run(images).scores.square().sum(), network.class_capsules.packed_weights)
            for run in (step, network)
        ]
        torch.testing.assert_close(*grads)
    assert backend.frame_count == 1


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_whole_training_step_compiles(backend: str) -> None:
    network = small_network(capsule_bias=True, log_priors=True, primary_coupling=backend == "inductor")
    images, labels = torch.rand(B, 1, 9, 9), torch.tensor([0, 3, 1])

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        output = network(images, labels)
        assert output.reconstructions is not None
        drawing = reconstruction_loss(output.reconstructions, images).mean()
        return margin_loss(output.scores, labels).mean() + 0.0005 * drawing

    parameters = list(network.parameters())
    results = [
        run(images, labels) for run in (loss_of, torch.compile(loss_of, fullgraph=True, backend=backend))
    ]
    torch.testing.assert_close(*results)
    grads = [torch.autograd.grad(result, parameters) for result in results]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_a_network_image_by_image() -> None:
    network, images, labels = small_network(decoder=False), torch.rand(B, 1, 9, 9), torch.tensor([0, 3, 1])
    names, parameters = zip(*network.named_parameters(), strict=True)

    def loss_of(parameters: tuple[Tensor, ...], image: Tensor, label: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        output = torch.func.functional_call(network, named, (image[None],))
        return margin_loss(output.scores, label[None]).sum()

    found = torch.vmap(torch.func.grad(loss_of), (None, 0, 0))(parameters, images, labels)
    for image in range(B):
        result = loss_of(parameters, images[image], labels[image])
        for each, expected in zip(found, torch.autograd.grad(result, parameters), strict=True):
            torch.testing.assert_close(each[image], expected)
