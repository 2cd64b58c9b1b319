"""Benchmark reading and writing of local splits beside stock webdataset and a copy in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from capsdist.bench.pipeline_webdataset import plain_batches, same_shard_batches, write_each_sample
from capsdist.bench.timer import time_side_by_side
from capsdist.data import Index, TrainStream, write_split
from capsdist.data.format.fields import Field
from capsdist.data.format.index import Compression, Shard
from capsdist.data.format.order import Order
from capsdist.data.format.packed import IMAGE, LABEL
from capsdist.storage.temporary import temporary_folder

__all__ = ["CLASSES", "consume", "order_figures", "rate_figures", "stored_figures", "write_figures"]

CLASSES = tuple("0123456789")

_EPOCHS = 5  # of ours at a time: one takes 50 ms
_COPIES = 20
_WEBDATASET_IMAGES = 5_000  # its rate does not depend on their number
_IMAGENET = 1_281_167  # samples of ImageNet-1k


def rate_figures(
    images: np.ndarray, labels: np.ndarray, *, global_batch_size: int, repeats: int
) -> dict[str, float]:
    """Return the rates of one process that reads `images` [n,1,28,28], in turns with its baselines.

    `speedup_vs_webdataset`: over webdataset with one PNG member an image, at most 5,000 of them;
    `speedup_vs_webdataset_same_shards`: over webdataset that reads our shards of blocks. Both have a
    shuffled buffer of 8,192 samples, our window, and batches of the same size. `share_of_memcpy`: of the
    rate of `np.copyto` of the same images. `first_batch_after_resume_s`: from making a stream to its first
    batch in the middle of an epoch. Files are in the page cache.
    """
    epochs, few = itertools.count(), slice(_WEBDATASET_IMAGES)
    with temporary_folder() as folder:
        index = write_split(folder / "split", images, labels, classes=CLASSES)
        write_each_sample(folder / "plain.tar", images[few], labels[few], suffix="png")
        shards = [str(folder / "split" / shard.name) for shard in index.shards]
        stream = TrainStream(folder / "split", seed=0, global_batch_size=global_batch_size)
        copy = np.empty_like(images)
        timings = time_side_by_side(
            {
                "ours": lambda: [consume(stream.epoch(next(epochs))) for _ in range(_EPOCHS)],
                "memcpy": lambda: [np.copyto(copy, images) for _ in range(_COPIES)],
                "plain": lambda: consume(plain_batches([f"{folder}/plain.tar"], global_batch_size)),
                "same_shards": lambda: consume(same_shard_batches(shards, global_batch_size)),
                "resume": lambda: _first_batch(folder / "split", global_batch_size),
            },
            budget_s=0,
            min_rounds=repeats,
        )
    seconds = {name: timing.median_s for name, timing in timings.items()}
    rate = _EPOCHS * len(images) / seconds["ours"]
    return {
        "local_images_per_s": rate,
        "speedup_vs_webdataset": rate * seconds["plain"] / len(images[few]),
        "speedup_vs_webdataset_same_shards": rate * seconds["same_shards"] / len(images),
        "share_of_memcpy": rate * seconds["memcpy"] / _COPIES / len(images),
        "first_batch_after_resume_s": seconds["resume"],
    }


def write_figures(images: np.ndarray, labels: np.ndarray, *, repeats: int) -> dict[str, float]:
    """Return the rate of `write_split`, and its speed-up over webdataset's writer of one sample at a time.

    That writes raw pixels (.npy), which costs it less than PNG; at most 5,000 images.
    """
    few, number = slice(_WEBDATASET_IMAGES), itertools.count()
    with temporary_folder() as folder:
        timings = time_side_by_side(
            {
                "ours": lambda: write_split(folder / str(next(number)), images, labels, classes=CLASSES),
                "webdataset": lambda: write_each_sample(
                    folder / "each.tar", images[few], labels[few], suffix="npy"
                ),
            },
            budget_s=0,
            min_rounds=repeats,
        )
    ours = len(images) / timings["ours"].median_s
    return {
        "write_images_per_s": ours,
        "write_speedup_vs_webdataset": ours * timings["webdataset"].median_s / len(images[few]),
    }


def stored_figures(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the bytes an image of the whole folder of a split, raw and compressed with zstd."""
    figures = {}
    kinds: dict[str, Compression] = {"raw": "none", "zstd": "zstd"}
    with temporary_folder() as folder:
        for name, compression in kinds.items():
            write_split(folder / name, images, labels, classes=CLASSES, compression=compression)
            stored = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
            figures[f"bytes_per_image_{name}"] = stored / len(images)
    return figures


def order_figures(*, repeats: int) -> dict[str, float]:
    """Return the seconds that the order of a whole epoch of ImageNet's size takes: 1.28 million samples."""
    fields = (Field(IMAGE, "|u1", (3, 224, 224)), Field(LABEL, "<i8"))
    sizes = [min(8192, _IMAGENET - start) for start in range(0, _IMAGENET, 8192)]
    shard = Shard("shard-00000.tar", 1, 1, "", "", ())
    shards = tuple(replace(shard, num_samples=size) for size in sizes)
    index = Index(fields, ("0",), 1024, shards, digest="0" * 64)
    epochs = itertools.count()

    def order() -> None:
        made = Order(index, 0, 256, 8, 8192)
        made.places(next(epochs), 0, _IMAGENET)

    timings = time_side_by_side({"order": order}, budget_s=0, min_rounds=repeats)
    return {"order_1_28m_s": timings["order"].median_s}


def consume(batches: Iterable[object]) -> int:
    """Take all `batches` and drop them; return how many there were."""
    return sum(1 for _ in batches)


def _first_batch(folder: Path, global_batch_size: int) -> None:
    stream = TrainStream(folder, seed=0, global_batch_size=global_batch_size)
    batches = stream.epoch(1, start_step=stream.steps.inside(1) // 2)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
