"""Networks that tests export: one of each kind, as checkpoints of random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from capsdist.cli.main import main
from capsdist.config import (
    BaselineCNNConfig,
    CapsNetConfig,
    Config,
    ConvCapsNetConfig,
    ConvRouting,
    Data,
    Optim,
    ResNetCapsNetConfig,
    Routing,
    Train,
)
from capsdist.config.em_capsnet import EMCapsNetConfig, EMRouting, SpreadLoss
from capsdist.models import build_model
from capsdist.runs.retention import checkpoint_name
from capsdist.train.checkpoint import Checkpoint, EngineState, write_checkpoint

__all__ = [
    "BASELINE", "CONFIGS", "CONV", "CROPPED", "EM", "INVERTED", "SIZES", "TWO", "exported", "save",
]  # fmt: skip

CLASSES = ("bar", "dot", "two rings")
PRIVATE = Train(storage="s3://private/runs", name="shown", precision="fp32")
CONFIGS = {
    "capsnet of two labels, averaged, resized": Config(
        model=CapsNetConfig(
            image_size=(9, 11), num_classes=3, num_labels=2, conv_channels=4, conv_kernel=3, primary_types=3,
            primary_dim=2, primary_kernel=3, class_dim=5, capsule_bias=True, log_priors=True,
            decoder_hidden=(7, 9), decoder_separate=True,
        ),
        routing=Routing(none_of_the_above=True, recompute="iterations"),
        data=Data(resize=(9, 11), standardise=True, root="/private/data"),
        optim=Optim(average_decay=0.9),
        train=PRIVATE,
    ),
    "resnet_capsnet, cropped": Config(
        model=ResNetCapsNetConfig(
            in_channels=3, image_size=7, num_classes=3, stem_channels=(4, 6), stem_blocks=(1, 0),
            norm_groups=2, primary_types=3, primary_dim=2, class_dim=5, decoder=True, decoder_hidden=(7, 9),
        ),
        data=Data(
            crop=7, normalise_mean=(0.1, 0.3, 0.5), normalise_std=(0.2, 0.3, 0.5), name="cifar10",
            validation_split="validation",
        ),
        train=PRIVATE,
    ),
    "baseline_cnn": Config(
        model=BaselineCNNConfig(image_size=3, num_classes=3), data=Data(name="mine"), train=PRIVATE
    ),
    "em_capsnet": Config(
        model=EMCapsNetConfig(
            image_size=9, num_classes=3, conv_channels=4, conv_kernel=3, primary_types=2, capsule_types=(3,),
            capsule_kernels=(2,), capsule_strides=(1,), pose_side=2,
        ),
        routing=EMRouting(iterations=2, inverse_temperature=1.0, temperature_decay=0.5),
        loss=SpreadLoss(),
        train=PRIVATE,
    ),
    "conv_capsnet, grouped": Config(
        model=ConvCapsNetConfig(
            image_size=(10, 9), num_classes=3, conv_channels=4, conv_kernel=3, primary_types=2, primary_dim=3,
            capsule_types=(4,), capsule_dims=(3,), class_dim=4, pose_norm=True, decoder=True,
            decoder_hidden=(7, 9),
        ),
        routing=ConvRouting(algorithm="grouped", groups=2, iterations=2), train=PRIVATE,
    ),
    "capsnet, inverted": Config(
        model=CapsNetConfig(
            image_size=9, num_classes=3, conv_channels=4, conv_kernel=3, primary_types=3, primary_dim=2,
            primary_kernel=3, class_dim=5, decoder_hidden=(7, 9),
        ),
        routing=Routing(algorithm="inverted", hidden_capsules=(4,), concurrent=True), train=PRIVATE,
    ),
}  # fmt: skip
TWO, CROPPED, BASELINE, EM, CONV, INVERTED = CONFIGS
SIZES = {TWO: (14, 13), CROPPED: (10, 9), BASELINE: (3, 3), EM: (9, 9), CONV: (10, 9), INVERTED: (9, 9)}
SCALED = ("packed_weights", "grouped_weights")


def save(run: Path, config: Config, step: int = 7) -> Path:
    """Write a checkpoint of random weights, such that capsules have lengths far from 0."""
    torch.manual_seed(step)
    weights = build_model(config.model, config.routing).state_dict()
    weights = {
        name: tensor * (9 if name.endswith(SCALED) else 1) + 0.1 * torch.randn_like(tensor)
        for name, tensor in weights.items()
    }
    averages = bool(config.optim.average_decay)
    trained = {f"{name}/trained": torch.randn_like(tensor) for name, tensor in weights.items() if averages}
    metrics = {"error_percent": 12.5, "validated_step": float(step)}
    checkpoint = Checkpoint(EngineState(weights, trained), step, 0, {}, config, metrics, classes=CLASSES)
    write_checkpoint(run / checkpoint_name(step), checkpoint)
    return run


def exported(run: Path, to: str, output: Path, *options: str) -> int:
    """Run the command; return its exit status."""
    return main(["export", str(run), "--to", to, "--output", str(output), *options])
