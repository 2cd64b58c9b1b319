"""Checks of a configuration that types alone cannot make: ranges, and rules across fields.

`problems` returns ALL of them, each with field, value, rule and fix; `validate` raises them as one error.
Imports neither torch nor ray, so that a bad configuration is refused in a fraction of a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from capsdist.config.schema import Bounds, Config
from capsdist.errors import ConfigError, Problem

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def problems(config: Config) -> list[Problem]:
    """Return every problem of `config`, in the order of its fields; an empty list if it is valid."""
    return [
        *_range_problems(config),
        *_name_problems(config),
        *_place_problems("data.root", config.data.root),
        *_place_problems("train.storage", config.train.storage),
        *_model_problems(config),
        *_routing_problems(config),
        *_batch_problems(config),
    ]


def validate(config: Config) -> Config:
    """Return `config` unchanged.

    Raises:
        ConfigError: with all problems, if there is any.
    """
    found = problems(config)
    if found:
        raise ConfigError(found)
    return config


def feature_size(size: int, kernel: int, stride: int, padding: str) -> int:
    """Return the side of a convolution's output, in pixels; below 1 if the kernel does not fit."""
    return -(-size // stride) if padding == "same" else (size - kernel) // stride + 1


def _range_problems(config: Config) -> Iterator[Problem]:
    for section_name in type(config).model_fields:
        section = getattr(config, section_name)
        for name, field in getattr(type(section), "model_fields", {}).items():
            value = getattr(section, name)
            for bounds in field.metadata:
                if isinstance(bounds, Bounds) and (rule := _broken(value, bounds)):
                    yield Problem(
                        f"{section_name}.{name}",
                        value,
                        f"must be {rule}",
                        f"set --{section_name}.{name} accordingly",
                    )
    for field in (
        "train.max_steps",
        "train.validate_every_steps",
        "train.checkpoint_every_steps",
        "cluster.max_workers",
    ):
        section, name = field.split(".")
        value = getattr(getattr(config, section), name)
        if value is not None and value < 1:
            yield Problem(field, value, "must be at least 1", "leave it out for the default")


def _broken(value: float, bounds: Bounds) -> str | None:
    tests = (
        (bounds.ge, "at least", lambda limit: value >= limit),
        (bounds.gt, "greater than", lambda limit: value > limit),
        (bounds.le, "at most", lambda limit: value <= limit),
        (bounds.lt, "less than", lambda limit: value < limit),
    )
    if math.isfinite(value) and all(limit is None or holds(limit) for limit, _, holds in tests):
        return None
    rule = " and ".join(f"{word} {limit:g}" for limit, word, _ in tests if limit is not None)
    return rule if math.isfinite(value) else f"finite and {rule}"


def _name_problems(config: Config) -> Iterator[Problem]:
    data = config.data
    names = (("train.name", config.train.name), ("data.name", data.name))
    splits = (("data.train_split", data.train_split), ("data.test_split", data.test_split))
    for field, value in (*names, *splits):
        if not _NAME.fullmatch(value):
            yield Problem(
                field,
                value,
                "must be letters, digits, '.', '_' or '-', as it names a folder",
                "choose another name",
            )
    if data.train_split == data.test_split:
        yield Problem(
            "data.test_split",
            data.test_split,
            "is the training split",
            "test on another split, or the error says nothing",
        )


def _place_problems(field: str, place: str) -> Iterator[Problem]:
    """Find URLs that mean nothing, or another thing than they seem to; no credential is repeated."""
    scheme, mark, rest = place.partition(":")
    if not mark or not re.fullmatch(r"[a-z][a-z0-9+.-]+", scheme):
        return
    fix = "write s3://bucket/prefix, or a path"
    bucket = rest.removeprefix("//").partition("/")[0].partition("?")[0]
    if "@" in bucket:
        value = f"{scheme}://...@{bucket.rpartition('@')[2]}"
        fix = "take them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        yield Problem(field, value, "credentials do not belong in a URL", fix)
    elif not rest.startswith("//"):
        if scheme == "s3":
            yield Problem(field, place, "would be a local folder named s3:", fix)
    elif scheme not in ("s3", "file"):
        yield Problem(field, place, f"{scheme}:// is not supported", fix)
    elif scheme == "s3" and not bucket:
        yield Problem(field, place, "does not name a bucket", fix)


# What both networks read; `decoder` is on by default, and the baseline has none either way.
_OF_BOTH = {"kind", "in_channels", "image_size", "num_classes", "decoder"}
_OF_BASELINE = {"dropout"}


def _unused_problems(config: Config) -> Iterator[Problem]:
    """Find settings that are not the default's, and that the network of this kind does not read."""
    baseline = config.model.kind == "baseline_cnn"
    unused = type(config.model).model_fields.keys() - _OF_BOTH - _OF_BASELINE if baseline else _OF_BASELINE
    sections = {"model": unused, "routing": type(config.routing).model_fields if baseline else ()}
    for section, fields in sections.items():
        settings = getattr(config, section)
        for field in sorted(fields):
            value, default = getattr(settings, field), type(settings).model_fields[field].default
            if value != default:
                rule = f"is for the {'capsule network' if baseline else 'baseline CNN'} only"
                shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
                yield Problem(f"{section}.{field}", value, rule, f"leave it at {shown}")


def _model_problems(config: Config) -> Iterator[Problem]:
    model, data = config.model, config.data
    if data.crop and data.crop != model.image_size:
        yield Problem(
            "data.crop",
            data.crop,
            f"must equal model.image_size={model.image_size}",
            f"set --model.image_size {data.crop}",
        )
    if data.shift >= model.image_size > 0:
        yield Problem(
            "data.shift",
            data.shift,
            f"must be below model.image_size={model.image_size}, or images turn black",
            "the paper has 2",
        )
    low, high = data.contrast
    if not 0 < low <= high < math.inf:
        yield Problem("data.contrast", data.contrast, "must be 0 < low <= high", "1 1 switches it off")
    if config.loss.m_minus >= config.loss.m_plus:
        yield Problem(
            "loss.m_minus",
            config.loss.m_minus,
            f"must be below loss.m_plus={config.loss.m_plus}",
            "the paper has 0.1 and 0.9",
        )
    yield from _unused_problems(config)
    if model.kind == "baseline_cnn":
        return
    if min(model.decoder_hidden) < 1:
        yield Problem(
            "model.decoder_hidden", model.decoder_hidden, "must be at least 1 each", "the paper has 512 1024"
        )
    if model.decoder and data.standardise:
        yield Problem(
            "model.decoder",
            True,
            "needs pixels in [0, 1], which data.standardise removes",
            "set --model.no-decoder or --data.no-standardise",
        )
    if min(model.conv_kernel, model.primary_kernel, model.primary_stride) < 1:
        return  # already reported as a range
    after_conv = feature_size(model.image_size, model.conv_kernel, 1, model.padding)
    if (
        after_conv < 1
        or feature_size(after_conv, model.primary_kernel, model.primary_stride, model.padding) < 1
    ):
        yield Problem(
            "model.image_size",
            model.image_size,
            f"is too small for {model.padding} kernels {model.conv_kernel} and {model.primary_kernel}",
            "use smaller kernels or --model.padding same",
        )


def _routing_problems(config: Config) -> Iterator[Problem]:
    routing = config.routing
    if routing.form in ("fused", "streamed") and routing.recompute != "streamed":
        yield Problem(
            "routing.recompute",
            routing.recompute,
            f"is for autograd, and routing.form={routing.form} has its own backward pass",
            "set --routing.form reference",
        )
    if routing.form == "fused" and routing.gradient == "last":
        yield Problem(
            "routing.gradient",
            "last",
            "is not in the kernels of routing.form=fused",
            "set --routing.form auto",
        )
    if routing.form == "fused" and config.train.device == "cpu":
        yield Problem("routing.form", "fused", "needs a GPU", "set --routing.form auto")


def _batch_problems(config: Config) -> Iterator[Problem]:
    train, cluster = config.train, config.cluster
    if train.global_batch < train.workers * train.accumulation:
        yield Problem(
            "train.global_batch",
            train.global_batch,
            f"must be at least workers x accumulation = {train.workers * train.accumulation}",
            "raise the batch or lower train.workers or train.accumulation",
        )
    if config.data.lanes >= 1 and train.global_batch % config.data.lanes:
        yield Problem(
            "data.lanes",
            config.data.lanes,
            f"must divide train.global_batch={train.global_batch}",
            "set --data.lanes to a divisor",
        )
    if cluster.max_workers is not None and 1 <= cluster.max_workers < train.workers:
        yield Problem(
            "train.workers",
            train.workers,
            f"exceeds cluster.max_workers={cluster.max_workers}",
            "ask for fewer workers or declare a larger cluster",
        )
    if train.precision == "fp16" and train.device == "cpu":
        yield Problem("train.precision", "fp16", "is for GPUs", "use fp32 or bf16 on a CPU")
