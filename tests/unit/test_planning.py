"""What the planner says of small odd networks is what torch counts and keeps in real steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from capsdist.bench.memory import saved_bytes
from capsdist.bench.planner_check import Case, counted_flop, planned_flop
from capsdist.bench.step import Step
from capsdist.config import BaselineCNNConfig, Config, NetworkConfig, Train, get_preset, image_shape
from capsdist.config.cost import Bytes, Cost, LayerCost, Numbers, Routed
from capsdist.config.models import find_family
from capsdist.errors import ConfigError
from capsdist.models import build_model
from capsdist.models.counts import num_parameters
from capsdist.planning.memory import Setup, process_peak, split_over, state_bytes, training_memory
from capsdist.planning.plan import Device, communicated_bytes, plan_rows
from capsdist.train.precision import autocast
from capsdist.train.step import losses_of
from kinds_of_presets import DISTINCT

ODD: dict[str, Any] = {
    "in_channels": 3, "image_size": (21, 19), "conv_channels": 6, "conv_kernel": 4, "primary_types": 3,
    "primary_dim": 5, "primary_kernel": 5, "primary_stride": 3, "class_dim": 7, "num_classes": 4,
    "decoder_hidden": (19, 23),
}  # fmt: skip
RESIDUAL: dict[str, Any] = {
    "kind": "resnet_capsnet", "in_channels": 3, "image_size": (21, 19), "stem_channels": (6, 9),
    "stem_blocks": (1, 2), "norm_groups": 3, "primary_types": 3, "primary_dim": 5, "class_dim": 7,
    "num_classes": 4, "decoder_hidden": (19, 23),
}  # fmt: skip
CONVOLUTIONAL: dict[str, Any] = {
    "kind": "conv_capsnet", "in_channels": 3, "image_size": (21, 19), "conv_channels": 6, "conv_kernel": 4,
    "norm_groups": 3, "primary_types": 3, "primary_dim": 5, "capsule_types": (3, 4), "capsule_dims": (5, 6),
    "capsule_kernels": (3, 2), "capsule_strides": (1, 2), "class_dim": 7, "num_classes": 4,
    "decoder_hidden": (19, 23),
}  # fmt: skip
STEM = {"stem": f"{__name__}:plain_stem"}
NETWORKS = {
    "odd": ({}, {}),
    "same": ({"padding": "same"}, {"iterations": 1}),
    "official": (
        {"primary_coupling": True, "decoder": False, "capsule_bias": True, "log_priors": True},
        {"none_of_the_above": True, "iterations": 2},
    ),
    "last": ({}, {"gradient": "last"}),
    "attention": ({"log_priors": True}, {"algorithm": "attention"}),
    "inverted": ({}, {"algorithm": "inverted"}),
    "inverted, hidden": ({}, {"algorithm": "inverted", "hidden_capsules": (6, 9)}),
    "inverted, concurrent": ({}, {"algorithm": "inverted", "hidden_capsules": (6, 9), "concurrent": True}),
    "heinsen": ({}, {"algorithm": "heinsen"}),
    "average": ({}, {"algorithm": "average"}),
    "grouped": ({"capsule_bias": True}, {"algorithm": "grouped", "groups": 3}),
    "fully connected": ({}, {"algorithm": "fully_connected"}),
    "votes": ({}, {"recompute": "none", "iterations": 2}),
    "votes, one iteration": ({"log_priors": True}, {"recompute": "none", "iterations": 1}),
    "votes, last": ({"decoder": False}, {"recompute": "none", "gradient": "last"}),
    "iterations": ({}, {"recompute": "iterations"}),
    "iterations, priors": ({"log_priors": True}, {"recompute": "iterations", "gradient": "last"}),
    "separate": ({"decoder_separate": True, "num_labels": 2}, {"iterations": 1}),
    "many parents": (
        {"num_classes": 2500, "class_dim": 3, "primary_dim": 2, "decoder": False, "primary_kernel": 3},
        {"iterations": 2},
    ),
    "residual": ({**RESIDUAL, "decoder": True}, {}),
    "residual, separate": (
        {**RESIDUAL, "decoder": True, "decoder_separate": True, "num_labels": 2}, {"iterations": 1}
    ),
    "residual, pooled": (
        {**RESIDUAL, "image_size": (37, 42), "stem_channels": (12,), "stem_blocks": (0,),
         "stem_first": "conv7_pool", "padding": "valid"},
        {"iterations": 2},
    ),
    "residual, frozen": ({**RESIDUAL, "stem_frozen": True, "primary_kernel": 2, "padding": "valid"}, {}),
    "residual, frozen, copied": ({**RESIDUAL, "stem_frozen": True, "image_size": (22, 20)}, {}),
    "pooled": (
        {"kind": "pooling_cnn", "in_channels": 3, "image_size": (21, 19), "num_classes": 4,
         "conv_channels": (6, 9), "dense_units": 11},
        {},
    ),
    "matrix capsules": (
        {"kind": "em_capsnet", "in_channels": 2, "image_size": (21, 19), "num_classes": 3, "conv_channels": 5,
         "primary_types": 3, "capsule_types": (4, 2), "capsule_strides": (2, 1), "capsule_kernels": (3, 2)},
        {"iterations": 2},
    ),
    "convolutional capsules": (CONVOLUTIONAL, {}),
    "convolutional capsules, remedies": (
        {**CONVOLUTIONAL, "residual": True, "pose_norm": True, "capsule_dropout": 0.5, "capsule_bias": True,
         "log_priors": True, "decoder": True},
        {"iterations": 2},
    ),
    "convolutional capsules, shared": (
        {**CONVOLUTIONAL, "class_weights": "shared", "capsule_padding": "valid", "pose_norm": True,
         "capsule_types": (6, 1)},
        {"iterations": 2, "competition": "position"},
    ),
    "convolutional capsules, residual stem": (
        {**RESIDUAL, **CONVOLUTIONAL, "stem": "resnet", "stem_frozen": True}, {"iterations": 1},
    ),
    "convolutional capsules, last": (
        {**CONVOLUTIONAL, "stem_frozen": True, "capsule_dropout": 0.25}, {"gradient": "last"},
    ),
    "shifts": (
        {"kind": "transforming_autoencoder", "in_channels": 2, "image_size": (21, 19), "capsules": 5,
         "recognition_units": 7, "generation_units": 11},
        {},
    ),
    "shifts, linear": (
        {"kind": "transforming_autoencoder", "in_channels": 1, "image_size": (12, 19), "capsules": 4,
         "hidden": "relu", "contribution": "linear"},
        {},
    ),
    "other stem": ({**RESIDUAL, **STEM, "padding": "valid"}, {"iterations": 1}),
    "other stem, frozen": ({**RESIDUAL, **STEM, "stem_frozen": True, "padding": "valid"}, {}),
}  # fmt: skip


def plain_stem(in_channels: int) -> nn.Module:
    """Convolutions, a pooling, a normalisation, and a product that is no convolution."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(1, 5),
        nn.Linear(8, 11), nn.Conv2d(5, 6, 2, bias=False), nn.ReLU(),
    )  # fmt: skip


def unpriced_stem(in_channels: int) -> nn.Module:
    """A stem that looks at values, which the meta device has not."""

    class Looking(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum() > 0 else images + 1

    return Looking()


def case_of(name: str, num_images: int = 3) -> Case:
    model, routing = NETWORKS[name]
    return Case(name, num_images, model if "kind" in model else {**ODD, **model}, routing)


def cost_of(config: Config) -> Cost:
    price = find_family(config.model.kind).cost
    assert price is not None
    return price(config.model, config.routing)


@pytest.mark.parametrize("name", DISTINCT)
def test_parameters_of_every_preset(name: str) -> None:
    config = get_preset(name)
    assert cost_of(config).parameters == num_parameters(config)


@pytest.mark.parametrize("name", NETWORKS)
def test_flop_are_those_that_torch_counts_in_a_step(name: str) -> None:
    case = case_of(name, 8)  # fewer would be cut into other pieces
    assert planned_flop(case) == counted_flop(case)
    assert case.cost().parameters == num_parameters(case.config())
    whole = sum(p.numel() for p in build_model(case.config().model, case.config().routing).parameters())
    assert case.cost().parameters + case.cost().frozen == whole


def kept_bytes(config: Config, num_images: int, precision: Any) -> int:
    """Bytes that autograd keeps of a network's forward pass and losses."""
    network = build_model(config.model, config.routing)
    images = torch.rand(num_images, *image_shape(config.model))
    drawn, several = images, ()
    if config.model.draws_parts:
        several = (config.model.num_labels,)
        drawn = torch.rand(num_images, *several, *image_shape(config.model))
    labels = torch.randint(config.model.num_classes, (num_images, *several))
    if config.model.known_shift:  # which the network takes in their place
        labels = torch.rand(num_images, 2)
    weights = torch.ones(num_images)
    losses = losses_of(find_family(config.model.kind), config)

    def run() -> torch.Tensor:
        with autocast(precision, images.device):
            output = network(images, labels)
        return (losses(output, drawn, labels)["loss"] * weights).sum()

    return saved_bytes(run, exclude=(images, drawn, labels, weights, *network.parameters()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", [n for n in NETWORKS if n not in ("votes, last", "many parents", "other stem")]
)
def test_activations_are_what_autograd_keeps(name: str, precision: str) -> None:
    case = case_of(name)
    config, cost = case.config(), case.cost()
    narrow = 4 if precision == "fp32" else 2
    memory = training_memory(cost, Setup(narrow_bytes=narrow, microbatch=case.num_images))
    images = 4 * case.num_images * cost.input_numbers
    kept = kept_bytes(config, case.num_images, precision)
    assert memory.activations - images == pytest.approx(kept, rel=0.01)


def baseline_flop(model: NetworkConfig) -> tuple[int, int]:
    from torch.utils.flop_counter import FlopCounterMode

    config = Config(model=model, train=Train(global_batch_size=3, precision="fp32"))
    family = find_family(model.kind)
    step = Step(
        build_model(model, config.routing),
        family,
        config,
        images=torch.rand(3, *image_shape(model)),
        labels=torch.tensor([0, 1, 2]),
        precision="fp32",
    )
    with FlopCounterMode(display=False) as counter:
        step()
    layers = cost_of(config).layers
    return counter.get_total_flops(), 3 * sum(each.forward_flop + each.backward_flop for each in layers)


def test_the_baseline_network_is_priced_too() -> None:
    model = BaselineCNNConfig(in_channels=2, image_size=9, num_classes=7)
    counted, planned = baseline_flop(model)
    assert counted == planned
    assert cost_of(Config(model=model)).parameters == num_parameters(Config(model=model))


def test_a_stem_that_cannot_be_traced_is_named() -> None:
    model = {**RESIDUAL, "stem": f"{__name__}:unpriced_stem"}
    with pytest.raises(ConfigError, match=r"unpriced_stem.*meta device.*--train\.dry-run"):
        Case("unpriced", 2, model).cost()


@pytest.mark.parametrize(("stage", "numbers"), [(0, 4.0), (1, 3.0), (2, 2.5), (3, 2.0)])
def test_zero_divides_the_training_state(stage: int, numbers: float) -> None:
    assert sum(state_bytes(1001, Setup(num_ranks=2, zero_stage=stage))) == pytest.approx(
        numbers * 4 * 1001, abs=8
    )
    assert sum(state_bytes(1001, Setup(zero_stage=stage))) == 16 * 1001


LAYERS = Cost(
    10,
    [
        LayerCost("a", parameters=100, saved=Numbers(narrow=50), backward_peaks=(Bytes(8, 400),)),
        LayerCost("b", parameters=300, saved=Numbers(wide=20), forward_peaks=(Bytes(4000, 0),)),
    ],
)


def test_frozen_weights_have_neither_gradient_nor_state_nor_exchange() -> None:
    cost = replace(LAYERS, layers=[LayerCost("stem", frozen=1000), *LAYERS.layers])
    for stage, weights, sent in ((0, 1400, 0), (2, 1400, 0), (3, 700, 3 * 1000)):
        setup = Setup(num_ranks=2, zero_stage=stage, num_microbatches=3)
        memory, bare = training_memory(cost, setup), training_memory(LAYERS, setup)
        assert memory.weights == 4 * weights
        assert (memory.gradients, memory.optimizer) == (bare.gradients, bare.optimizer)
        assert communicated_bytes(cost, setup) - communicated_bytes(LAYERS, setup) == 4 * sent // 2


def test_the_peak_is_the_largest_moment() -> None:
    one = training_memory(LAYERS, Setup(microbatch=2))
    resident = 4 * 400 + 8 * 400 + 4 * 10 * 2
    assert one.peak == resident + (50 + 20) * 4 * 2 + 4000 * 2  # forward of b
    bare = replace(LAYERS, layers=[LAYERS.layers[0], replace(LAYERS.layers[1], forward_peaks=())])
    # backward of a: its kept numbers, its own peak, the gradient of b
    assert training_memory(bare, Setup(microbatch=2)).peak == resident + 50 * 4 * 2 + 8 * 2 + 400 + 300 * 4
    several = training_memory(bare, Setup(microbatch=2, num_microbatches=3))
    assert several.peak == resident + 4 * 10 * 4 + 1600 + 50 * 4 * 2 + 8 * 2 + 400


def test_on_a_cpu_the_peak_is_that_of_the_process() -> None:
    config = get_preset("mnist_paper")
    memory = {}
    for device in ("cpu", "cuda"):
        train = config.train.model_copy(update={"device": device})
        row = next(plan_rows(config.model_copy(update={"train": train}), Device(), 1))
        memory[device] = row.memory
    assert memory["cpu"].peak == process_peak(memory["cuda"]) > memory["cuda"].peak


def test_capsule_ranks_divide_class_capsules_only() -> None:
    layer = LayerCost("classes", parameters=1000, routed=Routed(10, 2, 5, 10, 3))
    part = split_over(layer, 4)
    assert part.parameters == 250
    assert part.saved == Numbers(20, 3 * 3 * 50)
    cost = replace(LAYERS, layers=[*LAYERS.layers, layer])
    # 400 replicated, 250 of a rank that no other has; poses and totals of 2 images
    sent = 4 * (2 * 3 / 4 * 400 + 3 / 4 * 2 * (2 * 20 + 11 * 4 * 50))
    assert communicated_bytes(cost, Setup(num_ranks=4, capsule_ranks=4, microbatch=2)) == sent
    assert communicated_bytes(cost, Setup(num_ranks=4, zero_stage=3)) == 4 * 3 * 3 / 4 * 1400
    assert communicated_bytes(cost, Setup()) == 0
