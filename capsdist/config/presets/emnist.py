"""EMNIST (Cohen et al. 2017): letters and characters in MNIST's format; not in the paper.

The margin loss has more terms of absent classes than with 10 classes: hence `absent_scaling`.
"""

from __future__ import annotations

from capsdist.config.presets.mnist import mnist_paper
from capsdist.config.schema import Config
from capsdist.config.values import with_values


def emnist_letters_paper() -> Config:
    """The paper's MNIST network on 26 letters; no figure in the paper."""
    return _part("letters", 26)


def emnist_balanced_paper() -> Config:
    """The paper's MNIST network on 47 digits and letters; no figure in the paper."""
    return _part("balanced", 47)


def _part(part: str, num_classes: int) -> Config:
    values = {
        "model.num_classes": num_classes,
        "loss.absent_scaling": "classes",
        "data.name": f"emnist_{part}",
        "train.name": f"emnist-{part}",
    }
    return with_values(mnist_paper(), values)


PRESETS = (emnist_letters_paper, emnist_balanced_paper)
