"""The networks of several checkpoints as one, whose scores are the means of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from capsdist.errors import CheckpointError
from capsdist.models import Output
from capsdist.train.checkpoint import build_network, open_checkpoint
from capsdist.train.precision import Precision, autocast, resolve_precision

__all__ = ["Ensemble", "mean_output"]

_ALIKE = (
    "model.kind", "model.in_channels", "model.image_size", "model.num_classes", "model.num_labels",
    "data.crop", "data.resize", "data.standardise", "data.normalise_mean", "data.normalise_std",
    "data.decode_size",
)  # fmt: skip
"""Fields in which the networks agree: they read the same images in the same way."""


def mean_output(outputs: Sequence[Output]) -> Output:
    """Return the mean scores, with the capsules of the first output, and reconstructions of a single one.

    The mean orders classes as the sum does, which the paper takes (section 7), and stays in the range of one.
    """
    if len(outputs) == 1:
        return outputs[0]
    scores = torch.stack([output.scores.float() for output in outputs])
    return Output(scores.mean(0), outputs[0].parent_poses)


class Ensemble:
    """One network, or several that are called as one: ``ensemble(images)`` returns an `Output`.

    Args:
        checkpoints: folders of checkpoints, at least one; each is verified.
        device: where the networks run, each in the precision that its configuration means there.

    Attributes:
        saved: the opened checkpoints.
        precision: of the first network.

    Raises:
        CheckpointError: see `open_checkpoint`; or the networks are of several families, or do not read the
            same images in the same way.
    """

    def __init__(self, checkpoints: Sequence[str | Path], device: torch.device) -> None:
        self.saved = [open_checkpoint(checkpoint) for checkpoint in checkpoints]
        for field in _ALIKE:
            first, *others = (attrgetter(field)(each.config) for each in self.saved)
            for name, value in zip(checkpoints[1:], others, strict=True):
                if value != first:
                    raise CheckpointError(
                        f"checkpoint {name}: has {field}={value!r}, {checkpoints[0]} has {first!r}; give "
                        "networks of one family that read the same images"
                    )
        self._device = device
        self._networks = [build_network(each).to(device) for each in self.saved]
        self._precisions: list[Precision] = [
            resolve_precision(each.config.train.precision, device) for each in self.saved
        ]
        self.precision: Precision = self._precisions[0]

    def __call__(self, images: Tensor) -> Output:
        """Return the mean output for images [B, C, H, W] as the networks see them."""
        outputs = []
        for network, precision in zip(self._networks, self._precisions, strict=True):
            with autocast(precision, self._device):
                outputs.append(network(images))
        return mean_output(outputs)
