"""Presets of networks and their training on a machine without pydantic, over a resident set of drawn images.

Needs torch only. `gpu_presets.json` holds the presets; a test compares it with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capsdist.data.batch import Batch
from capsdist.data.gather import FromTensors
from capsdist.data.transforms import Transform
from capsdist.models.capsnet import CapsNet, capsnet_losses
from capsdist.models.capsule_network import Output
from capsdist.train.engine.plain import PlainEngine

__all__ = [
    "FAMILY", "PRESETS", "PresetWork", "patterns", "preset_config", "preset_work", "resident_batches",
    "trial_batch",
]  # fmt: skip

PRESETS = ("mnist_paper", "cifar10_official")
TOTAL_STEPS = 100_000
_CHUNK = 64  # steps whose images are gathered at once, as `TrainStream` does
_NUM_CLASSES = 10


def _losses(output: Output, images: Tensor, labels: Tensor, loss: SimpleNamespace) -> dict[str, Tensor]:
    return capsnet_losses(output, images, labels, **vars(loss))


FAMILY: Any = SimpleNamespace(
    losses=_losses, loss_names=("loss", "margin_loss", "reconstruction_loss"), loss_at=None, classifies=True
)
"""What a step needs of the family `capsnet`, without pydantic."""


@dataclass(frozen=True)
class PresetWork:
    """A `capsdist.train.step.Work`. image_shape: of stored images, before the transform."""

    config: Any
    family: Any
    device: torch.device
    transform: Any
    mixup: None
    engine: PlainEngine
    total_steps: int
    image_shape: tuple[int, int, int]


def preset_config(preset: str) -> Any:
    """Return a preset as its sections, without pydantic."""
    text = Path(__file__).with_name("gpu_presets.json").read_text()
    config = json.loads(text, object_hook=lambda values: SimpleNamespace(**values)).__dict__[preset]
    config.model.known_shift = 0
    return config


def preset_work(preset: str, *, num_images: int, iterations: int, device: str) -> PresetWork:
    """Return what trains the network of `preset`: in bf16 on a GPU, with few channels on a CPU.

    num_images: of a step; iterations: of routing, by the backend `fused`, so that a refusal is an error and
    not another backend's time.
    """
    config, place = preset_config(preset), torch.device(device)
    config.train.global_batch_size = num_images
    options = vars(config.model) | vars(config.routing) | {"iterations": iterations, "backend": "fused"}
    if device == "cpu":
        options |= {"conv_channels": 4, "primary_types": 1, "primary_stride": 4, "decoder": False}
    for name in (
        "kind", "from_data", "num_labels", "known_shift",
        "algorithm", "groups", "hidden_capsules", "concurrent",
    ):  # fmt: skip
        del options[name]
    channels, side, num_classes = map(options.pop, ("in_channels", "image_size", "num_classes"))
    torch.manual_seed(config.train.seed)
    network = CapsNet((channels, side, side), num_classes, **options)
    stored = side + (8 if config.data.crop else 0)  # CIFAR-10's images have 32, of which 24 are shown
    engine = PlainEngine(
        network, config.optim, rank=0, world_size=1, device=place,
        precision="fp32" if device == "cpu" else "bf16",
    )  # fmt: skip
    fields: dict[str, Any] = vars(config.data)
    augmentation: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return PresetWork(
        config=config,
        family=FAMILY,
        device=place,
        transform=Transform(**augmentation),
        mixup=None,
        engine=engine,
        total_steps=TOTAL_STEPS,
        image_shape=(channels, stored, stored),
    )


def patterns(work: PresetWork, num_samples: int) -> tuple[Tensor, Tensor]:
    """Return drawn images uint8 [N, C, H, W] of ten classes on the device, and their labels int64 [N].

    Each class has a pattern, seen under noise.
    """
    generator = torch.Generator().manual_seed(1)
    shape = work.image_shape
    pattern = (torch.rand(_NUM_CLASSES, *shape, generator=generator) < 0.15).float()
    labels = torch.arange(num_samples) % _NUM_CLASSES
    noise = torch.rand(num_samples, *shape, generator=generator)
    images = (255 * (0.6 * pattern[labels] + 0.4 * noise)).clamp(0, 255).to(torch.uint8)
    return images.to(work.device), labels.to(work.device)


def resident_batches(work: PresetWork, images: Tensor, labels: Tensor) -> Iterator[Batch]:
    """Yield full batches without end out of a set that is resident on the device, shuffled each epoch."""
    size, generator = work.config.train.global_batch_size, np.random.default_rng(2)
    gather = FromTensors(images, labels, pin=work.device.type == "cuda", resident="device")
    weights = torch.ones(size, device=work.device)
    epoch = 0
    while True:
        order = generator.permutation(len(images))
        for first in range(0, len(order) - size + 1, size * _CHUNK):
            ids = order[first : first + size * _CHUNK]
            ids = ids[: len(ids) // size * size]
            samples = (value.unflatten(0, (-1, size)).unbind() for value in gather.begin(ids)()[:3])
            for own, classes, numbers in zip(*samples, strict=True):
                yield Batch(own, classes, weights, numbers, size, epoch)
        epoch += 1


def trial_batch(work: PresetWork, images: Tensor, labels: Tensor) -> Batch:
    """Return a transformed batch, as `capsdist.train.speed.fastest` takes it."""
    batch = next(resident_batches(work, images, labels))
    shown = work.transform(batch.images, batch.sample_ids, 0, 0)
    return Batch(shown, batch.labels, batch.weights, batch.sample_ids, batch.num_global)
