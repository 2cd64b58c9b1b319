"""The family `em_capsnet`: its fields, its loss with a schedule, and its rules. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from capsdist.config.layer_rules import Convolutions, length_problems, size_problems
from capsdist.config.models import NetworkConfig
from capsdist.config.schema import Config
from capsdist.config.sections import MAY_CHANGE, Bounds, Count, NonNegative, Section
from capsdist.errors import Problem

__all__ = ["EMCapsNetConfig", "EMRouting", "SpreadLoss", "em_capsnet_problems", "spread_loss_at"]

_STACK = Convolutions("conv_kernel", "conv_stride"), Convolutions("capsule_kernels", "capsule_strides")
_RISE, _START = 14.0, -4.0  # the margin's logistic function goes from -4 to 10, where the paper cuts it


class EMCapsNetConfig(NetworkConfig):
    """Matrix capsules with EM routing (Hinton, Sabour, Frosst 2018, section 4)."""

    kind: str = "em_capsnet"
    """Family of networks: a built-in name, or the import path package.module:OBJECT of a Family."""
    conv_channels: Count = 32
    """Channels of the first convolution, A in the paper: 32, small network 64."""
    conv_kernel: Count = 5
    """Kernel size of the first convolution, in pixels; paper: 5."""
    conv_stride: Count = 2
    """Stride of the first convolution; paper: 2."""
    primary_types: Count = 32
    """Types of primary capsules, B in the paper: 32, small network 8."""
    capsule_types: Annotated[tuple[int, ...], Bounds(ge=1)] = (32, 32)
    """Types of each layer of convolutional capsules, C and D in the paper: 32 32, small network 16 16."""
    capsule_kernels: Annotated[tuple[int, ...], Bounds(ge=1)] = (3, 3)
    """Kernel size of each layer of convolutional capsules; paper: 3 3."""
    capsule_strides: Annotated[tuple[int, ...], Bounds(ge=1)] = (2, 1)
    """Stride of each layer of convolutional capsules; paper: 2 1."""
    pose_side: Annotated[int, Bounds(ge=2)] = 4
    """Rows and columns of a pose matrix; paper: 4."""


class EMRouting(Section):
    """EM routing (Hinton, Sabour, Frosst 2018, Procedure 1)."""

    iterations: Annotated[int, Bounds(ge=1, le=50)] = 3
    """M-steps; between them are E-steps; paper: 3."""
    inverse_temperature: Annotated[float, Bounds(gt=0)] = 0.01
    """Inverse temperature lambda that iterations tend to; authors: 0.01."""
    temperature_decay: Annotated[float, Bounds(ge=0, lt=1)] = 0.95
    """lambda of iteration t, from 0: inverse_temperature (1 - temperature_decay^(t + 1)); authors: 0.95."""
    variance_floor: Annotated[float, Bounds(gt=0)] = 1e-4
    """Added to the variance of each dimension of a parent's votes; the paper is silent."""
    competition: Literal["field", "position"] = "field"
    """Who shares a child: all parents that see it (paper), or the types at each position (public code)."""
    backend: Annotated[Literal["auto", "streamed", "reference"], MAY_CHANGE] = "auto"
    """How it is computed: `streamed` without votes, `reference` with; same numbers."""


class SpreadLoss(Section):
    """Spread loss (Hinton, Sabour, Frosst 2018, section 4.1)."""

    margin_start: NonNegative = 0.2
    """Margin that training begins with, but for the start of the logistic function; paper: 0.2."""
    margin_end: NonNegative = 0.99
    """Margin that it tends to; authors: 0.2 + 0.79."""
    margin_steps: int | None = None
    """Steps that the logistic function's argument takes to rise by 1; authors: 50,000. Default: a fourteenth
    of the run's steps, because a short run would never leave the start."""


def spread_loss_at(loss: SpreadLoss, step: int, total_steps: int) -> SpreadLoss:
    """Return the loss of optimizer step `step`, whose `margin_end` is the margin there.

    margin = start + (end - start) sigmoid(min(10, step / margin_steps - 4)), the authors' schedule.
    """
    steps = loss.margin_steps or max(1.0, total_steps / _RISE)
    share = 1 / (1 + math.exp(-min(_RISE + _START, step / steps + _START)))
    margin = loss.margin_start + (loss.margin_end - loss.margin_start) * share
    return loss.model_copy(update={"margin_end": margin})


def em_capsnet_problems(config: Config) -> Iterator[Problem]:
    """Return every problem of the sections `model` and `loss` of such a network."""
    model, loss = config.model, config.loss
    assert isinstance(model, EMCapsNetConfig)
    assert isinstance(loss, SpreadLoss)
    if model.num_labels > 1:
        yield Problem(
            "model.num_labels", model.num_labels, "must be 1: spread loss has one label", "set it to 1"
        )
    if loss.margin_end < loss.margin_start:
        rule = f"is below loss.margin_start={loss.margin_start}"
        yield Problem(
            "loss.margin_end", loss.margin_end, rule, "set it above the start; the authors have 0.99"
        )
    if loss.margin_steps is not None and loss.margin_steps < 1:
        yield Problem(
            "loss.margin_steps", loss.margin_steps, "must be at least 1", "leave it out for the default"
        )
    lengths = [*length_problems(model, ("capsule_types", "capsule_kernels", "capsule_strides"))]
    yield from lengths or size_problems(model, _STACK)
