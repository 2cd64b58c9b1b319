"""Start from the weights of another run: which of them fit the network, and taking those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capsdist.config import Config
from capsdist.errors import ConfigError, Problem
from capsdist.models.parallel.layer import split_parameters
from capsdist.models.parallel.pieces import PIECE, take_pieces
from capsdist.train.state import Stored, copy_into, pieces_of

__all__ = ["check_fit", "take_weights"]


@torch.no_grad()
def take_weights(
    network: nn.Module,
    weights: Mapping[str, Stored] | None,
    config: Config,
    device: torch.device | None = None,
) -> str | None:
    """Copy `weights` of another run into `network`, on rank 0, whose values an engine gives to all ranks.

    Of a network that is split over ranks it is collective: rank 0 has `weights`, others None, and each takes
    its own part; None on all ranks changes nothing. device: of the process group.

    Return a line that names what `train.init_strict=False` has left out, None if all was taken. What is left
    out keeps the initial values of the network.

    Raises:
        ConfigError: see `check_fit`.
    """
    own, split = network.state_dict(), split_parameters(network)
    unfit: dict[str, str] = {}
    if weights is not None:
        wanted = _shapes(own) | {name: each.whole_shape for name, each in split.items()}
        unfit = check_fit(_shapes(weights), wanted, config)
    taken = {name: weights[name] for name in own if name in weights and name not in unfit} if weights else {}
    for name, value in taken.items():
        if name not in split:
            copy_into(own[name], value)
    for name, each in split.items():
        pieces = _broadcast_pieces(taken.get(name), each.whole_shape.numel(), own[name].dtype, device)
        take_pieces(own[name], pieces, each)
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


def _broadcast_pieces(
    value: Stored | None, number: int, dtype: torch.dtype, device: torch.device | None
) -> Iterator[Tensor]:
    """Yield on all ranks the `number` numbers of rank 0's `value`; nothing if it is None there."""
    there = torch.tensor(float(value is not None), device=device)
    dist.broadcast(there, src=0)
    if not there:
        return
    pieces = iter(()) if value is None else pieces_of(value)
    for start in range(0, number, PIECE):
        empty = torch.empty(min(PIECE, number - start), dtype=dtype)
        piece = next(pieces, empty).to(device=device, dtype=dtype)
        dist.broadcast(piece, src=0)
        yield piece


def _shapes(tensors: Mapping[str, Stored]) -> dict[str, Sequence[int]]:
    return {name: tensor.shape for name, tensor in tensors.items()}
