"""Each of two labels drawn by itself, against its own image (paper, section 6), by a direct formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capsdist.config import Loss
from capsdist.models import CapsNet
from capsdist.models.decoder import Decoder, overlaid
from capsdist.models.registry import CAPSNET
from capsdist.train.pictures import reconstruction_picture

SIZES: dict[str, Any] = {
    "image_shape": (2, 11, 12), "num_classes": 5, "conv_channels": 6, "conv_kernel": 3, "primary_types": 3,
    "primary_dim": 4, "primary_kernel": 3, "class_dim": 5, "decoder_hidden": (7, 9), "num_labels": 2,
}  # fmt: skip
OPTIONS = Loss(reconstruction_weight=0.02)


def network_of(seed: int) -> CapsNet:
    """A network whose capsules are long, and whose decoder draws each of them otherwise."""
    torch.manual_seed(seed)
    network = CapsNet(**SIZES, decoder_separate=True)
    assert network.decoder is not None
    with torch.no_grad():
        network.class_capsules.packed_weights.mul_(9)
        for weight in network.decoder.parameters():
            weight.add_(torch.randn_like(weight))
    return network


def alone(decoder: Decoder, pose: Tensor, number: int) -> Tensor:
    """What `decoder` draws of capsule `number`, with pose [E]: the other capsules are zeros."""
    capsules = torch.zeros(decoder.num_classes, decoder.class_dim)
    capsules = capsules.index_put((torch.tensor(number),), pose)
    hidden = capsules.flatten()
    first, second, last = (layer for layer in decoder.layers if isinstance(layer, nn.Linear))
    for layer in (first, second):
        hidden = (layer.weight @ hidden + layer.bias).relu()
    pixels = last.weight @ hidden + last.bias
    return (1 / (1 + (-pixels).exp())).view(decoder.image_shape)


def direct_loss(network: CapsNet, images: Tensor, parts: Tensor, labels: Tensor) -> Tensor:
    """Sum over images of margin loss, and of the weighted squared errors of both labels' images."""
    assert network.decoder is not None
    poses = network.class_capsules(network.primary_capsules(network.features(images)))
    total = torch.zeros(())
    for image, both in enumerate(labels.tolist()):
        for j, pose in enumerate(poses[image]):
            length = pose.square().sum().sqrt()
            own = (0.9 - length).clamp(min=0) ** 2
            total = total + (own if j in both else 0.5 * (length - 0.1).clamp(min=0) ** 2)
        for place, label in enumerate(both):
            error = alone(network.decoder, poses[image, label], label) - parts[image, place]
            total = total + OPTIONS.reconstruction_weight * error.square().sum()
    return total


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradients_are_those_of_the_direct_formula(seed: int) -> None:
    network = network_of(seed)
    images, parts = torch.rand(3, 2, 11, 12), torch.rand(3, 2, 2, 11, 12)
    labels = torch.rand(3, 5).argsort(1)[:, :2]
    output = network(images, labels)
    assert output.reconstructions.shape == (3, 2, 2, 11, 12)
    assert CAPSNET.multi_label_losses is not None
    found = CAPSNET.multi_label_losses(output, parts, labels, OPTIONS)
    found["loss"].sum().backward()
    reference = copy.deepcopy(network)
    reference.zero_grad()
    expected = direct_loss(reference, images, parts, labels)
    expected.backward()
    torch.testing.assert_close(found["loss"].sum(), expected)
    for (name, one), other in zip(network.named_parameters(), reference.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    # the mutant: each digit against the other one's image
    other = CAPSNET.multi_label_losses(output, parts.flip(1), labels, OPTIONS)["loss"]
    assert not torch.allclose(other, found["loss"])


def test_without_labels_the_two_longest_capsules_are_drawn_the_longest_first() -> None:
    network, images = network_of(7), torch.rand(4, 2, 11, 12)
    assert network.decoder is not None
    output = network(images)
    for image, scores in enumerate(output.scores.tolist()):
        order = sorted(range(5), key=lambda j: -scores[j])
        for place in range(2):
            expected = alone(network.decoder, output.parent_poses[image, order[place]], order[place])
            torch.testing.assert_close(output.reconstructions[image, place], expected)


def test_a_capsule_is_drawn_the_same_alone_and_beside_another_and_a_mask_draws_together() -> None:
    torch.manual_seed(8)
    each, poses = Decoder(5, 3, (2, 4, 3), (6, 7), separate=True), torch.randn(4, 5, 3)
    together = Decoder(5, 3, (2, 4, 3), (6, 7))
    together.load_state_dict(each.state_dict())
    labels = torch.tensor([[4, 0], [1, 2], [3, -1], [0, 1]])
    found = each(poses, labels)
    torch.testing.assert_close(found[:, 0], together(poses, labels[:, 0]))
    torch.testing.assert_close(found[:, 1], together(poses, labels[:, 1:]))
    mask = torch.rand(4, 5) < 0.5
    assert torch.equal(each(poses, mask), together(poses, mask))
    others = poses.index_fill(1, torch.tensor([2]), torch.nan)
    assert torch.equal(each(others, labels)[[0, 2, 3]], found[[0, 2, 3]])


def test_parts_are_shown_as_one_image() -> None:
    parts = torch.rand(3, 2, 1, 4, 5)
    shown = overlaid(parts)
    torch.testing.assert_close(shown, (parts[:, 0] + parts[:, 1]).clamp(max=1))
    assert torch.equal(overlaid(shown), shown)
    images = torch.rand(3, 1, 4, 5)
    assert (reconstruction_picture(images, parts) == reconstruction_picture(images, shown)).all()
