"""Benchmark the input pipeline beside a plain permuted copy and stock webdataset on the same shards."""

from __future__ import annotations

import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import numpy as np
import xxhash
from PIL import Image
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

from capsdist.data import Split, TrainStream, check_split, write_split
from capsdist.data.web_stream import WebData, WebStream
from capsdist.storage.temporary import temporary_folder

__all__ = ["pipeline_figures"]


def pipeline_figures(*, num: int, global_batch_size: int, repeats: int) -> dict[str, float]:
    """Return the figures of one rank that reads `num` random images of MNIST's size from local shards.

    Medians of `repeats` epochs, each in an order not computed before; the shards are in the page cache.
    `share_of_gather_rate` is against a permuted copy out of one array in memory: the least a shuffle costs.
    Cost of the protection against files that change: `first_epoch_images_per_s` is of an epoch that reads
    every shard and compares its checksum (`images_per_s` is of later ones, which find them in memory);
    `read_s` and `checksum_s` are parts of it: reading all files, and hashing what was read.
    `unheld_images_per_s` is of a reader without memory for shards: a system call an image, and the file's
    times compared.
    `webdataset_reader_images_per_s` is of the second reader, `--data.reader webdataset`: over a foreign tar
    file of one PNG an image, decoded, of at most 5,000 images.
    """
    images = np.random.default_rng(0).integers(0, 256, (num, 1, 28, 28), dtype=np.uint8)
    shuffled, epochs = np.random.default_rng(1).permutation(num), itertools.count()
    with temporary_folder() as folder:
        index = write_split(folder, images, shuffled % 10, classes=list("0123456789"))
        stream = TrainStream(folder, seed=0, global_batch_size=global_batch_size)
        stock = WebDataset([f"{folder}/{shard.name}" for shard in index.shards], shardshuffle=False).decode()
        unheld = TrainStream(folder, seed=0, global_batch_size=global_batch_size)
        cast(Split, unheld.split).memory_bytes = 0
        files = [Path(folder, shard.name) for shard in index.shards]
        contents = [path.read_bytes() for path in files]
        figures = {
            "images_per_s": num / _seconds(lambda: list(map(id, stream.epoch(next(epochs)))), repeats),
            "first_epoch_images_per_s": num
            / _seconds(lambda: _first_epoch(folder, global_batch_size), repeats),
            "unheld_images_per_s": num / _seconds(lambda: list(map(id, unheld.epoch(next(epochs)))), 3),
            "read_s": _seconds(lambda: [path.read_bytes() for path in files], repeats),
            "checksum_s": _seconds(lambda: list(map(xxhash.xxh3_128_digest, contents)), repeats),
            "gather_images_per_s": num / _seconds(lambda: images[shuffled], repeats),
            "webdataset_blocks_images_per_s": num / _seconds(lambda: list(cast(Iterable, stock)), 3),
            "webdataset_reader_images_per_s": _foreign_rate(images[:5000], folder, global_batch_size),
            "check_s": _seconds(lambda: check_split(folder), repeats),
        }
    return figures | {"share_of_gather_rate": figures["images_per_s"] / figures["gather_images_per_s"]}


def _foreign_rate(images: np.ndarray, folder: Path, global_batch_size: int) -> float:
    """Return the images per second that `WebStream` reads from a tar file of `images` [n, 1, H, W]."""
    path = Path(folder, "foreign.tar")
    with TarWriter(str(path), encoder=False) as tar:
        for number, (pixels,) in enumerate(images):
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG")
            tar.write({"__key__": f"{number:06d}", "png": content.getvalue(), "cls": b"%d" % (number % 10)})
    height, width = images.shape[2:]
    data = WebData((str(path),), len(images), (1, height, width), tuple("0123456789"))
    stream = WebStream(data, seed=0, global_batch_size=global_batch_size)
    return len(images) / _seconds(lambda: list(map(id, stream.epoch(0))), 3)


def _first_epoch(folder: Path, global_batch_size: int) -> None:
    for _ in TrainStream(folder, seed=0, global_batch_size=global_batch_size).epoch(0):
        pass


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of `repeats` runs of `work`, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
