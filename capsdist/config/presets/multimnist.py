"""MultiMNIST (paper, section 6.1): pairs of overlaid digits in 36x36, 60 million for training.

The set has the shifts. The decoder draws each digit by itself, from its own capsule against its own image.
"""

from __future__ import annotations

from capsdist.config.models import PoolingCNNConfig
from capsdist.config.presets.mnist import mnist_official, mnist_paper
from capsdist.config.schema import Config
from capsdist.config.values import with_values

_PAIRS = {
    "model.image_size": 36,
    "model.num_labels": 2,
    "data.name": "multimnist",
    "data.shift": 0,
    "optim.decay_steps": 20_000,  # 10 times slower than on MNIST
    "train.name": "multimnist",
    "train.epochs": 1,
    "train.checkpoint_every_steps": 1500,
}


_CAPSNET = {**_PAIRS, "model.decoder_separate": True}


def multimnist_paper() -> Config:
    """CapsNet with 3,200 primary capsules, r=3 with reconstruction; paper: 5.2 % test error."""
    return with_values(mnist_paper(), _CAPSNET)


def multimnist_official() -> Config:
    """The authors' code, 300,000 steps; data: capsdist pack multimnist --shift 6 --name multimnist_shift6."""
    run = {"train.name": "multimnist-official", "train.max_steps": 300_000}
    return with_values(mnist_official(), {**_CAPSNET, "data.name": "multimnist_shift6", **run})


def multimnist_baseline() -> Config:
    """The convolutional baseline of section 6.1, 24,563,978 parameters; paper: 8.1 % test error."""
    paper = multimnist_paper()
    return with_values(
        Config(
            model=PoolingCNNConfig(image_size=36, num_labels=2),
            data=paper.data,
            optim=paper.optim,
            train=paper.train,
        ),
        {"train.name": "multimnist-baseline"},
    )


PRESETS = (multimnist_paper, multimnist_official, multimnist_baseline)
