"""The family `resnet_capsnet`: its fields and rules. Imports no torch, except with a stem that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from capsdist.config.capsnet_rules import decoder_problems, loss_problems, routing_problems
from capsdist.config.images import sides
from capsdist.config.layer_rules import feature_size
from capsdist.config.models import CapsuleConfig
from capsdist.config.schema import Config
from capsdist.config.sections import Bounds, Count
from capsdist.errors import ConfigError, Problem
from capsdist.importing import find

__all__ = ["ResNetCapsNetConfig", "find_stem", "resnet_capsnet_problems", "stem_problems"]


class ResNetCapsNetConfig(CapsuleConfig):
    """Capsules over a small residual network, or over any network that makes a map of features."""

    stems: ClassVar[dict[str, str]] = {"resnet": "capsdist.models.resnet:ResNetStem"}
    """Import paths of the stems that `stem` names."""

    kind: str = "resnet_capsnet"
    """Family of networks: a built-in name, or the import path package.module:OBJECT of a Family."""
    stem: str = "resnet"
    """Network under the capsules: `resnet`, or the import path package.module:CALLABLE of a callable that,
    given in_channels, returns a torch module from images [B,C,H,W] to features [B,C',H',W']."""
    stem_frozen: bool = False
    """The stem does not learn and stays in evaluation mode."""
    stem_channels: Annotated[tuple[int, ...], Bounds(ge=1)] = (64, 128, 256)
    """Channels of each stage of `resnet`; each stage after the first halves height and width."""
    stem_blocks: Annotated[tuple[int, ...], Bounds(ge=0)] = (2, 2, 2)
    """Residual blocks of each stage of `resnet`; 0: only the convolution that begins it."""
    stem_first: Literal["conv3", "conv7_pool"] = "conv3"
    """First layer of `resnet`: `conv3` (CIFAR); `conv7_pool` 7x7 and a pooling, stride 2 each (ImageNet)."""
    norm_groups: Count = 8
    """Groups of each GroupNorm; divides all stem_channels. BatchNorm would mix the images of a batch."""
    primary_kernel: Count = 3
    """Kernel size of the primary capsules' convolution, in features."""
    padding: Literal["valid", "same"] = "same"
    """Padding of the primary capsules' convolution."""
    decoder: bool = False
    """Reconstruct the image from the class capsules (paper, section 4.1)."""


def find_stem(model: ResNetCapsNetConfig) -> Callable[..., Any]:
    """Return the callable that makes the stem `model.stem`.

    Raises:
        ConfigError: it is no name of the family's `stems` and no import path of a callable.
    """
    found = find(model.stem, model.stems, object, field="model.stem", thing="a stem")
    if not callable(found):
        fix = "name a function that takes in_channels and returns a torch module"
        rule = f"is a {type(found).__name__}, no callable"
        raise ConfigError([Problem("model.stem", model.stem, rule, fix)])
    return found


def resnet_capsnet_problems(config: Config) -> Iterator[Problem]:
    """Return every problem of the sections `model`, `routing` and `loss` of a `ResNetCapsNetConfig`."""
    model = config.model
    assert isinstance(model, ResNetCapsNetConfig)
    yield from loss_problems(config)
    yield from decoder_problems(model, config.data)
    yield from stem_problems(model)
    yield from routing_problems(config)


def stem_problems(model: ResNetCapsNetConfig) -> Iterator[Problem]:
    """Return every problem of the stem, and whether its features are too small for primary capsules."""
    if model.stem == "resnet":
        yield from _stage_problems(model)
        return
    try:
        find_stem(model)
    except ConfigError as error:
        yield from error.problems


def _stage_problems(model: ResNetCapsNetConfig) -> Iterator[Problem]:
    channels, blocks, groups = model.stem_channels, model.stem_blocks, model.norm_groups
    if not channels:
        yield Problem(
            "model.stem_channels", channels, "has no stage", "give one number a stage, e.g. 64 128 256"
        )
    elif len(channels) != len(blocks):
        rule = f"must have as many numbers as model.stem_channels={channels}"
        yield Problem("model.stem_blocks", blocks, rule, "give one number a stage")
    if groups >= 1 and (unfit := [width for width in channels if width % groups]):
        rule = f"must divide the {unfit[0]} channels of model.stem_channels={channels}"
        yield Problem("model.norm_groups", groups, rule, "set --model.norm-groups to a common divisor")
    if min(model.primary_kernel, model.primary_stride, len(channels)) < 1:
        return  # already reported
    least = min(sides(model.image_size))
    for _ in range(len(channels) - 1 + 2 * (model.stem_first == "conv7_pool")):
        least = feature_size(least, 3, 2, "same")
    if feature_size(least, model.primary_kernel, model.primary_stride, model.padding) < 1:
        rule = f"leaves {least} features for the {model.padding} kernel {model.primary_kernel}"
        fix = "use fewer stages, a smaller kernel or --model.padding same"
        yield Problem("model.image_size", model.image_size, rule, fix)
