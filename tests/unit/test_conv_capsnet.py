"""Deep networks of convolutional capsules: shapes, gradients, live starts, remedies, recomputed blocks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capsdist.bench.memory import saved_bytes
from capsdist.config import Config, ConvCapsNetConfig, ConvRouting, Loss, Train, get_preset, problems
from capsdist.errors import ShapeError
from capsdist.models import build_model
from capsdist.models.capsnet import capsnet_losses
from capsdist.models.capsule_blocks import CapsuleBlock, ChildPoses, run_block, start_gain
from capsdist.models.conv_capsnet import ConvCapsNet, PaperStem
from capsdist.models.conv_capsules import ConvCapsules
from capsdist.train.network import build_rank_network

SMALL: dict[str, Any] = {
    "conv_channels": 6, "conv_kernel": 4, "norm_groups": 2, "stem_channels": (4, 6), "stem_blocks": (0, 1),
    "primary_types": 3, "primary_dim": 4, "capsule_types": (3, 2), "capsule_dims": (4, 5),
    "capsule_kernels": (3, 2), "capsule_strides": (1, 2), "class_dim": 6, "num_classes": 4,
    "image_size": (13, 17), "in_channels": 2, "decoder_hidden": (5, 6),
}  # fmt: skip


def config_of(routing: dict[str, Any] | None = None, **model: Any) -> Config:
    return Config(
        model=ConvCapsNetConfig.model_validate(SMALL | model),
        routing=ConvRouting.model_validate(routing or {}),
    )


def built(routing: dict[str, Any] | None = None, **model: Any) -> ConvCapsNet:
    torch.manual_seed(3)
    config = config_of(routing, **model)
    assert problems(config) == []
    network = build_model(config.model, config.routing)
    assert isinstance(network, ConvCapsNet)
    return network


def loss_of(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    options = dict(Loss(reconstruction_weight=0.1))
    return capsnet_losses(network(images, labels), images, labels, **options)["loss"].mean()


def gradients(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    torch.manual_seed(11)
    loss_of(network, images, labels).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


REMEDIES = {"residual": True, "pose_norm": True, "capsule_dropout": 0.3, "capsule_bias": True}
FORMS = [
    ({}, {}),
    ({"log_priors": True, "decoder": True, "num_labels": 2}, {"none_of_the_above": True}),
    ({"class_weights": "shared", **REMEDIES}, {"competition": "position", "iterations": 2}),
    ({"stem": "resnet", "capsule_padding": "valid", "image_size": (23, 21)}, {"iterations": 1}),
    ({"capsule_types": (), "capsule_dims": (), "capsule_kernels": (), "capsule_strides": ()}, {}),
]


@pytest.mark.parametrize(("model", "routing"), FORMS)
def test_every_parameter_learns_on_rectangular_images(model: dict, routing: dict) -> None:
    network = built(routing, **model)
    images = torch.rand(4, *network.image_shape)
    labels = torch.tensor([[0, 1], [1, 2], [3, 0], [2, 3]]) if network.num_labels == 2 else torch.arange(4)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):  # the last convolution of a residual block of the stem starts at 0
        gradients(network, images, labels)
        optimizer.step()
    output = network(images)
    assert output.scores.shape == (4, 4)
    assert output.parent_poses.shape == (4, 4, 6)
    assert (output.reconstructions is None) == (not model.get("decoder"))
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    torch.testing.assert_close(network.eval()(images[1:2]).scores, network(images).scores[1:2])


def test_children_of_class_capsules_are_the_grid_by_type_and_position() -> None:
    network, images = built(), torch.rand(2, 2, 13, 17)
    grid, children = network.grid(images), network.child_poses(images)
    rows, columns = network.child_sides(13, 17)  # of the features: the stem pads
    assert grid.shape[1:] == (rows, columns, 2, 5)
    for kind, row, column in ((0, 1, 2), (1, 0, 1)):
        assert torch.equal(children[:, (kind * rows + row) * columns + column], grid[:, row, column, kind])


@pytest.mark.parametrize(("depth", "iterations"), [(1, 3), (4, 1), (6, 2), (6, 3)])
@pytest.mark.parametrize("remedy", [{}, {"pose_norm": True}, {"residual": True}])
def test_stacks_start_with_live_capsules(depth: int, iterations: int, remedy: dict) -> None:
    sizes = {"capsule_types": (8,) * depth, "capsule_dims": (8,) * depth, "capsule_kernels": (3,) * depth,
             "capsule_strides": (1,) * depth, "primary_types": 8, "primary_dim": 8}  # fmt: skip
    network = built({"iterations": iterations}, **sizes, **remedy)
    found, images = [], torch.rand(4, 2, 13, 17)
    for block in network.capsule_blocks:
        block.layer.register_forward_hook(lambda module, inputs, poses: found.append(poses.norm(dim=-1)))
    with torch.no_grad():
        scores = network(images).scores
        assert all((poses.amax(0) > 0.1).float().mean() > 0.9 for poses in found)
        assert all((poses > 0.95).float().mean() < 0.5 for poses in found)
        assert 0.01 < scores.mean() < 0.9
        if not remedy and depth == 6:  # the mutant: what one layer alone starts with, see start_gain
            found.clear()
            for block in network.capsule_blocks:
                block.layer.draw_weights(0.4)
            network(images)
            assert (found[-1].amax(0) > 0.1).float().mean() < 0.1
    assert start_gain(1) > 2 > start_gain(2)


def test_the_residual_path_is_the_identity_where_shapes_fit() -> None:
    poses = torch.randn(2, 5, 4, 3, 6)
    block = CapsuleBlock(ConvCapsules(3, 6, 3, 6, 3, 1, "same"), ChildPoses(), residual=True)
    torch.testing.assert_close(block(poses), poses + block.layer(poses))
    for other in (
        ConvCapsules(3, 6, 3, 6, 3, 2, "same"),
        ConvCapsules(3, 6, 3, 6, 3, 1, "valid"),
        ConvCapsules(3, 6, 4, 6, 3, 1, "same"),
        ConvCapsules(3, 6, 3, 5, 3, 1, "same"),
    ):
        assert not CapsuleBlock(other, ChildPoses(), residual=True).residual
    assert CapsuleBlock(ConvCapsules(3, 6, 3, 6, 1, 1, "valid"), ChildPoses(), residual=True).residual


def test_pose_normalisation_scales_each_image_by_one_number() -> None:
    poses = torch.randn(3, 5, 4, 2, 6, dtype=torch.float64) * torch.tensor([1e-4, 1.0, 30.0]).view(
        3, 1, 1, 1, 1
    )
    found = ChildPoses(0.5)(poses)
    ratio = (found / poses).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    squares = found.square().sum(-1).mean((1, 2, 3))
    torch.testing.assert_close(squares[1:], torch.full((2,), 0.25, dtype=torch.float64), atol=1e-5, rtol=0)
    assert squares[0] < 0.02  # less than epsilon: an image of nothing is not blown up
    zero = torch.zeros(1, 2, 2, 2, 3, requires_grad=True)
    ChildPoses(0.5)(zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def test_capsule_dropout_drops_whole_capsules_and_keeps_the_mean() -> None:
    inputs, poses = ChildPoses(dropout=0.25), torch.rand(4, 9, 8, 6, 5) + 0.5
    found = inputs(poses)
    whole = (found == 0).all(-1)
    assert torch.equal(whole, (found == 0).any(-1))
    assert 0.2 < whole.float().mean() < 0.3
    torch.testing.assert_close(found[~whole], (poses / 0.75)[~whole])
    assert inputs.eval()(poses) is poses


@pytest.mark.parametrize("model", [{}, REMEDIES, {**REMEDIES, "log_priors": True, "class_weights": "shared"}])
def test_recomputed_blocks_give_the_same_gradients_to_the_last_bit(model: dict) -> None:
    network = built(**model)
    images, labels = torch.rand(3, 2, 13, 17), torch.tensor([0, 3, 1])
    plain = gradients(network, images, labels)
    calls: list[int] = []
    for number, block in enumerate(network.capsule_blocks):
        block.layer.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    network.recompute_blocks = True
    again = gradients(network, images, labels)
    assert calls == [0, 1, 1, 0]
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    calls.clear()
    with torch.no_grad():
        network(images)
    assert calls == [0, 1]


def test_recomputed_blocks_keep_their_inputs_alone() -> None:
    sizes = {"capsule_types": (3, 3, 3), "capsule_dims": (4, 4, 4), "capsule_kernels": (3, 3, 3),
             "capsule_strides": (1, 1, 1), **REMEDIES}  # fmt: skip
    network, poses = built(**sizes), torch.randn(3, 7, 9, 3, 4, requires_grad=True)

    def run(recompute: bool) -> Tensor:
        found = poses
        for block in network.capsule_blocks:
            found = run_block(block, found, recompute=recompute)
        return found

    own = list(network.parameters())
    kept = [saved_bytes(lambda flag=flag: run(flag), exclude=(poses, *own)) for flag in (True, False)]
    of_input = poses.nbytes
    assert kept[0] < 2.1 * of_input  # of the second and third block, and states of the random generator
    assert kept[1] > 8 * of_input


def test_training_sets_recomputed_blocks_and_other_families_refuse_them() -> None:
    config = config_of().model_copy(update={"train": Train(recompute="blocks")})
    assert problems(config) == []
    network = build_rank_network(config, world_size=1, device=torch.device("cpu"))
    assert network.recompute_blocks is True
    (found,) = problems(Config(train=Train(recompute="blocks")))
    assert (found.field, found.value) == ("train.recompute", "blocks")
    assert "not for the family capsnet" in found.rule


NO_GRIDS = {"capsule_types": (), "capsule_dims": (), "capsule_kernels": (), "capsule_strides": ()}
RULES = [
    ({"capsule_dims": (4,)}, {}, "model.capsule_dims", "has 1 numbers, model.capsule_types has 2"),
    ({"capsule_strides": (2, 1, 1)}, {}, "model.capsule_strides", "model.capsule_kernels has 2"),
    ({"capsule_kernels": (3, 0)}, {}, "model.capsule_kernels", "at least 1"),
    ({"capsule_padding": "valid", "capsule_kernels": (9, 9)}, {}, "model.image_size", "where 7 positions"),
    ({"residual": True, "capsule_strides": (2, 2)}, {}, "model.residual", "finds no layer"),
    ({"class_weights": "shared", "class_dim": 1}, {}, "model.class_dim", "two coordinates"),
    ({"capsule_dropout": 1.0}, {}, "model.capsule_dropout", "less than 1"),
    ({"stem": "vgg"}, {}, "model.stem", "is not a stem"),
    (NO_GRIDS, {"algorithm": "attention", "iterations": 2}, "routing.iterations", "is not read by"),
    (NO_GRIDS, {"competition": "position"}, "routing.competition", "is not read by"),
    ({}, {"recompute": "iterations"}, "routing.recompute", "not there for grids"),
    ({}, {"backend": "fused"}, "routing.backend", "no kernels for grids"),
    (
        NO_GRIDS | {"class_weights": "shared", "log_priors": True},
        {}, "model.log_priors", "has no layer to act on",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "routing", "field", "rule"), RULES)
def test_every_rule_names_field_and_value(model: dict, routing: dict, field: str, rule: str) -> None:
    (found,) = problems(config_of(routing, **model))
    assert found.field == field
    assert rule in found.rule


def test_all_stems_are_named_to_one_who_misspells_theirs() -> None:
    choices = {}
    for kind in ("conv_capsnet", "resnet_capsnet"):
        (found,) = problems(Config.model_validate({"model": {"kind": kind, "stem": "vgg"}}))
        choices[kind] = found.fix
        for stem in re.findall(r"\w+", found.fix.removeprefix("choose one of ").partition(", or")[0]):
            assert problems(Config.model_validate({"model": {"kind": kind, "stem": stem}})) == []
    assert choices["conv_capsnet"].startswith("choose one of paper, resnet, or an import path")
    assert choices["resnet_capsnet"].startswith("choose one of resnet, or an import path")


def test_the_network_refuses_the_same_by_itself() -> None:
    with pytest.raises(ShapeError, match=r"capsule_types=\(8,\).* differ in length"):
        ConvCapsNet(stem=PaperStem(1, 4), capsule_dims=(8, 8))
    with pytest.raises(ShapeError, match="capsule_dropout=1 must be at least 0 and below 1"):
        ConvCapsNet(stem=PaperStem(1, 4), capsule_dropout=1)
    with pytest.raises(ShapeError, match="competition='types' is unknown; choose 'field' or 'position'"):
        ConvCapsNet(stem=PaperStem(1, 4), **NO_GRIDS, competition="types")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="class_weights='own' is unknown; choose 'position' or 'shared'"):
        ConvCapsNet(stem=PaperStem(1, 4), class_weights="own")  # pyright: ignore[reportArgumentType]


def test_the_same_seed_draws_the_same_again() -> None:
    network = built(residual=True, capsule_bias=True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert network.initialise is not None
    torch.manual_seed(5)
    network.initialise()
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(5)
    network.initialise()
    assert all(torch.equal(first[name], tensor) for name, tensor in network.state_dict().items())
    drawn = [name for name in before if name.endswith("weights")]
    assert not any(torch.equal(first[name], before[name]) for name in drawn)


@pytest.mark.parametrize("preset", ["digits_conv", "digits_deep"])
def test_presets_of_the_digits_have_two_and_four_capsule_layers(preset: str) -> None:
    config = get_preset(preset)
    network = build_model(config.model, config.routing)
    assert isinstance(network, ConvCapsNet)
    assert len(network.capsule_blocks) + 1 == {"digits_conv": 2, "digits_deep": 4}[preset]
