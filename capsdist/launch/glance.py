"""Check data and machine for `--check` in a fraction of a second: without images, torch or numpy.

Of the data: that the indexes are unaltered, what they say, and that every shard is there with its size.

The same is compared again, and more, when a run starts (`preflight.check_data`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from capsdist.config import Config
from capsdist.config.images import sides, size_option
from capsdist.config.optim_rules import schedule_problem
from capsdist.data.format.head import Head, parse_head
from capsdist.data.format.packed import INDEX_NAME, KEPT, MAX_INDEX_BYTES
from capsdist.errors import ConfigError, DocumentError, Problem
from capsdist.launch.preflight import machine_at_a_glance, overlap, place_on_machine
from capsdist.storage.documents import read_file
from capsdist.storage.place import is_url

__all__ = ["data_problems", "machine_problems"]


def machine_problems(config: Config) -> list[Problem] | None:
    """Return what a Ray on this machine could not give the workers; None: its GPUs cannot be counted."""
    machine = machine_at_a_glance()
    if machine is None:
        return None
    try:
        place_on_machine(config, machine)
    except ConfigError as error:
        return list(error.problems)
    return []


def data_problems(config: Config) -> list[Problem]:
    """Return what the local, packed splits of `config`, by their indexes, do not have or have otherwise."""
    data = config.data
    if is_url(data.root):
        return []
    heads = {}
    for name, split in data.splits.items():
        field, path = f"data.{name}", Path(data.root, data.name, split, INDEX_NAME)
        try:
            heads[field] = parse_head(read_file(path, max_bytes=MAX_INDEX_BYTES))
        except FileNotFoundError:
            continue  # a warning names the command that packs it
        except DocumentError as error:
            return [Problem(field, split, f"{path} {error}", KEPT)]
        if fault := _fault(path, heads[field]):
            return [Problem(field, split, fault, KEPT)]
    found = [problem for field, head in heads.items() for problem in _head_problems(config, field, head)]
    train = heads.get("data.train_split")
    for field, head in heads.items():
        if train and head.classes != train.classes:
            rule = "numbers its classes in another way than the training split"
            fix = "pack both with the same list of classes"
            found.append(Problem(field, _split(config, field), rule, fix))
    if problem := overlap(config):
        found.append(problem)
    return found


def _fault(path: Path, head: Head) -> str | None:
    """Return what is wrong with the files of the split whose index is `path`, None if they are there.

    Of recipes, with those of the split that they are made of.
    """
    if base := head.base:
        path = path.parent.with_name(base.split) / INDEX_NAME
        try:
            head = parse_head(read_file(path, max_bytes=MAX_INDEX_BYTES))
        except FileNotFoundError:
            return f"{path} is missing"
        except DocumentError as error:
            return f"{path} {error}"
        if head.digest != base.digest:
            return f"{path} has the digest {head.digest}, its recipes were made over {base.digest}"
    if is_url(head.location):
        return None  # their size is compared when the run starts
    folder = Path(head.location or path.parent)
    files = {folder / shard.name: shard.size_bytes for shard in head.shards}
    files |= {path.parent / shard.table.name: shard.table.size_bytes for shard in head.shards if shard.table}
    return next(filter(None, map(_file_fault, files, files.values())), None)


def _file_fault(path: Path, size_bytes: int) -> str | None:
    """Return what is wrong with the file `path`, None if it is there with `size_bytes`."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error})"
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is not a regular file"
    if status.st_size != size_bytes:
        return f"{path} has {status.st_size} bytes instead of {size_bytes}"
    return None


def _split(config: Config, field: str) -> str:
    return config.data.splits[field.removeprefix("data.")]


def _head_problems(config: Config, field: str, head: Head) -> Iterator[Problem]:
    model, split = config.model, _split(config, field)
    channels, stored = head.num_channels, config.data.decode_size or head.image_size
    if stored is None:
        fix = f"set --data.decode-size {size_option(model.image_size)}"
        yield Problem("data.decode_size", 0, f"images of {split!r} have different sizes", fix)
        return
    own = [*sides(stored)]
    shape = " x ".join(map(str, (channels, *own)))
    if channels != model.in_channels:
        fix = f"set --model.in-channels {channels}, or choose another data set"
        yield Problem(
            "model.in_channels", model.in_channels, f"images of {split!r} are {shape} (C x H x W)", fix
        )
    crop = config.data.least_size
    name, size = ("data.crop", crop) if crop else ("model.image_size", model.image_size)
    height, width = sides(size)
    small, other = own[0] < height or own[1] < width, own != [height, width]
    if small if crop else other and not config.data.resize:
        fix = f"set --model.image-size {size_option(stored)} or --data.resize {size_option(size)}"
        fix = f"set --data.crop {min(own)} or less" if crop else fix
        yield Problem(name, size, f"images of {split!r} are {shape} (C x H x W)", fix)
    if len(head.classes) > model.num_classes:
        rule = f"{split!r} has {len(head.classes)} classes"
        yield Problem(
            "model.num_classes", model.num_classes, rule, f"set --model.num-classes {len(head.classes)}"
        )
    if head.num_labels > model.num_labels:
        rule = f"images of {split!r} have up to {head.num_labels} labels"
        yield Problem("model.num_labels", model.num_labels, rule, f"set --model.num-labels {head.num_labels}")
    batch = config.train.global_batch_size
    if field == "data.train_split" and batch > head.num_samples:
        rule = f"is more than the {head.num_samples:,} images of {split!r}"
        yield Problem(
            "train.global_batch_size",
            batch,
            rule,
            f"set --train.global-batch-size {head.num_samples} or less",
        )
    elif field == "data.train_split" and (problem := schedule_problem(config, head.num_samples)):
        yield problem
