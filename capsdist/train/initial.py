"""Start from the weights of another run: which of them fit the network, and taking those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from capsdist.config import Config
from capsdist.errors import ConfigError, Problem

__all__ = ["check_fit", "take_weights"]


@torch.no_grad()
def take_weights(network: nn.Module, weights: Mapping[str, Tensor], config: Config) -> str | None:
    """Copy `weights` of another run into `network`, on one rank or before it is split over several.

    Return a line that names what `train.init_strict=False` has left out, None if all was taken. What is left
    out keeps the initial values of the network.

    Raises:
        ConfigError: see `check_fit`.
    """
    own = network.state_dict()
    unfit = check_fit(_shapes(weights), _shapes(own), config)
    for name, tensor in own.items():
        if name in weights and name not in unfit:
            tensor.copy_(weights[name])
    if not unfit:
        return None
    return f"warning: left out of train.init_from={config.train.init_from!r}: {'; '.join(unfit.values())}"


def check_fit(
    found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]], config: Config
) -> dict[str, str]:
    """Return which weights of `train.init_from` do not fit the network, and why, by name.

    found, wanted: shapes of the weights there are, and of the network's own.

    Raises:
        ConfigError: `train.init_strict`, and some do not fit; all are named. Or none fits.
    """
    unfit = {
        name: f"{name!r} is not there" if name not in found
        else f"{name!r} is {list(found[name])}, the network has {list(shape)}"
        for name, shape in wanted.items()
        if name not in found or list(found[name]) != list(shape)
    }  # fmt: skip
    unfit |= {name: f"the network has no {name!r}" for name in found if name not in wanted}
    if not unfit or (not config.train.init_strict and wanted.keys() - unfit.keys()):
        return unfit
    rule = f"does not fit the network: {'; '.join(unfit.values())}"
    fix = "set --train.init-strict false to leave these out, or change the network"
    if not config.train.init_strict:
        rule, fix = "has no weight that fits the network", "name a run of a network like this one"
    raise ConfigError([Problem("train.init_from", config.train.init_from, rule, fix)])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    return {name: tensor.shape for name, tensor in tensors.items()}
