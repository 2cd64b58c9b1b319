"""Rules for how images are shown: sizes, ranges of augmentations, and which of them exclude each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import lt

from capsdist.config.images import sides, size_option
from capsdist.config.schema import Config
from capsdist.errors import Problem

__all__ = ["image_problems"]

_SAME = (1.0, 1.0)
_RANGES = {"contrast": math.inf, "scale": math.inf, "resize_area": 1, "resize_ratio": math.inf}
_LEAST_MIXUP = 0.01  # the table of weights is exact to 2e-5 from here on


def image_problems(config: Config) -> Iterator[Problem]:
    """Return every problem of the fields of `data` that change images."""
    yield from _size_problems(config)
    yield from _range_problems(config)
    yield from _normalise_problems(config)
    if 0 < config.data.mixup < _LEAST_MIXUP:
        rule = f"must be 0 or at least {_LEAST_MIXUP}"
        yield Problem(
            "data.mixup", config.data.mixup, rule, "0 switches it off; below, hardly an image is mixed"
        )


def _size_problems(config: Config) -> Iterator[Problem]:
    model, data = config.model, config.data
    least = min(sides(model.image_size))
    name = "crop" if data.crop else "resize"
    size = getattr(data, name)
    if size and sides(size) != sides(model.image_size):
        rule = f"must equal model.image_size={model.image_size}"
        yield Problem(f"data.{name}", size, rule, f"set --model.image_size {size_option(size)}")
    if data.resize and any(map(lt, sides(data.resize), sides(data.crop))):
        rule = f"is smaller than data.crop={data.crop}, which is cut out of it"
        yield Problem("data.resize", data.resize, rule, "raise it, or lower data.crop and model.image_size")
    for name in ("shift", "translation", "cutout"):
        if (value := getattr(data, name)) >= least > 0:
            rule = f"must be below model.image_size={model.image_size}, or images turn black"
            yield Problem(f"data.{name}", value, rule, "the paper has 2" if name == "shift" else "lower it")


def _range_problems(config: Config) -> Iterator[Problem]:
    data = config.data
    for name, most in _RANGES.items():
        low, high = value = getattr(data, name)
        if not (0 < low <= high < math.inf and high <= most):
            rule = "must be 0 < low <= high" + (f" <= {most}" if most < math.inf else "")
            yield Problem(f"data.{name}", value, rule, "1 1 switches it off")
    for name in ("resize_area", "resize_ratio"):
        value = getattr(data, name)
        if value != _SAME and not data.resize:
            rule = "has no effect without data.resize"
            fix = f"set --data.resize {size_option(config.model.image_size)}"
            yield Problem(f"data.{name}", value, rule, fix)


def _normalise_problems(config: Config) -> Iterator[Problem]:
    data, channels = config.data, config.model.in_channels
    if not (data.normalise_mean or data.normalise_std):
        return
    for name in ("normalise_mean", "normalise_std"):
        value = getattr(data, name)
        if len(value) != channels:
            rule = f"must be one number a channel, model.in_channels={channels}"
            yield Problem(f"data.{name}", value, rule, "capsdist verify --statistics prints them")
        elif not all(map(math.isfinite, value)):
            yield Problem(f"data.{name}", value, "must be finite", "capsdist verify --statistics prints them")
    if any(value <= 0 for value in data.normalise_std):
        rule = "must be greater than 0"
        yield Problem(
            "data.normalise_std", data.normalise_std, rule, "drop a channel that is the same everywhere"
        )
    if data.standardise:
        rule = "does not go with data.standardise"
        yield Problem("data.normalise_mean", data.normalise_mean, rule, "leave one of them out")
