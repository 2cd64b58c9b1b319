"""Capsules over a residual stem, or one of the user: shapes, gradients, healthy starts, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from capsdist.config import Config, Loss, ResNetCapsNetConfig, problems
from capsdist.config.models import find_family
from capsdist.errors import ConfigError, ShapeError
from capsdist.launch.preflight import check_network
from capsdist.models import ResNetCapsNet, ResNetStem, build_model
from capsdist.models.capsnet import capsnet_losses
from capsdist.models.counts import num_parameters, output_numbers
from capsdist.models.layers import initial_sd
from capsdist.models.resnet import ResidualBlock
from capsdist.ops import margin_loss

USERS = """
from torch import nn

def with_batch_norm(in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))

def flat(in_channels):
    return nn.Flatten()

def no_module(in_channels):
    return in_channels

NUMBER = 3
"""
SMALL = {
    "stem_channels": (4, 8),
    "stem_blocks": (1, 2),
    "norm_groups": 2,
    "primary_types": 3,
    "primary_dim": 4,
}


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with stems of a user."""
    (tmp_path / "stems_of_a_user.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stems_of_a_user", raising=False)
    return "stems_of_a_user"


def config_of(**model: object) -> Config:
    return Config(model=ResNetCapsNetConfig.model_validate(SMALL | model))


def built(**model: object) -> ResNetCapsNet:
    torch.manual_seed(3)
    config = config_of(**model)
    assert problems(config) == []
    network = build_model(config.model, config.routing)
    assert isinstance(network, ResNetCapsNet)
    return network


def losses(network: nn.Module, images: Tensor, labels: Tensor, **options: str) -> Tensor:
    loss = Loss.model_validate({"reconstruction_weight": 0.1, **options})
    return capsnet_losses(network(images, labels), images, labels, **dict(loss))["loss"]


ODD = [
    {"in_channels": 1, "image_size": (9, 22), "num_classes": 2, "decoder": True, "decoder_hidden": (6, 7)},
    {"in_channels": 3, "image_size": (21, 13), "num_classes": 200, "log_priors": True, "stem_blocks": (0, 1)},
    {
        "in_channels": 2, "image_size": (37, 41), "num_classes": 5, "stem_first": "conv7_pool",
        "capsule_bias": True, "padding": "valid", "primary_stride": 1, "decoder": True, "num_labels": 2,
    },
]  # fmt: skip


@pytest.mark.parametrize("model", ODD)
def test_every_parameter_learns_on_rectangular_images(model: dict) -> None:
    network, num_classes = built(**model), model["num_classes"]
    images = torch.rand(4, model["in_channels"], *model["image_size"])
    labels = torch.tensor([0, num_classes - 1, 1, 0])
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):  # the last convolution of a block starts at 0: what is below it learns after a step
        optimizer.zero_grad()
        losses(network, images, labels).mean().backward()
        optimizer.step()
    output = network(images)
    assert output.scores.shape == (4, num_classes)
    assert output.parent_poses.shape == (4, num_classes, 16)
    assert (output.reconstructions is None) == (not model.get("decoder"))
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_a_block_starts_as_the_identity_and_an_image_is_seen_alone() -> None:
    network, images = built(in_channels=3, image_size=(17, 20)), torch.rand(5, 3, 17, 20)
    shallow = built(in_channels=3, image_size=(17, 20), stem_blocks=(0, 0))
    layers, others = (each.stem.get_submodule("layers") for each in (network, shallow))
    kept = [layer for layer in layers.children() if not isinstance(layer, ResidualBlock)]
    for mine, theirs in zip(kept, others.children(), strict=True):
        theirs.load_state_dict(mine.state_dict())
    torch.testing.assert_close(shallow.stem(images), network.stem(images))
    torch.testing.assert_close(network(images[2:3]).scores, network(images).scores[2:3])
    assert not list(network.buffers())


@pytest.mark.parametrize("num_classes", [10, 200, 1000])
def test_capsules_start_at_healthy_lengths(num_classes: int) -> None:
    network = built(in_channels=3, image_size=16, num_classes=num_classes, primary_types=8, primary_dim=8)
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        children = network.primary_capsules(network.stem(images)).norm(dim=-1)
        assert 0.3 < children.mean() < 0.6
        scores = network(images).scores
        assert 0.05 < scores.mean() < 0.6
        assert (scores > 0.9).float().mean() < 0.03
        if num_classes == 1000:  # the mutant: votes as large as those of few classes
            layer = network.class_capsules
            sd = initial_sd(layer.num_children, num_classes, 16) / 0.5
            layer.draw_weights(lambda weights: weights.normal_(std=sd))
            assert (network(images).scores > 0.9).float().mean() > 0.1


def test_a_frozen_stem_of_the_user_stays_as_it_is(users: str) -> None:
    stem = {"stem": f"{users}:with_batch_norm", "in_channels": 2, "image_size": (9, 12)}
    network = built(**stem, stem_frozen=True).train()
    before = {name: tensor.clone() for name, tensor in network.stem.state_dict().items()}
    images = torch.rand(3, 2, 9, 12)
    losses(network, images, torch.tensor([0, 9, 1])).mean().backward()
    assert torch.equal(network(images).scores, network(images).scores)  # no dropout
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.stem.state_dict().items())
    assert [p.grad for p in network.stem.parameters()] == [None] * 4
    assert all(p.grad is not None for name, p in network.named_parameters() if not name.startswith("stem."))
    config = config_of(**stem, stem_frozen=True)
    learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert num_parameters(config) == learned
    assert output_numbers(config) == 6 * 4 * 5 + 12 * 2 * 3 + 10 * 16  # norm, primary and class capsules


@pytest.mark.parametrize(
    ("stem", "error", "message"),
    [
        ("with_batch_norm", ConfigError, "the BatchNorm layer '1', .* set --model.stem-frozen, or build"),
        ("flat", ShapeError, r"the stem returns \[1, 784\] for images \[1, 1, 28, 28\]; give one that"),
        ("no_module", ConfigError, "returns a int; return a torch.nn.Module"),
    ],
)
def test_a_stem_that_cannot_be_trained_on_is_refused(
    users: str, stem: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        built(stem=f"{users}:{stem}")
    config = config_of(stem=f"{users}:{stem}")
    with pytest.raises(ConfigError, match=message):
        check_network(config, 1)
    with pytest.raises(error, match=message):
        find_family("resnet_capsnet").cost(config.model, config.routing)


RULES = [
    ({"stem": "vgg"}, "model.stem", "is not a stem"),
    ({"stem": "stems_of_a_user:NUMBER"}, "model.stem", "is a int, no callable"),
    ({"stem": "stems_of_a_user:absent"}, "model.stem", "has no attribute 'absent'"),
    ({"stem_channels": (), "stem_blocks": ()}, "model.stem_channels", "has no stage"),
    ({"stem_blocks": (1,)}, "model.stem_blocks", "as many numbers as model.stem_channels=(4, 8)"),
    ({"stem_blocks": (1, -1)}, "model.stem_blocks", "at least 0"),
    ({"stem_channels": (4, 9)}, "model.norm_groups", "must divide the 9 channels"),
    (
        {"padding": "valid", "stem_first": "conv7_pool", "image_size": (60, 16)},
        "model.image_size",
        "leaves 2 features for the valid kernel 3",
    ),
    ({"decoder": True, "decoder_hidden": (0, 3)}, "model.decoder_hidden", "at least 1 each"),
]


@pytest.mark.parametrize(("model", "field", "rule"), RULES)
def test_every_rule_names_field_and_value(users: str, model: dict, field: str, rule: str) -> None:
    (found,) = problems(config_of(**model))
    assert (found.field, found.value) == (field, model.get(field.partition(".")[2], 2))
    assert rule in found.rule


def test_the_layers_refuse_the_same_by_themselves() -> None:
    with pytest.raises(ShapeError, match="norm_groups=8 does not divide 12 channels"):
        ResNetStem(1, (8, 12), (1, 1))
    with pytest.raises(ShapeError, match="must have one number a stage each"):
        ResNetStem(1, (8, 16), (1,))
    with pytest.raises(ValueError, match="first='pool' is unknown; choose 'conv3' or 'conv7_pool'"):
        ResNetStem(1, first="pool")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="features of 2x3 for the kernel 3"):
        ResNetCapsNet((1, 8, 12), padding="valid")


@pytest.mark.parametrize("num_classes", [2, 10, 19])
def test_absent_classes_weigh_as_much_as_nine(num_classes: int) -> None:
    network = built(num_classes=num_classes)
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([0, 1, 1])
    found = losses(network, images, labels, absent_scaling="classes")
    expected = margin_loss(network(images).scores, labels, absent_weight=0.5 * 9 / (num_classes - 1))
    torch.testing.assert_close(found, expected)


def test_it_can_be_exported_for_any_batch() -> None:
    network = built(in_channels=3, image_size=(9, 12), decoder=True, decoder_hidden=(5, 6)).eval()
    shapes = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(network, (torch.rand(3, 3, 9, 12),), dynamic_shapes=shapes)
    images = torch.rand(7, 3, 9, 12)
    for one, other in zip(program.module()(images), network(images), strict=True):
        torch.testing.assert_close(one, other)
