"""The family `conv_capsnet`: its fields and rules. Imports no torch, except with a stem that does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from capsdist.algorithms import find_algorithm
from capsdist.config.capsnet_rules import decoder_problems, loss_problems, routing_problems
from capsdist.config.layer_rules import Convolutions, length_problems, size_problems
from capsdist.config.models import Routing
from capsdist.config.resnet_capsnet import ResNetCapsNetConfig, stem_problems
from capsdist.config.schema import Config
from capsdist.config.sections import Bounds, Count
from capsdist.errors import Problem

__all__ = ["ConvCapsNetConfig", "ConvRouting", "conv_capsnet_problems"]

_STACK = (
    Convolutions("conv_kernel", "conv_stride", "padding"),
    Convolutions("primary_kernel", "primary_stride", "padding"),
    Convolutions("capsule_kernels", "capsule_strides", "capsule_padding"),
)


class ConvCapsNetConfig(ResNetCapsNetConfig):
    """Layers of convolutional capsules over a stem, and class capsules."""

    stems: ClassVar[dict[str, str]] = {
        "paper": "capsdist.models.conv_capsnet:PaperStem", **ResNetCapsNetConfig.stems,
    }  # fmt: skip

    kind: str = "conv_capsnet"
    """Family of networks: a built-in name, or the import path package.module:OBJECT of a Family."""
    stem: str = "paper"
    """Network under the capsules: `paper`, one convolution; `resnet`; or the import path
    package.module:CALLABLE of a callable that, given in_channels, returns a torch module from images
    [B,C,H,W] to features [B,C',H',W']."""
    conv_channels: Count = 256
    """Channels of the convolution of `paper`; paper: 256."""
    conv_kernel: Count = 9
    """Kernel size of the convolution of `paper`, in pixels; paper: 9."""
    conv_stride: Count = 1
    """Stride of the convolution of `paper`; paper: 1."""
    primary_types: Count = 8
    """Types of primary capsules, each a map of capsules."""
    padding: Literal["valid", "same"] = "same"
    """Padding of the convolutions of `paper` and of the primary capsules."""
    capsule_types: Annotated[tuple[int, ...], Bounds(ge=1)] = (8,)
    """Types of each layer of convolutional capsules; none: class capsules see the primary ones."""
    capsule_dims: Annotated[tuple[int, ...], Bounds(ge=1)] = (16,)
    """Dimensions of the capsules of each of these layers."""
    capsule_kernels: Annotated[tuple[int, ...], Bounds(ge=1)] = (3,)
    """Kernel size of each of these layers, in positions."""
    capsule_strides: Annotated[tuple[int, ...], Bounds(ge=1)] = (2,)
    """Stride of each of these layers."""
    capsule_padding: Literal["valid", "same"] = "same"
    """Padding of these layers: `same` has parents whose kernel reaches over the border."""
    class_weights: Literal["position", "shared"] = "position"
    """Class capsules have a matrix for each child (`position`), or for each type of child (`shared`), with
    the position added to the votes (Hinton, Sabour, Frosst 2018, section 4)."""
    residual: bool = False
    """Add the input poses of each layer that keeps their shape to its poses, after squash."""
    pose_norm: bool = False
    """Scale the poses under each capsule layer, by one number an image, to a mean square length of 0.25."""
    capsule_dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability with which training drops a capsule under a capsule layer; the others are scaled up."""
    capsule_bias: bool = False
    """One learned bias per dimension of a type of all capsule layers, added before squash."""
    log_priors: bool = False
    """One learned logit to start routing from per child under a kernel and parent type, in all layers but
    class capsules with shared weights; else it is 0."""


class ConvRouting(Routing):
    """Routing by agreement (paper, section 2, Procedure 1), also between grids of capsules: layers of
    convolutional capsules have dynamic routing and read its options, whatever `algorithm` is."""

    competition: Literal["field", "position"] = "field"
    """Who shares a child of convolutional capsules: all parents that see it (Hinton, Sabour, Frosst 2018,
    section 2.3), or the types at each position (some public code)."""


def conv_capsnet_problems(config: Config) -> Iterator[Problem]:
    """Return every problem of the sections `model`, `routing` and `loss` of a `ConvCapsNetConfig`."""
    model, routing = config.model, config.routing
    assert isinstance(model, ConvCapsNetConfig)
    assert isinstance(routing, ConvRouting)
    yield from loss_problems(config)
    yield from decoder_problems(model, config.data)
    if model.stem != "paper":
        yield from stem_problems(model)
    has_grids = model.capsule_types or model.class_weights == "shared"
    yield from routing_problems(
        config, find_algorithm("dynamic").reads | {"competition"} if has_grids else ()
    )
    if model.class_weights == "shared" and routing.algorithm != "dynamic":
        rule = "does not go with model.class_weights=shared"
        yield Problem("routing.algorithm", routing.algorithm, rule, "set --model.class-weights position")
    if routing.recompute == "iterations":
        rule = "is not there for grids of capsules"
        yield Problem("routing.recompute", "iterations", rule, "set --routing.recompute streamed")
    if routing.backend == "fused":
        rule = "has no kernels for grids of capsules"
        yield Problem("routing.backend", "fused", rule, "set --routing.backend auto")
    if model.class_weights == "shared" and model.class_dim < 2:
        rule = "has no room for two coordinates with model.class_weights=shared"
        yield Problem("model.class_dim", model.class_dim, rule, "set it to 2 at least")
    yield from _layer_problems(model)


def _layer_problems(model: ConvCapsNetConfig) -> Iterator[Problem]:
    sizes = "capsule_types", "capsule_dims", "capsule_kernels", "capsule_strides"
    if lengths := [*length_problems(model, sizes)]:
        yield from lengths
        return
    if model.log_priors and model.class_weights == "shared" and not model.capsule_types:
        rule = "has no layer to act on: class capsules with shared weights have no priors"
        yield Problem("model.log_priors", True, rule, "set --model.class-weights position")
    if model.residual and not _residual_layers(model):
        rule = "finds no layer whose output has the shape of its input"
        fix = "give one the types and dimensions of the one below, stride 1 and --model.capsule-padding same"
        yield Problem("model.residual", True, rule, fix)
    if model.stem == "paper":
        yield from size_problems(model, _STACK)


def _residual_layers(model: ConvCapsNetConfig) -> list[int]:
    """Return which layers can have their input added, from 0."""
    below = (model.primary_types, model.primary_dim)
    sizes = zip(
        model.capsule_types, model.capsule_dims, model.capsule_kernels, model.capsule_strides, strict=True
    )
    found = []
    for number, (types, dim, kernel, stride) in enumerate(sizes):
        fits = stride == 1 and (model.capsule_padding == "same" or kernel == 1)
        if fits and (types, dim) == below:
            found.append(number)
        below = types, dim
    return found
