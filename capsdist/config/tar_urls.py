"""The tar files that `data.urls` names: braces expanded, unusable URLs refused. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice

from braceexpand import braceexpand

from capsdist.config.images import size_option
from capsdist.config.schema import Config
from capsdist.config.steps import steps_of
from capsdist.errors import Problem

__all__ = ["MAX_TARS", "absolute_urls", "expand_urls", "local_tars", "reader_problems"]

MAX_TARS = 1 << 20
"""Limit of the tar files that `data.urls` may name."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_SCHEMES = ("https", "http", "s3", "file")
_FIX = "write 'https://host/{000..999}.tar', an s3:// URL or a local path"


def expand_urls(urls: str) -> list[str]:
    """Return the tar files that `urls` names: ``{000..999}`` and ``{a,b}`` are expanded, as by a shell.

    Raises:
        ValueError: braces are not balanced, or there are more than `MAX_TARS` files.
    """
    try:
        found = list(islice(braceexpand(urls, escape=False), MAX_TARS + 1))
    except ValueError:  # UnbalancedBracesError, which has no type stubs
        raise ValueError("has an opening or closing brace too many") from None
    if len(found) > MAX_TARS:
        raise ValueError(f"names more than {MAX_TARS:,} files")
    return found


def local_tars(urls: str) -> list[str]:
    """Return the paths of those tar files of `urls` that are local; none of faulty ones."""
    try:
        found = expand_urls(urls)
    except ValueError:
        return []
    schemes = [(match[1] if (match := _SCHEME.match(url)) else "", url) for url in found]
    return [url.removeprefix("file://") for scheme, url in schemes if scheme in ("", "file") and url]


def absolute_urls(urls: str) -> str:
    """Return `urls` with a relative path made absolute; braces stay. Faulty ones are returned as they are."""
    urls = os.path.expanduser(urls)
    try:
        found = expand_urls(urls)
    except ValueError:
        return urls
    relative = found != [""] and not any(_SCHEME.match(url) or os.path.isabs(url) for url in found)
    return os.path.join(os.getcwd(), urls) if relative else urls


def reader_problems(config: Config) -> Iterator[Problem]:
    """Return every problem of `data.reader` and of the fields that only one reader has."""
    data = config.data
    if data.reader == "packed":
        for name in ("urls", "num_samples", "classes"):
            if value := getattr(data, name):
                rule = "has no effect on the reader packed"
                yield Problem(f"data.{name}", value, rule, "set --data.reader webdataset, or leave it out")
        return
    yield from _url_problems(config)
    yield from _sample_problems(config)
    yield from _loop_problems(config)


def _url_problems(config: Config) -> Iterator[Problem]:
    urls, workers = config.data.urls, config.train.num_workers
    if not urls:
        yield Problem("data.urls", urls, "must name the tar files for the reader webdataset", _FIX)
        return
    try:
        found = expand_urls(urls)
    except ValueError as error:
        yield Problem("data.urls", urls, str(error), _FIX)
        return
    for url in found:
        if fault := _fault(url):
            yield Problem("data.urls", *fault)
            return
    if len(found) < workers:
        rule = f"names {len(found)} tar files for train.num_workers={workers}; each worker reads its own"
        fix = f"set --train.num-workers {len(found)}, or cut the data into more files"
        yield Problem("data.urls", urls, rule, fix)


def _fault(url: str) -> tuple[str, str, str] | None:
    """Return value, rule and fix of a tar file that is not read; no credential is repeated."""
    match = _SCHEME.match(url)
    scheme = match[1] if match else ""
    if scheme.lower() == "pipe":
        return "pipe:...", "would run a command of the shell", _FIX
    if scheme and scheme not in _SCHEMES:
        return f"{scheme}:...", f"{scheme}: is not read", _FIX
    rest = url.partition("://")[2].partition("?")[0]
    host, _, path = rest.partition("/")
    if scheme and not (path and bool(host) != (scheme == "file")):
        return url, "does not name a file", _FIX
    if "@" in host and scheme:
        fix = "take them out; s3:// takes AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return f"{scheme}://...@{host.rpartition('@')[2]}/{path}", "credentials do not belong in a URL", fix
    if scheme in ("http", "https") and set(url) & set("[]{}"):
        return url, "has brackets, which a URL must write as %5B, %5D, %7B and %7D", _FIX
    if not (rest if scheme else url).endswith(".tar"):
        return url, "does not end with .tar", "unpack compressed tar files first: they are not read"
    return None


def _sample_problems(config: Config) -> Iterator[Problem]:
    data, model = config.data, config.model
    if data.num_samples is None:
        rule = "must be given for the reader webdataset: it ends an epoch"
        yield Problem("data.num_samples", None, rule, "set it to the number of images in all tar files")
    elif config.train.global_batch_size > data.num_samples >= 1:
        rule = f"is more than data.num_samples={data.num_samples}"
        fix = f"set --train.global-batch-size {data.num_samples} or less"
        yield Problem("train.global_batch_size", config.train.global_batch_size, rule, fix)
    if len(data.classes) > model.num_classes:
        rule = f"are more than model.num_classes={model.num_classes}"
        yield Problem("data.classes", data.classes, rule, f"set --model.num-classes {len(data.classes)}")
    if model.from_data:
        rule = "needs an index, which the reader webdataset does not have"
        fix = "set --model.image-size, --model.in-channels and --model.num-classes instead"
        yield Problem("model.from_data", model.from_data, rule, fix)
    if model.in_channels not in (1, 3):
        rule = "must be 1 (grey) or 3 (colour): what image files are decoded to"
        yield Problem("model.in_channels", model.in_channels, rule, "set --model.in-channels 1 or 3")
    if data.resident not in ("auto", "never"):
        rule = "is for packed splits: the reader webdataset streams its images"
        yield Problem("data.resident", data.resident, rule, "set --data.resident auto")
    if data.crop:
        rule = "has no room: the reader webdataset decodes images to model.image_size"
        fix = f"set --data.crop 0 --data.resize {size_option(data.crop)}"
        yield Problem("data.crop", data.crop, rule, fix)


def _loop_problems(config: Config) -> Iterator[Problem]:
    data, train = config.data, config.train
    if data.last_batch != "short":
        rule = "joins epochs, which the reader webdataset does not do"
        yield Problem("data.last_batch", data.last_batch, rule, "set --data.last-batch short")
    every = train.checkpoint_every_steps
    if every and data.num_samples and data.num_samples >= 1 and train.global_batch_size >= 1:
        steps = steps_of(config, data.num_samples).before(1)
        if data.last_batch == "short" and every % steps:
            rule = f"must be a multiple of {steps}, the steps of an epoch: webdataset resumes only there"
            fix = f"set --train.checkpoint-every-steps {-(-every // steps) * steps}, or leave it out"
            yield Problem("train.checkpoint_every_steps", every, rule, fix)
    if not data.name and train.validate_every_steps:
        rule = "has nothing to validate on: data.name is empty"
        fix = "leave it out, or set --data.name to a packed set that has data.test_split"
        yield Problem("train.validate_every_steps", train.validate_every_steps, rule, fix)
