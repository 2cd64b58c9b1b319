"""Load a trained network and let it predict, with the preprocessing that its checkpoint states."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from capsdist.config import Config
from capsdist.config.images import sides
from capsdist.config.rules import check_classifies
from capsdist.console import Log
from capsdist.data import Transform
from capsdist.data.decoding import decode_into, image_size
from capsdist.errors import ConfigError, DataError, Problem, ShapeError
from capsdist.models import Output
from capsdist.ops.predictions import largest
from capsdist.runs.checkpoints import opened_checkpoint
from capsdist.train.checkpoint import Checkpoint, build_network, open_checkpoint
from capsdist.train.precision import Precision, autocast, resolve_precision

__all__ = ["Images", "Prediction", "Predictor", "load", "predictor_of"]

Image: TypeAlias = str | os.PathLike[str] | np.ndarray | Tensor
"""The path of an image file, or pixels: uint8 (0 to 255) or floating point (0 to 1)."""
Images: TypeAlias = Image | Sequence[Image]


@dataclass(frozen=True)
class Prediction:
    """What a network says of B images.

    Attributes:
        names: name of the predicted class of each image; of a network for several labels an image the names
            of its K = `model.num_labels` longest capsules or largest logits, joined by "+": "3+8".
        labels: int64 [B], number of that class; with several labels an image [B, K], largest score first.
        scores: fp32 [B, J]; lengths of the class capsules, of matrix capsules their activations, in [0, 1];
            of a network without capsules its logits.
        poses: fp32 [B, J, E], the class capsules; None for a network without capsules.
    """

    names: list[str]
    labels: Tensor
    scores: Tensor
    poses: Tensor | None


class Predictor:
    """A trained network with its classes and its preprocessing; see `load`."""

    def __init__(
        self, config: Config, network: nn.Module, classes: Sequence[str], *, source: str, device: torch.device
    ) -> None:
        self.config, self.classes, self.source, self.device = config, tuple(classes), source, device
        self.network = network.to(device).eval()
        self._transform = Transform.of(config.data, train=False)
        self._precision: Precision = resolve_precision(config.train.precision, device)

    def predict(self, images: Images, *, batch_size: int = 128) -> Prediction:
        """Return classes, scores and poses of `images`, on the CPU.

        images: one image or many. An image is the path of a file that Pillow reads, which is scaled and cut
        if it has another size, or pixels [C, H, W], or [H, W] if the network takes one channel; a batch is a
        sequence of images, or pixels [B, C, H, W] or [B, H, W]. uint8 pixels are 0 to 255, floating-point
        ones 0 to 1.

        Raises:
            ShapeError: another shape, dtype or range. DataError: a file cannot be read as an image.
        """
        outputs = [self._run(part) for part in self._batch(images).split(batch_size)]
        scores = torch.cat([output.scores.float().cpu() for output in outputs])
        poses = [output.parent_poses.float().cpu() for output in outputs if output.parent_poses is not None]
        labels = largest(scores, self.config.model.num_labels)
        names = ["+".join(self.classes[label] for label in row) for row in labels.tolist()]
        if self.config.model.num_labels == 1:
            labels = labels[:, 0]
        return Prediction(names, labels, scores, torch.cat(poses) if poses else None)

    def reconstruct(
        self, images: Images, labels: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """Return what the decoder draws of `images`, fp32 [B, C, H, W] in [0, 1], on the CPU.

        labels: the classes whose capsules are drawn: int64 [B], int64 [B, K], -1 where there are fewer, or
        bool [B, J]. None: the longest capsule, or the `model.num_labels` longest (paper, sections 4.1 and 6).
        With `model.decoder_separate` K labels are drawn one by one: [B, K, C, H, W], the longest first.

        Raises:
            ShapeError: as `predict`; or the network has no decoder.
        """
        chosen = None if labels is None else torch.as_tensor(labels, device=self.device)
        drawn = self._run(self._batch(images), chosen).reconstructions
        if drawn is None:
            raise ShapeError(f"{self.source} has no decoder; train with --model.decoder")
        return drawn.float().cpu()

    @torch.no_grad()
    def _run(self, images: Tensor, labels: Tensor | None = None) -> Output:
        seen = self._transform.evaluated(images.to(self.device))
        with autocast(self._precision, self.device):
            return self.network(seen, labels)

    def _batch(self, images: Images) -> Tensor:
        """Return `images` as grey levels, float32 [B, C, H, W]."""
        if isinstance(images, np.ndarray | Tensor):
            return self._pixels("images", torch.as_tensor(images))
        if isinstance(images, str | os.PathLike):
            images = [images]
        if not len(images):
            raise ShapeError("images are an empty sequence; give at least one")
        parts = [self._one(number, image) for number, image in enumerate(images)]
        if len({part.shape for part in parts}) > 1:
            shapes = " and ".join(sorted({" x ".join(map(str, part.shape[1:])) for part in parts}))
            raise ShapeError(f"images are {shapes} (C x H x W); give images of one size")
        return torch.cat(parts)

    def _one(self, number: int, image: Image) -> Tensor:
        if isinstance(image, str | os.PathLike):
            return self._pixels(os.fspath(image), torch.from_numpy(self._read(Path(image))))
        pixels = self._pixels(f"image {number}", torch.as_tensor(image))
        if len(pixels) != 1:
            raise ShapeError(f"image {number} is a batch of {len(pixels)}; give a batch alone, not in a list")
        return pixels

    def _read(self, path: Path) -> np.ndarray:
        """Return the pixels of an image file, uint8 [C, H, W].

        A file of another size is scaled and cut as `capsdist pack folder` does, unless the network crops or
        resizes what it is given. Of encoded images it gets the size that they were decoded to in training.
        """
        model, data = self.config.model, self.config.data
        if model.in_channels not in (1, 3):
            raise DataError(
                f"{path}: no image file has the network's {model.in_channels} channels; give pixels"
            )
        try:
            content = path.read_bytes()
            size = sides(data.decode_size or model.image_size)
            if not data.decode_size and (data.crop or data.resize):
                size = image_size(content)
            pixels = np.empty((*size, model.in_channels), np.uint8)
            decode_into(content, pixels)
        except (OSError, DataError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(f"{path}: is no image ({reason}); give a PNG or JPEG file") from None
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _pixels(self, name: str, pixels: Tensor) -> Tensor:
        """Return `pixels` as grey levels, float32 [B, C, H, W], if the network can take them."""
        model, data = self.config.model, self.config.data
        channels, shape = model.in_channels, list(pixels.shape)
        if channels == 1 and (pixels.ndim == 2 or (pixels.ndim == 3 and shape[0] != 1)):
            pixels = pixels.unsqueeze(-3)
        if pixels.ndim == 3:
            pixels = pixels[None]
        if pixels.ndim != 4 or pixels.shape[1] != channels or not len(pixels):
            raise ShapeError(f"{name} has shape {shape}; give [C, H, W] or [B, C, H, W] with C={channels}")
        (height, width), least = pixels.shape[2:], data.least_size
        wanted = sides(least or model.image_size)
        small, other = height < wanted[0] or width < wanted[1], (height, width) != wanted
        if small if least else other and not data.resize:
            size = f"{'at least ' if least else ''}{wanted[0]} x {wanted[1]}"
            raise ShapeError(f"{name} is {height} x {width} pixels; resize it to {size}")
        if pixels.dtype == torch.uint8:
            return pixels.float()
        if not pixels.is_floating_point():
            raise ShapeError(f"{name} is {pixels.dtype}; give uint8 (0 to 255) or floating point (0 to 1)")
        low, high = pixels.min().item(), pixels.max().item()
        if not 0 <= low <= high <= 1:
            raise ShapeError(f"{name} has values from {low:g} to {high:g}; floating-point pixels are 0 to 1")
        return pixels.float() * 255


def load(
    place: str | os.PathLike[str],
    *,
    best: bool = False,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    log: Log = print,
) -> Predictor:
    """Return the network of a run or checkpoint, ready to predict.

    place: path or s3:// URL of a run, which stands for its newest verified checkpoint (`best`: the one with
    the lowest validated error), of a checkpoint, or of a folder that `capsdist export` wrote to hub or
    safetensors. `log` is told of checkpoints that were passed over.

    Raises:
        CheckpointError: there is none, or it is damaged. ConfigError: no GPU where one is asked for, or the
            network names no classes.
        DataError, RunError: the storage cannot be read.

    Example:
        >>> network = load("runs/mnist")
        >>> network.predict(["seven.png"]).names
        ['7']
    """
    gpu = torch.cuda.is_available()
    if device == "gpu" and not gpu:
        raise ConfigError([Problem("device", device, "is not there: torch finds no GPU", "use cpu or auto")])
    with opened_checkpoint(os.fspath(place), lowest_error=best, log=log) as (source, folder):
        saved = open_checkpoint(folder)
        on = torch.device("cuda" if gpu and device != "cpu" else "cpu")
        return predictor_of(saved, source=source, device=on)


def predictor_of(saved: Checkpoint, *, source: str, device: torch.device) -> Predictor:
    """Return the network of an open checkpoint, ready to predict on `device`; `source` names it in errors.

    Raises:
        CheckpointError: as `build_network`. ConfigError: its precision is not for `device`, or it names no
            classes.
    """
    check_classifies(saved.config, "a prediction")
    known = saved.classes or ()
    classes = (*known, *map(str, range(len(known), saved.config.model.num_classes)))
    return Predictor(saved.config, build_network(saved), classes, source=source, device=device)
