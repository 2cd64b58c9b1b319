"""Fashion-MNIST: clothes in MNIST's format; not in the paper, trained with the MNIST network."""

from __future__ import annotations

from capsdist.config.schema import Config, Data, Optim, Train


def fashion_mnist_paper() -> Config:
    """The paper's MNIST network and training on Fashion-MNIST; no figure in the paper."""
    return Config(
        data=Data(name="fashion_mnist", validation_split=None),
        optim=Optim(epsilon_placement="tensorflow"),
        train=Train(name="fashion-mnist", epochs=50, keep_best=0),
    )


PRESETS = (fashion_mnist_paper,)
