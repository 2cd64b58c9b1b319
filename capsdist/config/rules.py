"""Checks of a configuration that types alone cannot make: ranges, and rules across fields.

`problems` returns ALL of them, each with field, value, rule and fix; `validate` raises them as one error.
Imports neither torch nor ray, so that a bad configuration is refused in a fraction of a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from capsdist.config.image_rules import image_problems
from capsdist.config.models import BUILT_IN, CapsuleConfig, find_family
from capsdist.config.optim_rules import optim_problems
from capsdist.config.schema import Config
from capsdist.config.sections import Bounds, Section
from capsdist.config.tar_urls import reader_problems
from capsdist.errors import ConfigError, Problem

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What runs, data sets and splits may be called: they name folders."""


def problems(config: Config) -> list[Problem]:
    """Return every problem of `config`, in the order of its fields; an empty list if it is valid."""
    return [
        *(
            problem
            for name in type(config).model_fields
            if isinstance(section := getattr(config, name), Section)
            for problem in section_problems(name, section)
        ),
        *_name_problems(config),
        *_validation_problems(config),
        *_place_problems("data.root", config.data.root),
        *_place_problems("train.storage", config.train.storage),
        *_place_problems("train.init_from", config.train.init_from or ""),
        *image_problems(config),
        *reader_problems(config),
        *_label_problems(config),
        *optim_problems(config),
        *find_family(config.model.kind).problems(config),
        *_batch_problems(config),
        *capsule_rank_problems(config),
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


def capsule_rank_problems(config: Config) -> Iterator[Problem]:
    """Yield what capsules that are split over ranks cannot be trained with."""
    train = config.train
    if (ranks := train.capsule_ranks) <= 1:  # below 1 is a range, already reported
        return
    kind = config.model.kind
    if kind in BUILT_IN and not _has_class_capsules(kind):  # others are known once they are built
        families = ", ".join(filter(_has_class_capsules, BUILT_IN))
        rule = f"divides class capsules with dynamic routing ({families}), and model.kind={kind} has none"
        yield Problem("train.capsule_ranks", ranks, rule, "set --train.capsule-ranks 1")
    may_be_zero = train.engine == "zero" or (train.engine == "auto" and train.device != "cpu")
    if train.num_workers % ranks:
        rule = f"must divide train.num_workers={train.num_workers}"
        yield Problem("train.capsule_ranks", ranks, rule, "set --train.capsule-ranks to a divisor")
    if train.zero_stage == 3 and may_be_zero:
        rule = f"partitions weights over all workers as one, and those of train.capsule_ranks={ranks} differ"
        yield Problem("train.zero_stage", 3, rule, "set --train.zero-stage 2, or --train.capsule-ranks 1")
    if train.microbatch_size == "auto":
        rule = f"tries sizes on each worker alone, and those of train.capsule_ranks={ranks} compute together"
        yield Problem("train.microbatch_size", "auto", rule, "set a number")
    if train.precision == "fp16":
        rule = f"has a loss scale, which does not know the weights that train.capsule_ranks={ranks} splits"
        yield Problem("train.precision", "fp16", rule, "set bf16, or --train.capsule-ranks 1")


def _has_class_capsules(kind: str) -> bool:
    return issubclass(find_family(kind).model, CapsuleConfig)


def section_problems(section_name: str, section: Section) -> Iterator[Problem]:
    """Yield the fields of a section of options that are not within their `Bounds`."""
    for name, field in type(section).model_fields.items():
        value, option = getattr(section, name), f"{section_name}.{name}"
        if value is None or isinstance(value, str):  # a string stands for a number, as "auto"
            continue
        for rule in _broken_rules(value, field.metadata, field.annotation):
            fix = f"correct --{option.replace('_', '-')}"
            fix += ", or leave it out for the default" if field.default is None else ""
            yield Problem(option, value, f"must be {rule}", fix)


def _broken_rules(value: Any, marks: Sequence[Any], annotation: Any) -> Iterator[str]:
    """Yield the ranges that `value` is not within, each once: of the field, and of the items of a tuple."""
    ranges = [(value, mark) for mark in marks]
    if isinstance(value, tuple):
        kinds = get_args(annotation)
        kinds = kinds[:1] * len(value) if Ellipsis in kinds else kinds
        for each, kind in zip(value, kinds, strict=False):  # a size, int | tuple, has kinds of its own
            ranges += [(each, mark) for mark in getattr(kind, "__metadata__", ())]
    broken = (_broken(each, mark) for each, mark in ranges if isinstance(mark, Bounds))
    yield from dict.fromkeys(filter(None, broken))


def _broken(value: float | tuple[float, ...], bounds: Bounds) -> str | None:
    if isinstance(value, tuple):
        return next((rule for each in value if (rule := _broken(each, bounds))), None)
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
    names = [("train.name", config.train.name), ("data.name", data.name)]
    if data.reader == "webdataset" and not data.name:
        names.pop()  # there is no packed set
    splits = {f"data.{field}": split for field, split in data.splits.items()}
    for field, value in (*names, *splits.items()):
        if not NAME.fullmatch(value):
            yield Problem(
                field,
                value,
                "must be letters, digits, '.', '_' or '-', as it names a folder",
                "choose another name",
            )
    for place in data.further_tests:
        name, slash, split = place.partition("/")
        if not (slash and NAME.fullmatch(name) and NAME.fullmatch(split)):
            rule = "must be SET/SPLIT, two names of folders"
            yield Problem("data.further_tests", place, rule, "affnist/test for example")
        elif (name, split) == (data.name, data.train_split):
            fix = "test on another split, or the error says nothing"
            yield Problem("data.further_tests", place, "is the training split", fix)
    for field, value in splits.items():
        if value == data.train_split and field != "data.train_split":
            act = "test" if field == "data.test_split" else "validate"
            fix = f"{act} on another split, or the error says nothing"
            yield Problem(field, value, "is the training split", fix)


def _validation_problems(config: Config) -> Iterator[Problem]:
    if config.data.validation_split is None and config.train.keep_best > 0:
        rule = "compares errors of validations, and data.validation_split=None has none"
        fix = "set --train.keep-best 0, or --data.validation-split to a split"
        yield Problem("train.keep_best", config.train.keep_best, rule, fix)
    kind = config.model.kind
    if not find_family(kind).classifies:
        for name in ("keep_best", "stop_at_error", "patience"):
            if value := getattr(config.train, name):
                rule = f"is about error_percent, which model.kind={kind} has none of"
                fix = f"set --train.{name.replace('_', '-')} {0 if name == 'keep_best' else 'None'}"
                yield Problem(f"train.{name}", value, rule, fix)
    for name in ("stop_at_error", "patience"):
        value = getattr(config.train, name)
        if config.data.validation_split is None and value is not None:
            rule = "is about validations, and data.validation_split=None has none"
            fix = "set --data.validation-split to a split, or leave it out"
            yield Problem(f"train.{name}", value, rule, fix)


def check_classifies(config: Config, what: str) -> None:
    """Check that the network tells classes, which `what` is about.

    Raises:
        ConfigError: it does not.
    """
    kind = config.model.kind
    if not find_family(kind).classifies:
        rule = f"names no classes of images, and {what} is about classes"
        fix = "draw what it has learned: python jobs/figures.py RUN"
        raise ConfigError([Problem("model.kind", kind, rule, fix)])


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


def _label_problems(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.num_labels <= 1:  # below 1 is a range, already reported
        return
    if model.num_labels >= model.num_classes:
        rule = f"must be below model.num_classes={model.num_classes}"
        yield Problem("model.num_labels", model.num_labels, rule, "set the number of labels of an image")
    elif find_family(model.kind).multi_label_losses is None:
        rule = f"is more than the family {model.kind} can train on"
        fix = "set --model.num-labels 1, or give the family multi_label_losses"
        yield Problem("model.num_labels", model.num_labels, rule, fix)


def _batch_problems(config: Config) -> Iterator[Problem]:
    train, launch = config.train, config.launch
    least = train.num_workers * train.gradient_accumulation_steps
    if train.global_batch_size < least:
        yield Problem(
            "train.global_batch_size",
            train.global_batch_size,
            f"must be at least num_workers x gradient_accumulation_steps = {least}",
            "raise the batch or lower train.num_workers or train.gradient_accumulation_steps",
        )
    yield from _microbatch_problems(config)
    if config.data.lanes >= 1 and train.global_batch_size % config.data.lanes:
        yield Problem(
            "data.lanes",
            config.data.lanes,
            f"must divide train.global_batch_size={train.global_batch_size}",
            "set --data.lanes to a divisor",
        )
    if launch.max_workers is not None and 1 <= launch.max_workers < train.num_workers:
        yield Problem(
            "train.num_workers",
            train.num_workers,
            f"exceeds launch.max_workers={launch.max_workers}",
            "ask for fewer workers or declare a larger cluster",
        )
    if train.dry_run and train.profile:
        rule = f"would leave no trace behind with train.dry_run={train.dry_run}"
        yield Problem("train.profile", train.profile, rule, "set one of them")
    if train.precision == "fp16" and train.device == "cpu":
        yield Problem("train.precision", "fp16", "is for GPUs", "use fp32 or bf16 on a CPU")
    if train.recompute == "blocks" and not find_family(config.model.kind).has_blocks:
        rule = f"is for deep networks of capsules (conv_capsnet), not for the family {config.model.kind}"
        yield Problem("train.recompute", "blocks", rule, "set --train.recompute none")


def _microbatch_problems(config: Config) -> Iterator[Problem]:
    train = config.train
    if train.microbatch_size is not None and train.gradient_accumulation_steps > 1:
        rule = f"splits what train.gradient_accumulation_steps={train.gradient_accumulation_steps} splits too"
        yield Problem("train.microbatch_size", train.microbatch_size, rule, "set one of them")
    if train.microbatch_size == "auto" and train.zero_stage == 3 and train.engine != "ddp":
        rule = "tries the whole network on every worker, and train.zero_stage=3 is for one that does not fit"
        fix = "set --train.microbatch-size to a number, or --train.zero-stage 2"
        yield Problem("train.microbatch_size", "auto", rule, fix)
