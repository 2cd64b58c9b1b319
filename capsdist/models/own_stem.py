"""A stem by import path: built, and refused if a run could not train it."""

from __future__ import annotations

from torch import nn

from capsdist.config.resnet_capsnet import ResNetCapsNetConfig, find_stem
from capsdist.errors import ConfigError, Problem

__all__ = ["own_stem"]


def own_stem(model: ResNetCapsNetConfig) -> nn.Module:
    """Build the stem that `model.stem` names.

    Raises:
        ConfigError: it is no module, or its gradient would depend on the number of ranks or microbatches.
    """
    stem = find_stem(model)(model.in_channels)
    if not isinstance(stem, nn.Module):
        fix = "return a torch.nn.Module from images [B, C, H, W] to features [B, C', H', W']"
        raise ConfigError([Problem("model.stem", model.stem, f"returns a {type(stem).__name__}", fix)])
    found = (name for name, each in stem.named_modules() if isinstance(each, nn.modules.batchnorm._BatchNorm))
    if not model.stem_frozen and (name := next(found, None)) is not None:
        rule = f"has the BatchNorm layer {name!r}, whose statistics differ between ranks and microbatches"
        fix = "set --model.stem-frozen, or build the stem with GroupNorm"
        raise ConfigError([Problem("model.stem", model.stem, rule, fix)])
    return stem
