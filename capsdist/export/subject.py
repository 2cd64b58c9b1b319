"""The network that is exported, and what capsdist itself makes of images: the reference of every format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from capsdist.config import Config
from capsdist.inference import Predictor, predictor_of
from capsdist.models.capsule_network import CapsuleNetwork
from capsdist.models.decoder import Decoder
from capsdist.train.checkpoint import Checkpoint

__all__ = ["ErrorFound", "Outputs", "Subject"]

_CPU = torch.device("cpu")


class Outputs(NamedTuple):
    """What is compared: scores [B, J], parent_poses [B, J, E], reconstructions; fp32.

    Reconstructions are [B, C, H, W], or [B, K, C, H, W] of labels that are drawn one by one.
    """

    scores: Tensor
    parent_poses: Tensor | None = None
    reconstructions: Tensor | None = None


@dataclass(frozen=True)
class ErrorFound:
    """An error in percent on the packed split `split`; `measured` says when, as part of a sentence."""

    error_percent: float
    split: str
    measured: str


@dataclass(frozen=True)
class Subject:
    """A checkpoint that is exported, on the CPU.

    saved: the open checkpoint; predictor: its network in fp32, with the averaged weights where
    `optim.average_decay` asks for them; image_size: height and width of images that exported programs take;
    error: for the model card, None where nothing was measured.
    """

    saved: Checkpoint
    predictor: Predictor
    image_size: tuple[int, int]
    error: ErrorFound | None = None

    @classmethod
    def of(
        cls, saved: Checkpoint, source: str, image_size: tuple[int, int], error: ErrorFound | None = None
    ) -> Subject:
        """Return the subject that an open checkpoint is; `source` names it in errors.

        Raises:
            CheckpointError: as `build_network`.
        """
        train = saved.config.train.model_copy(update={"precision": "fp32"})
        in_fp32 = replace(saved, config=saved.config.model_copy(update={"train": train}))
        return cls(saved, predictor_of(in_fp32, source=source, device=_CPU), image_size, error)

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self.saved.config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of images that exported programs take."""
        return (self.config.model.in_channels, *self.image_size)

    @property
    def decoder(self) -> Decoder | None:
        """The reconstruction network, None without one."""
        network = self.predictor.network
        return network.decoder if isinstance(network, CapsuleNetwork) else None

    def outputs(self, images: Tensor, labels: Tensor) -> Outputs:
        """Return what the network makes of images uint8 [B, C, H, W]; the decoder draws `labels`."""
        found = self.predictor.predict(images)
        drawn = self.predictor.reconstruct(images, labels) if self.decoder else None
        return Outputs(found.scores, found.poses, drawn)
