"""How the presets over residual networks are trained: a recipe of the field, from no single source."""

from __future__ import annotations

from typing import Any

from capsdist.config.schema import Data, Optim

__all__ = ["adamw_one_cycle", "mirrored", "resized"]


def mirrored(name: str, **options: Any) -> Data:
    """Return the set `name`, a tenth held out, whose images are mirrored at random."""
    return Data(name=name, train_split="train_part", validation_split="validation", flip=True, **options)


def resized(least_area: float) -> dict[str, Any]:
    """Return how parts of images, of `least_area` of them at least, are chosen and stretched."""
    return {"resize_area": (least_area, 1.0), "resize_ratio": (0.75, 4 / 3)}


def adamw_one_cycle(**options: Any) -> Optim:
    """Return AdamW in one cycle, whose average of the weights is evaluated."""
    return Optim(kind="adamw", weight_decay=0.05, schedule="one_cycle", average_decay=0.999, **options)
