"""The family `transforming_autoencoder`: its fields and its rules. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from capsdist.config.images import sides
from capsdist.config.models import NetworkConfig
from capsdist.config.schema import Config
from capsdist.config.sections import Bounds, Count
from capsdist.errors import Problem

__all__ = ["TransformingAutoencoderConfig", "transforming_autoencoder_problems"]


class TransformingAutoencoderConfig(NetworkConfig):
    """Transforming auto-encoder of shifts (Hinton, Krizhevsky, Wang 2011, section 2)."""

    kind: str = "transforming_autoencoder"
    """Family of networks: a built-in name, or the import path package.module:OBJECT of a Family."""
    capsules: Count = 30
    """Capsules; paper: 30."""
    recognition_units: Count = 10
    """Hidden units of a capsule that see the image; paper: 10."""
    generation_units: Count = 20
    """Hidden units of a capsule that draw its contribution; paper: 20."""
    max_shift: Count = 3
    """Largest known shift of the image to be drawn, in pixels each way; drawn anew for each image; below half
    of image_size."""
    hidden: Literal["logistic", "relu"] = "logistic"
    """Activation of recognition and generation units; paper: logistic."""
    contribution: Literal["logistic", "linear"] = "logistic"
    """Activation of the pixels of a capsule's contribution, before the product with its probability."""
    place_scale: Annotated[float, Bounds(gt=0)] = 3.0
    """Pixels of place for 1 of what its linear unit gives; the paper has none, see the network."""

    @property
    def known_shift(self) -> int:
        """`max_shift`."""
        return self.max_shift


def transforming_autoencoder_problems(config: Config) -> Iterator[Problem]:
    """Return every problem of the configuration of such a network."""
    model, data = config.model, config.data
    assert isinstance(model, TransformingAutoencoderConfig)
    for name in ("standardise", "normalise_mean"):
        if value := getattr(data, name):
            rule = "makes pixels that are not in [0, 1], and zeros come in where an image is shifted"
            yield Problem(f"data.{name}", value, rule, f"leave --data.{name.replace('_', '-')} out")
    if 2 * model.max_shift >= (side := min(sides(model.image_size))) > 2:  # below is a range, reported
        rule = f"may leave half of an image or less: model.image_size={model.image_size}"
        fix = f"set --model.max-shift to {(side - 1) // 2} at most"
        yield Problem("model.max_shift", model.max_shift, rule, fix)
    if data.mixup:
        rule = f"mixes labels, and model.kind={model.kind} has none"
        yield Problem("data.mixup", data.mixup, rule, "set --data.mixup 0")
