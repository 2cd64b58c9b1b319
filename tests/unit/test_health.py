"""The health of capsule layers, and what the doctor says of healthy networks and of each illness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capsdist.analysis.doctor import Finding, diagnose, examine
from capsdist.analysis.subject import ReadImages, Subject
from capsdist.config import (
    CapsNetConfig,
    Config,
    ConvCapsNetConfig,
    ConvRouting,
    NetworkConfig,
    Section,
    problems,
)
from capsdist.config.em_capsnet import EMCapsNetConfig, EMRouting
from capsdist.models import ClassCapsules, build_model
from capsdist.models.conv_capsnet import ConvCapsNet
from capsdist.models.em_capsnet import EMCapsNet
from capsdist.models.health import LayerHealth, LayerState, layer_state, observed
from capsdist.models.layers import PrimaryCapsules
from capsdist.models.matrix_layers import MatrixConvCapsules

DEEP = ConvCapsNetConfig(
    image_size=15, num_classes=4, conv_channels=8, conv_kernel=3, primary_types=4, primary_dim=6,
    capsule_types=(4, 4), capsule_dims=(6, 6), capsule_kernels=(3, 3), capsule_strides=(1, 2), class_dim=8,
)  # fmt: skip
FAMILIES: dict[str, tuple[NetworkConfig, list[str]]] = {
    "conv_capsnet": (DEEP, ["primary_capsules", "blocks.0.layer", "blocks.1.layer", "class_capsules"]),
    "capsnet": (
        CapsNetConfig(image_size=15, num_classes=4, conv_channels=8, conv_kernel=3, primary_types=4,
                      primary_kernel=3, decoder=False),
        ["primary_capsules", "class_capsules"],
    ),
    "em_capsnet": (
        EMCapsNetConfig(image_size=15, num_classes=4, conv_channels=4, conv_kernel=3, primary_types=3,
                        capsule_types=(3,), capsule_kernels=(3,), capsule_strides=(2,)),
        ["primary_capsules", "conv_capsules.0", "class_capsules"],
    ),
}  # fmt: skip


def subject_of(
    model: NetworkConfig, change: Callable[[Any], None] = lambda network: None, **options: Any
) -> Subject:
    """A network and 16 random images; options: of its routing; `change` makes it ill, without gradients."""
    torch.manual_seed(4)
    matrices = isinstance(model, EMCapsNetConfig)
    routing: Section = EMRouting(**options) if matrices else ConvRouting(**{"iterations": 3, **options})
    config = Config(model=model) if model.kind == "capsnet" else Config(model=model, routing=routing)
    network = build_model(config.model, config.routing).eval()
    with torch.no_grad():
        change(network)
    images, labels = torch.rand(16, 1, 15, 15), torch.arange(16) % 4
    read = ReadImages(images, images, labels, labels, labels == labels)
    return Subject("run", "run/step", 1, config, network, ("a", "b", "c", "d"), "split", read)


def found_in(subject: Subject) -> set[tuple[str, str]]:
    return {(each.layer, each.illness) for each in diagnose(examine(subject), subject.config)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_line_for_each_capsule_layer(family: str) -> None:
    model, names = FAMILIES[family]
    subject = subject_of(model)
    layers = examine(subject)
    assert [layer.name for layer in layers] == names
    for layer in layers:
        assert layer.num_capsules > 0
        assert layer.live_percent is not None
        assert 0 <= layer.live_percent <= 100
        assert layer.grad_norm is not None
        assert layer.grad_norm > 0
        routed = layer.name != "primary_capsules"
        for number in (layer.relative_entropy, layer.largest_share, layer.logit_change):
            assert (number is not None) == routed
        assert (layer.num_choices > 0) == routed
        assert layer.num_decisions == 2 * routed
        assert all(parameter.grad is None for parameter in subject.network.parameters())


def class_rows(algorithm: str, **options: Any) -> list[LayerHealth]:
    """The rows of the class capsules of an algorithm, after a forward and a backward pass."""
    groups = 2 if algorithm == "grouped" else 1
    config = Config(model=DEEP, routing=ConvRouting(algorithm=algorithm, groups=groups, **options))
    assert problems(config) == []
    torch.manual_seed(4)
    network = build_model(config.model, config.routing)
    with observed(network) as found:
        network(torch.rand(3, 1, 15, 15)).scores.sum().backward()
    return [layer for layer in found.report() if layer.name.startswith("class_capsules")]


@pytest.mark.parametrize(
    ("algorithm", "decisions"),
    [("attention", 1), ("inverted", 2), ("heinsen", 2), ("grouped", 2), ("fully_connected", None)],
)
def test_class_capsules_of_other_algorithms_have_a_row(algorithm: str, decisions: int | None) -> None:
    (layer,) = class_rows(algorithm)
    assert (layer.name, layer.num_capsules) == ("class_capsules", 4)
    routed = decisions is not None
    assert (layer.num_choices, layer.num_decisions) == ((4, decisions) if routed else (0, 0))
    for number in (layer.relative_entropy, layer.largest_share):
        assert 0.25 <= number <= 1 + 1e-6 if number is not None else not routed
    assert (layer.logit_change is not None) == (routed and algorithm != "attention")
    assert layer.mean_length is not None
    assert layer.mean_length > 0
    assert layer.grad_norm is not None


@pytest.mark.parametrize(("concurrent", "decisions"), [(False, [2, 2, 2]), (True, [0, 1, 2])])
def test_each_layer_of_inverted_attention_has_a_row(concurrent: bool, decisions: list[int]) -> None:
    layers = class_rows("inverted", hidden_capsules=(6, 5), concurrent=concurrent)
    names = ["class_capsules.layers.0", "class_capsules.layers.1", "class_capsules"]
    assert [layer.name for layer in layers] == names
    assert [layer.num_capsules for layer in layers] == [6, 5, 4]
    assert [layer.num_decisions for layer in layers] == decisions
    assert [layer.logit_change is not None for layer in layers] == [number > 0 for number in decisions]
    assert [layer.mean_length is None for layer in layers] == [True, True, False]
    assert all(layer.grad_norm is not None for layer in layers)


@pytest.mark.parametrize(
    "model", [DEEP, DEEP.model_copy(update={"class_weights": "shared"}), FAMILIES["em_capsnet"][0]]
)
def test_a_network_at_its_start_is_healthy(model: NetworkConfig) -> None:
    assert found_in(subject_of(model)) == set()


def test_small_weights_starve_what_is_above_them() -> None:
    def starve(network: ConvCapsNet) -> None:
        network.capsule_blocks[0].layer.packed_weights.mul_(0.001)

    found = found_in(subject_of(DEEP, starve))
    assert {("blocks.0.layer", "starved"), ("blocks.1.layer", "starved")} <= found
    assert not any(layer == "primary_capsules" and illness == "starved" for layer, illness in found)
    assert not any(illness in ("undecided", "saturated") for _, illness in found)


def test_large_weights_saturate() -> None:
    def saturate(network: ConvCapsNet) -> None:
        network.primary_capsules.conv.weight.mul_(1e5)

    assert ("primary_capsules", "saturated") in found_in(subject_of(DEEP, saturate))


def test_a_coupling_that_agreement_does_not_move_is_undecided() -> None:
    def quieten(network: ConvCapsNet) -> None:
        layer = network.class_capsules
        assert isinstance(layer, ClassCapsules)
        assert layer.bias is not None
        layer.bias.fill_(0.3)  # what makes the capsules live
        layer.packed_weights.mul_(0.001)

    found = found_in(subject_of(DEEP.model_copy(update={"capsule_bias": True}), quieten))
    assert ("class_capsules", "undecided") in found
    assert ("class_capsules", "starved") not in found


def test_priors_that_send_all_children_to_one_parent_collapse() -> None:
    def collapse(network: ConvCapsNet) -> None:
        priors = network.capsule_blocks[1].layer.log_priors
        assert priors is not None
        priors[:, 2] = 50.0

    model = DEEP.model_copy(update={"log_priors": True})
    subject = subject_of(model, collapse)
    found = next(each for each in diagnose(examine(subject), subject.config) if each.illness == "collapsed")
    assert found.layer == "blocks.1.layer"
    assert "go to one of 4" in found.words
    assert "--model.no-log-priors" in found.remedies
    assert str(found).startswith("blocks.1.layer is collapsed: 100.0 % of all children")


def test_matrix_capsules_of_wide_gaussians_are_undecided() -> None:
    model = FAMILIES["em_capsnet"][0]
    subject = subject_of(model, variance_floor=1e6)
    found = diagnose(examine(subject), subject.config)
    (undecided,) = (each for each in found if (each.layer, each.illness) == ("conv_capsules.0", "undecided"))
    assert "a lower --routing.variance-floor" in undecided.remedies
    once = examine(subject_of(model, variance_floor=1e6, iterations=1))
    assert [layer.relative_entropy for layer in once] == [None, pytest.approx(1), pytest.approx(1)]
    assert [layer.logit_change for layer in once] == [None, None, None]
    assert not any(each.illness == "undecided" for each in diagnose(once, subject.config))


def test_matrix_capsules_whose_votes_agree_for_one_type_alone_collapse() -> None:
    def collapse(network: EMCapsNet) -> None:
        layer = network.conv_capsules[0]
        assert isinstance(layer, MatrixConvCapsules)
        layer.weights[:, :, 1] *= 0.01  # the votes for one type are close to each other

    subject = subject_of(FAMILIES["em_capsnet"][0], collapse)
    (found,) = (each for each in diagnose(examine(subject), subject.config) if each.illness == "collapsed")
    assert found.layer == "conv_capsules.0"
    assert "of all children go to one of 3 parents" in found.words
    assert {"a higher --routing.variance-floor", "fewer --routing.iterations"} <= set(found.remedies)
    assert not any("log-priors" in remedy for remedy in found.remedies)


def test_remedies_about_routing_are_those_that_the_layers_algorithm_reads() -> None:
    ill = {"relative_entropy": 1.0, "largest_share": 1.0}
    config = Config(model=DEEP, routing=ConvRouting(algorithm="attention"))
    below, above = (layer_of(name, **ill) for name in ("blocks.1.layer", "class_capsules"))
    found = {(each.layer, each.illness): each.remedies for each in diagnose([below, above], config)}
    assert any("--routing.iterations" in words for words in found["blocks.1.layer", "undecided"])
    assert found["class_capsules", "undecided"] == ("--model.log-priors", "more --train.epochs")
    assert not any("--routing.iterations" in words for words in found["class_capsules", "collapsed"])
    hidden = layer_of("class_capsules.layers.0", live_percent=None, saturated_percent=None, **ill)
    inverted = Config(model=DEEP, routing=ConvRouting(algorithm="inverted"))
    undecided, collapsed = diagnose([hidden], inverted)
    assert any("--routing.iterations" in words for words in undecided.remedies)
    assert "fewer --routing.iterations" in collapsed.remedies
    assert not any("log-priors" in words for words in (*undecided.remedies, *collapsed.remedies))


def layer_of(name: str, **changes: Any) -> LayerHealth:
    healthy = {
        "name": name, "num_capsules": 100, "live_percent": 90.0, "mean_length": 0.4, "saturated_percent": 5.0,
        "relative_entropy": 0.9, "largest_share": 0.4, "logit_change": 0.1, "num_choices": 10,
        "num_decisions": 2, "grad_norm": 1.0, "weight_norm": 10.0,
    }  # fmt: skip
    return LayerHealth(**{**healthy, **changes})


@pytest.mark.parametrize(
    ("changes", "illness"),
    [
        ({"live_percent": 9.9}, "starved"),
        ({"saturated_percent": 50.1}, "saturated"),
        ({"saturated_percent": 50.1, "relative_entropy": None, "grad_norm": 0.0009}, "saturated"),
        ({"relative_entropy": 0.99995}, "undecided"),
        ({"largest_share": 0.95}, "collapsed"),
        ({"grad_norm": 0.0009, "weight_norm": 11.0}, "without gradient"),
    ],
)
def test_thresholds_and_remedies(changes: dict[str, Any], illness: str) -> None:
    layers = [layer_of("below"), layer_of("ill", **changes)]
    (found,) = diagnose(layers, Config(model=DEEP))
    assert (found.layer, found.illness) == ("ill", illness)
    assert found.remedies
    residual = Config(model=DEEP.model_copy(update={"residual": True, "pose_norm": True}))
    (other,) = diagnose(layers, residual)
    assert not {"--model.residual", "--model.pose-norm"} & set(other.remedies)
    (plain,) = diagnose(layers, Config())
    assert not any("pose-norm" in remedy for remedy in plain.remedies)


def test_long_primary_capsules_that_still_learn_are_healthy() -> None:
    primary = layer_of("primary", saturated_percent=99.0, relative_entropy=None, grad_norm=0.0011)
    assert diagnose([replace(primary, weight_norm=100.0), layer_of("above")], Config()) == []


def test_what_follows_from_a_starved_layer_is_not_named() -> None:
    layers = [layer_of("low", live_percent=0.0), layer_of("high", relative_entropy=1.0, grad_norm=0.0)]
    assert [(each.layer, each.illness) for each in diagnose(layers, Config())] == [("low", "starved")]
    once = layer_of("once", relative_entropy=1.0, num_decisions=0)
    assert diagnose([once, layer_of("pair", num_choices=1, largest_share=1.0)], Config()) == []


def test_the_numbers_are_those_of_the_definitions() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([3.0, 4.0]))

        def forward(self, poses: Tensor) -> Tensor:
            return poses * self.scale.sum()

    def state(layer: Fixed, poses: Tensor, output: Tensor) -> LayerState:
        return LayerState(output)

    layer_state.register(Fixed)(state)
    network = nn.Sequential(Fixed())
    with observed(network) as found:
        network(torch.tensor([[0.0, 0.01, 0.1], [0.0, 0.02, 0.5]])).sum().backward()
        network(torch.ones(1, 3)).sum().backward()  # a second microbatch is not looked at
    (layer,) = found.report()
    assert (layer.num_capsules, layer.weight_norm) == (3, 5.0)
    assert layer.live_percent == pytest.approx(200 / 3)
    assert layer.saturated_percent == pytest.approx(100 / 6)
    assert layer.grad_norm == pytest.approx(2**0.5 * 0.63)
    assert not any(each._forward_hooks for each in network.modules())


def test_observing_changes_no_gradient_and_leaves_nothing_behind() -> None:
    subject = subject_of(DEEP.model_copy(update={"capsule_dropout": 0.3}))
    network, images = subject.network.train(), subject.images.seen

    def gradients() -> list[Tensor]:
        network.zero_grad()
        torch.manual_seed(2)
        network(images).scores.sum().backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    plain = gradients()
    with observed(network) as found:
        watched = gradients()
    assert all(torch.equal(*pair) for pair in zip(plain, watched, strict=True))
    assert len(found.report()) == 4
    assert isinstance(network.primary_capsules, PrimaryCapsules)
    assert not network.primary_capsules._forward_hooks
    assert all(not parameter._backward_hooks for parameter in network.parameters())


def test_findings_read_as_sentences() -> None:
    found = Finding("blocks.3.layer", "starved", "0.0 % of 5 capsules are long", ("fewer layers", "--x"))
    assert str(found) == "blocks.3.layer is starved: 0.0 % of 5 capsules are long. Try fewer layers; --x."
