"""Rules for the capsule network across fields of its configuration."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from capsdist.algorithms import find_algorithm, unread
from capsdist.config.layer_rules import Convolutions, size_problems
from capsdist.config.models import CapsNetConfig, CapsuleConfig, Loss, Routing
from capsdist.config.schema import Config, Data
from capsdist.errors import ConfigError, Problem

__all__ = ["capsnet_problems", "decoder_problems", "loss_problems", "routing_problems"]

_STACK = (
    Convolutions("conv_kernel", "", "padding"),
    Convolutions("primary_kernel", "primary_stride", "padding"),
)


def capsnet_problems(config: Config) -> Iterator[Problem]:
    """Return every problem of the sections `model`, `routing` and `loss` of a capsule network."""
    assert isinstance(config.model, CapsNetConfig)
    yield from loss_problems(config)
    yield from decoder_problems(config.model, config.data)
    yield from size_problems(config.model, _STACK)
    yield from routing_problems(config)


def loss_problems(config: Config) -> Iterator[Problem]:
    """Return every problem of the section `loss` of a network of capsules."""
    loss = config.loss
    assert isinstance(loss, Loss)
    if loss.m_minus >= loss.m_plus:
        rule = f"must be below loss.m_plus={loss.m_plus}"
        yield Problem("loss.m_minus", loss.m_minus, rule, "the paper has 0.1 and 0.9")


def decoder_problems(model: CapsuleConfig, data: Data) -> Iterator[Problem]:
    """Return every problem of the decoder."""
    if min(model.decoder_hidden) < 1:
        yield Problem(
            "model.decoder_hidden", model.decoder_hidden, "must be at least 1 each", "the paper has 512 1024"
        )
    if model.decoder and (data.standardise or data.normalise_mean):
        name = "standardise" if data.standardise else "normalise_mean"
        rule = f"needs pixels in [0, 1], which data.{name} removes"
        fix = "--data.no-standardise" if data.standardise else "leave --data.normalise-mean out"
        yield Problem("model.decoder", True, rule, f"set --model.no-decoder or {fix}")
    if model.draws_parts:
        yield from _parts_problems(model, data)


def _parts_problems(model: CapsuleConfig, data: Data) -> Iterator[Problem]:
    """Return why the decoder cannot draw each label by itself: the images of the labels are not known."""
    for name, value, holds, needed in (
        ("model.num_labels", model.num_labels, model.num_labels == 2, "2 labels an image"),
        ("data.reader", data.reader, data.reader == "packed", "packed recipes"),
        ("data.mixup", data.mixup, not data.mixup, "images that are not mixed"),
    ):
        if not holds:
            rule = f"does not go with {name}={value}: it needs {needed}"
            yield Problem("model.decoder_separate", True, rule, "set --model.no-decoder-separate")


def routing_problems(config: Config, read: Collection[str] = ()) -> Iterator[Problem]:
    """Return every problem of the section `routing` of a network of capsules.

    read: options that layers below the class capsules read, whatever the algorithm.
    """
    routing = config.routing
    assert isinstance(routing, Routing)
    yield from _algorithm_problems(config, routing, read)
    if routing.backend in ("fused", "streamed") and routing.recompute != "streamed":
        yield Problem(
            "routing.recompute",
            routing.recompute,
            f"is for autograd, and routing.backend={routing.backend} has its own backward pass",
            "set --routing.backend reference",
        )
    if routing.backend == "fused" and routing.gradient == "last":
        yield Problem(
            "routing.gradient",
            "last",
            "is not in the kernels of routing.backend=fused",
            "set --routing.backend auto",
        )
    if routing.backend == "fused" and config.train.device == "cpu":
        yield Problem("routing.backend", "fused", "needs a GPU", "set --routing.backend auto")


def _algorithm_problems(config: Config, routing: Routing, read: Collection[str]) -> Iterator[Problem]:
    """Return every problem of the routing algorithm: it is unknown, or does not know an option."""
    name, ranks = routing.algorithm, config.train.capsule_ranks
    try:
        algorithm = find_algorithm(name)
    except ConfigError as error:
        yield from error.problems
        return
    for field, value in unread(algorithm, config.model, routing):
        if field.partition(".")[2] not in read:
            yield Problem(field, value, f"is not read by routing.algorithm={name}", "leave it out")
    if ranks > 1 and algorithm.whole:
        rule = f"does not go with routing.algorithm={name}: {algorithm.whole}"
        yield Problem("train.capsule_ranks", ranks, rule, "set --train.capsule-ranks 1")
    yield from algorithm.problems(config)
