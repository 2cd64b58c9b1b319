"""What experiments measure: a trained network, and the test images that it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capsdist.config import Config
from capsdist.config.models import find_family
from capsdist.console import Log
from capsdist.data import Transform, eval_batches
from capsdist.inference import load
from capsdist.models import BaselineCNN

__all__ = ["Images", "Subject", "error_percent", "open_subject", "read_images"]

_BATCH = 250


@dataclass(frozen=True)
class Images:
    """Test images as the networks see them: pixels float32 [N, C, H, W] in [0, 1], labels int64 [N]."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode, on its device."""

    config: Config
    network: nn.Module
    device: torch.device

    @torch.no_grad()
    def confidences(self, pixels: Tensor) -> Tensor:
        """Return what the network says of images [N, C, H, W], fp32 [N, J] in [0, 1], on the CPU.

        Lengths of the class capsules, or of a network without capsules the softmax of its logits.
        """

        def one(part: Tensor) -> Tensor:
            output = self.network(part)
            scores = output.scores.float()
            return scores if output.parent_poses is not None else scores.softmax(1)

        return self._in_batches(one, pixels)

    @torch.no_grad()
    def features(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the features of each image from which its transformation is to be read, fp32 [N, F], CPU.

        Pose of the capsule of the right class (F = E); of the baseline CNN the input of its last layer.

        Raises:
            TypeError: the network is neither.
        """

        def one(part: Tensor, of: Tensor) -> Tensor:
            if isinstance(self.network, BaselineCNN):
                return self.network.layers[:-1](part).float()
            poses = self.network(part).parent_poses
            if poses is None:
                raise TypeError(f"{type(self.network).__name__} has neither capsules nor known features")
            return poses[torch.arange(len(part), device=poses.device), of].float()

        return self._in_batches(one, pixels, labels)

    def loss_gradient(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the gradient of each image's classification loss by its pixels, [N, C, H, W], on the CPU.

        The loss is that of the network's training, of capsule networks the margin loss alone.
        """
        losses_of = find_family(self.config.model.kind).losses

        def one(part: Tensor, of: Tensor) -> Tensor:
            part = part.clone().requires_grad_()
            with torch.enable_grad():
                losses = losses_of(self.network(part), part, of, self.config.loss)
                loss = losses.get("margin_loss", losses["loss"])
                return torch.autograd.grad(loss.sum(), part)[0]

        return self._in_batches(one, pixels, labels)

    def _in_batches(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        parts = zip(*(tensor.split(_BATCH) for tensor in tensors), strict=True)
        return torch.cat([function(*(each.to(self.device) for each in part)).cpu() for part in parts])


def error_percent(subject: Subject, images: Images) -> float:
    """Return which share of the images is not read as its class, in percent."""
    wrong = subject.confidences(images.pixels).argmax(1) != images.labels
    return 100 * wrong.double().mean().item()


def open_subject(run: str, log: Log) -> Subject:
    """Return the network of a run's newest checkpoint, in fp32, on the GPU if there is one.

    Raises:
        CheckpointError, DataError, RunError: as `capsdist.inference.load`.
    """
    found = load(run, log=log)
    return Subject(found.config, found.network, found.device)


def read_images(config: Config, split: str, limit: int | None = None) -> Images:
    """Return the first `limit` images of a packed split, all without, as the networks of `config` see them.

    Raises:
        DataError: the split cannot be read.
    """
    transform = Transform.of(config.data, train=False)
    pixels, labels = [], []
    for batch in eval_batches(split, batch_size=_BATCH, decode_size=config.data.decode_size):
        real = batch.weights > 0
        pixels.append(transform(batch.images, batch.sample_ids, 0, 0)[real])
        labels.append(batch.labels[real])
        if limit is not None and sum(map(len, labels)) >= limit:
            break
    return Images(torch.cat(pixels)[:limit], torch.cat(labels)[:limit])
