"""Stock webdataset as the baseline of the input pipeline: its reader, its per-sample writer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

__all__ = ["open_s3_with_fsspec", "plain_batches", "same_shard_batches", "write_each_sample"]

_WINDOW = 8192  # samples of the shuffled buffer: the window of `TrainStream`


def write_each_sample(path: Path, images: np.ndarray, labels: np.ndarray, *, suffix: str) -> None:
    """Write one member an image and one a label with webdataset's stock writer and encoders.

    images: uint8 [n,1,H,W]; suffix: png, or npy for raw pixels, the cheapest of its encoders.
    """
    with TarWriter(str(path)) as tar:
        for number, (image, label) in enumerate(zip(images[:, 0], labels.tolist(), strict=True)):
            tar.write({"__key__": f"{number:06d}", suffix: image, "cls": label})


def plain_batches(urls: list[str], batch_size: int) -> Iterable[Any]:
    """Return the batches of tar files of PNG members: shuffled buffer, stock decoder, stock batches."""
    return cast(
        Iterable[Any],
        WebDataset(urls, shardshuffle=len(urls))
        .shuffle(_WINDOW)
        .decode("l8")
        .to_tuple("png", "cls")
        .batched(batch_size),
    )


def same_shard_batches(urls: list[str], batch_size: int) -> Iterable[Any]:
    """Return the batches of our own shards of blocks: samples of them go through the same shuffled buffer."""
    blocks = WebDataset(urls, shardshuffle=len(urls)).decode().compose(_samples)
    return cast(Iterable[Any], blocks.shuffle(_WINDOW).batched(batch_size))


def _samples(blocks: Iterable[Mapping[str, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.integer]]:
    for block in blocks:
        yield from zip(block["image.npy"], block["label.npy"], strict=True)


def open_s3_with_fsspec() -> None:
    """Let webdataset open s3:// URLs by fsspec: it has no opener of its own for them."""
    # The package has a function of the same name as this module.
    schemes = import_module("webdataset.gopen").gopen_schemes
    schemes["s3"] = lambda url, *_, **__: fsspec.filesystem("s3").open(url, "rb")
