"""What is measured of compared routings beside the error: bytes kept, speed, other digits of MNIST."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from capsdist.bench.memory import saved_bytes
from capsdist.config import Config, image_shape
from capsdist.config.models import find_family
from capsdist.console import Log
from capsdist.data.format.samples import Samples
from capsdist.data.sets.digits import load_digits
from capsdist.data.sets.mnist import load_mnist
from capsdist.inference import load
from capsdist.models import build_model
from capsdist.train.step import losses_of

__all__ = ["errors_on", "kept_bytes_per_image", "other_digits", "without"]

_IMAGES = 8


def kept_bytes_per_image(config: Config) -> float:
    """Return the bytes that autograd keeps of an image, of network and losses in fp32, without parameters."""
    torch.manual_seed(0)
    network = build_model(config.model, config.routing)
    images = torch.rand(_IMAGES, *image_shape(config.model))
    labels = torch.randint(config.model.num_classes, (_IMAGES,))
    losses = losses_of(find_family(config.model.kind), config)

    def run() -> torch.Tensor:
        return losses(network(images, labels), images, labels)["loss"].sum()

    return saved_bytes(run, exclude=(images, labels, *network.parameters())) / _IMAGES


def other_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return MNIST's test images uint8 [N, 1, 28, 28] and labels int64 [N] that are not embedded digits.

    folder: holds MNIST's original files. The embedded digits are images of MNIST, so those that are in both
    are left out, by the hash of their pixels.

    Raises:
        DataError: the files are not there or damaged.
    """
    embedded = load_digits(None, folder, "")
    found = [_arrays(embedded[split])[0] for split in ("train", "test")]
    test = load_mnist(folder, folder, "python jobs/compare_routings.py")["test"]
    return without(*_arrays(test), np.concatenate(found))


def without(images: np.ndarray, labels: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, with their labels, whose pixels are those of none of `others`."""
    known = {_digest(image) for image in others}
    keep = np.array([_digest(image) not in known for image in images], bool)
    return images[keep], labels[keep]


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def _arrays(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    arrays = samples.read(0, len(samples))
    return arrays["image"], arrays["label"]


def errors_on(
    images: np.ndarray, labels: np.ndarray, places: Mapping[str, str], log: Log
) -> dict[str, float]:
    """Return the error in percent of the newest checkpoint of each run, by name; places: their folders."""
    found = {}
    for name, place in places.items():
        predicted = load(place, device="cpu", log=log).predict(torch.from_numpy(images)).labels
        found[name] = 100 * float((predicted.numpy() != labels).mean())
    return found
