"""Images with several labels: decoder, networks, losses, rules, predictions."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from capsdist.config import BaselineCNNConfig, CapsNetConfig, Config, NoOptions, get_preset, problems
from capsdist.config.models import Family, find_family
from capsdist.errors import ShapeError
from capsdist.inference import Predictor
from capsdist.models import CapsNet, Output, build_model
from capsdist.models.counts import num_parameters
from capsdist.models.decoder import Decoder
from capsdist.models.registry import BASELINE_CNN
from capsdist.ops import multi_hot

SMALL: dict[str, Any] = {
    "image_shape": (2, 11, 12), "num_classes": 5, "conv_channels": 6, "conv_kernel": 3, "primary_types": 3,
    "primary_dim": 4, "primary_kernel": 3, "class_dim": 5, "decoder_hidden": (7, 9),
}  # fmt: skip
SETS = torch.tensor([[4, -1, 0], [2, 2, 1], [-1, -1, -1], [-1, 3, 0]])
MASK = multi_hot(SETS, 5) > 0


def decoder_and_poses(seed: int) -> tuple[Decoder, Tensor]:
    torch.manual_seed(seed)
    return Decoder(5, 3, (2, 4, 3), (6, 7)), torch.randn(4, 5, 3)


def gradient_by_class(decoder: nn.Module, poses: Tensor, labels: Tensor) -> Tensor:
    """Which capsules [B, J] receive a gradient from the reconstruction."""
    poses = poses.clone().requires_grad_()
    decoder(poses, labels).square().sum().backward()
    assert poses.grad is not None
    return poses.grad.abs().sum(-1) > 0


class OfPythonsIndices(Decoder):
    """The mutant: -1 is the last class."""

    def forward(self, parent_poses: Tensor, mask_labels: Tensor) -> Tensor:
        return super().forward(parent_poses, mask_labels % self.num_classes)


@pytest.mark.property(
    "chosen", "only the capsules of an image's labels are decoded, and have a gradient of it"
)
@pytest.mark.parametrize("labels", [SETS, MASK], ids=["sets", "mask"])
@pytest.mark.parametrize("seed", range(2))
def test_only_the_capsules_of_the_labels_are_decoded_and_trained(seed: int, labels: Tensor) -> None:
    decoder, poses = decoder_and_poses(seed)
    assert torch.equal(gradient_by_class(decoder, poses, labels), MASK)
    by_hand = torch.stack([
        torch.stack([poses[i, j] if MASK[i, j] else torch.zeros(3) for j in range(5)]) for i in range(4)
    ])  # fmt: skip
    expected = torch.sigmoid(decoder.layers(by_hand.flatten(1))).unflatten(1, (2, 4, 3))
    assert torch.equal(decoder(poses, labels), expected)
    others = torch.where(MASK[..., None], poses, torch.full_like(poses, torch.nan))
    assert torch.equal(decoder(others, labels), expected)  # not even NaN elsewhere gets through


@pytest.mark.defect("chosen", "-1, no label, taken for the last class")
def test_a_decoder_that_counts_from_the_end_breaks_that_property() -> None:
    mutant, poses = OfPythonsIndices(5, 3, (2, 4, 3), (6, 7)), torch.randn(4, 5, 3)
    assert not torch.equal(gradient_by_class(mutant, poses, SETS), MASK)


def test_one_label_is_decoded_alike_in_every_form() -> None:
    decoder, poses = decoder_and_poses(0)
    labels = torch.tensor([4, 0, 2, 2])
    for same in (labels[:, None], functional.one_hot(labels, 5).bool(), labels.int()):
        assert torch.equal(decoder(poses, same), decoder(poses, labels))


REFUSED = [
    (torch.zeros(3, 2, dtype=torch.int64), "mask_labels has shape [3, 2]; give [4], one an image, or [4, K]"),
    (torch.zeros(4, 2, dtype=torch.bool), "mask_labels has shape [4, 2]; give a mask as bool [4, 5]"),
    (torch.ones(4, 5, dtype=torch.int64),
     "mask_labels [4, 5] of dtype torch.int64 has no sets of fewer than 5 class numbers; give a mask as "
     "bool"),
    (torch.ones(4, 5), "mask_labels [4, 5] of dtype torch.float32 has no sets of fewer than 5 class numbers; "
     "give a mask as bool"),
    (torch.tensor([[0, 1]] * 3 + [[0, 5]]),
     "mask_labels[3, 1] = 5 is no class of 5; pass numbers from 0 to 4, or -1 for no class"),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "message"), REFUSED)
def test_what_names_no_capsules_is_refused_in_one_line(labels: Tensor, message: str) -> None:
    decoder, poses = decoder_and_poses(0)
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        decoder(poses, labels)


def small(**changes: Any) -> CapsNet:
    torch.manual_seed(0)
    return CapsNet(**{**SMALL, **changes})


@pytest.mark.parametrize("num_labels", [2, 4])
def test_a_network_decodes_as_many_longest_capsules_as_images_have_labels(num_labels: int) -> None:
    network, images = small(num_labels=num_labels), torch.rand(3, 2, 11, 12)
    found = network(images)
    order = [sorted(range(5), key=lambda j, row=row: -row[j]) for row in found.scores.tolist()]
    longest = torch.tensor([row[:num_labels] for row in order])
    assert torch.equal(found.reconstructions, network(images, longest).reconstructions)
    assert not torch.equal(found.reconstructions, network(images, longest[:, 0]).reconstructions)
    one = small()  # the same weights
    assert torch.equal(one(images).scores, found.scores)
    assert torch.equal(one(images).reconstructions, network(images, longest[:, 0]).reconstructions)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_an_exported_network_takes_any_number_of_images(num_labels: int) -> None:
    network, batch = small(num_labels=num_labels).eval(), torch.export.Dim("batch")
    images, more = torch.rand(3, 2, 11, 12), torch.rand(7, 2, 11, 12)
    labels = torch.tensor([4, 0, 2, 2, 1, 3, 0]) if num_labels == 1 else torch.cat([SETS, SETS])[:7]
    for given, others in (((images,), (more,)), ((images, labels[:3]), (more, labels))):
        shapes = {name: {0: batch} for name, _ in zip(("images", "labels"), given, strict=False)}
        program = torch.export.export(network, given, dynamic_shapes=shapes).module()
        torch.testing.assert_close(program(*others), network(*others))


def test_soft_labels_decode_the_classes_that_have_a_share() -> None:
    network, images = small(), torch.rand(4, 2, 11, 12)
    shares = multi_hot(SETS, 5) * torch.rand(4, 5).clamp(min=0.1)
    assert torch.equal(network(images, shares).reconstructions, network(images, MASK).reconstructions)
    assert torch.equal(network(images, SETS).reconstructions, network(images, MASK).reconstructions)


@pytest.mark.parametrize(("number", "message"), [
    (0, "num_labels=0 must be a whole number of at least 1"), (5, "num_labels=5 must be below num_classes=5"),
    (1.5, "num_labels=1.5 must be a whole number of at least 1"),
])  # fmt: skip
def test_a_number_of_labels_that_cannot_be_is_refused(number: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{message}$"):
        small(num_labels=number)


def test_the_baseline_has_sigmoid_cross_entropy_for_several_labels() -> None:
    assert BASELINE_CNN.multi_label_losses is not None
    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(4)
    for i in range(4):
        for j in range(5):
            probability = scores[i, j].sigmoid()
            expected[i] -= (probability if MASK[i, j] else 1 - probability).log()
    for labels in (SETS, MASK.float(), MASK.double()):
        found = BASELINE_CNN.multi_label_losses(Output(scores), scores, labels, NoOptions())["loss"]
        torch.testing.assert_close(found, expected)
    half = BASELINE_CNN.multi_label_losses(Output(scores.bfloat16()), scores, SETS, NoOptions())["loss"]
    assert half.dtype == torch.float32


def test_the_baseline_has_cross_entropy_with_probabilities_where_images_are_mixed() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, shares = torch.randn(4, 5, generator=generator), torch.rand(4, 5, generator=generator).softmax(1)
    expected = -(shares * (scores - scores.exp().sum(1, keepdim=True).log())).sum(1)
    found = BASELINE_CNN.losses(Output(scores), scores, shares.double(), NoOptions())["loss"]
    torch.testing.assert_close(found, expected)
    labels = torch.tensor([0, 4, 2, 2])
    plain = BASELINE_CNN.losses(Output(scores), scores, labels, NoOptions())["loss"]
    torch.testing.assert_close(
        BASELINE_CNN.losses(Output(scores), scores, multi_hot(labels, 5), NoOptions())["loss"], plain
    )
    with pytest.raises(ShapeError, match=r"^labels \[4, 3\] of dtype torch.int64 are several an image"):
        BASELINE_CNN.losses(Output(scores), scores, SETS, NoOptions())


def two_labels(kind: str = "capsnet", **model: Any) -> Config:
    return Config.model_validate({"model": {"kind": kind, "num_labels": 2, **model}})


@pytest.mark.parametrize("kind", ["capsnet", "baseline_cnn"])
def test_built_in_families_take_several_labels(kind: str) -> None:
    config = two_labels(kind, num_classes=4)
    assert problems(config) == []
    network = build_model(config.model, config.routing)
    assert num_parameters(config) == num_parameters(two_labels(kind, num_classes=4, num_labels=1))
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([[0, 3], [1, -1], [2, 0]])
    family = find_family(kind)
    assert family.multi_label_losses is not None
    found = family.multi_label_losses(network(images, labels), images, labels, config.loss)
    assert tuple(found) == family.loss_names
    assert {tuple(loss.shape) for loss in found.values()} == {(3,)}


ONE_LABEL = Family(title="one label", model=BaselineCNNConfig, build=lambda *_: nn.Identity(), losses=dict)


def test_a_family_without_losses_of_several_labels_is_a_problem() -> None:
    (problem,) = problems(two_labels(f"{__name__}:ONE_LABEL"))
    assert (problem.field, problem.value) == ("model.num_labels", 2)
    assert problem.rule == f"is more than the family {__name__}:ONE_LABEL can train on"
    assert "\n" not in str(problem)


def test_a_stored_configuration_without_the_field_has_one_label() -> None:
    stored = get_preset("mnist_paper").model_dump(mode="json")
    del stored["model"]["num_labels"]
    assert Config.model_validate(stored) == get_preset("mnist_paper")
    assert get_preset("mnist_paper").model.num_labels == 1


@pytest.mark.parametrize("kind", ["capsnet", "baseline_cnn"])
def test_a_predictor_names_the_longest_capsules(kind: str) -> None:
    shape = {"image_size": 9, "num_classes": 4, "num_labels": 2}
    tiny = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3}
    model = CapsNetConfig(**shape, **tiny) if kind == "capsnet" else BaselineCNNConfig(**shape)
    config = Config.model_validate({"model": model.model_dump()})
    torch.manual_seed(0)
    network = build_model(config.model, config.routing)
    names = ["bar", "dot", "ring", "cross"]
    predictor = Predictor(config, network, names, source="here", device=torch.device("cpu"))
    images = torch.rand(5, 1, 9, 9)
    found = predictor.predict(images)
    for row, labels, name in zip(found.scores.tolist(), found.labels.tolist(), found.names, strict=True):
        first, second, *_ = sorted(range(4), key=lambda j, row=row: -row[j])
        assert labels == [first, second]
        assert name == f"{names[first]}+{names[second]}"
    if kind == "capsnet":
        drawn = predictor.reconstruct(images)
        assert torch.equal(drawn, predictor.reconstruct(images, found.labels))
        assert torch.equal(drawn, predictor.reconstruct(images, found.labels.flip(1).tolist()))
        assert not torch.equal(drawn, predictor.reconstruct(images, found.labels[:, 0]))
