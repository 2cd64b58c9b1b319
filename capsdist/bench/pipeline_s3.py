"""Benchmark reading of a split in S3 with a cold cache, beside a plain download and webdataset there."""

from __future__ import annotations

import contextlib
import itertools
import os
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore.session
import fsspec
import numpy as np

from capsdist.bench.pipeline_local import CLASSES, consume
from capsdist.bench.pipeline_webdataset import open_s3_with_fsspec, plain_batches, write_each_sample
from capsdist.bench.s3_server import running_server
from capsdist.bench.timer import time_side_by_side
from capsdist.data import TrainStream, write_split
from capsdist.storage import Place
from capsdist.storage.temporary import temporary_folder

__all__ = ["s3_figures", "s3_place"]

_NUM_DOWNLOADS = 4  # at a time, as the reader has
_COPIES = 4
_BUCKET = "capsdist-bench"
_WEBDATASET_IMAGES = 5_000


@contextlib.contextmanager
def s3_place(url: str) -> Iterator[str]:
    """Yield `url`, or without one a place on a new SeaweedFS server, to which the environment then leads.

    Raises:
        DataError: the server is not installed or does not start.
    """
    if url:
        yield url
        return
    with (
        temporary_folder() as folder,
        running_server(folder / "server") as server,
        _environment(server.environment()),
    ):
        server.client().create_bucket(Bucket=_BUCKET)
        yield f"s3://{_BUCKET}/pipeline"


def s3_figures(
    images: np.ndarray, labels: np.ndarray, *, url: str, global_batch_size: int, repeats: int
) -> dict[str, float]:
    """Return the rate of one process that reads `images` [n,1,28,28] from below `url`, an s3:// prefix.

    They are repeated four times, so that there are more shards than are read at once. The environment has the
    credentials. Every epoch is the first of a new stream with an empty cache.
    `s3_share_of_raw_download`: of the rate of downloading the same objects by botocore, 4 at a time, and
    dropping them; `s3_share_of_s3fs_download`: by s3fs, which the reader uses, all at once;
    `s3_speedup_vs_webdataset`: over webdataset with one PNG member an image, at most 5,000 of them, opened by
    fsspec. What was written is removed.
    """
    place = f"{url.rstrip('/')}/{uuid.uuid4().hex[:12]}"
    few, number = slice(_WEBDATASET_IMAGES), itertools.count()
    many = np.resize(np.arange(len(images)), _COPIES * len(images))
    with temporary_folder() as folder, _removed(place) as client:
        index = write_split(f"{place}/split", images[many], labels[many], classes=CLASSES)
        write_each_sample(folder / "plain.tar", images[few], labels[few], suffix="png")
        _upload(client, folder / "plain.tar", f"{place}/plain.tar")
        open_s3_with_fsspec()
        shards = [f"{place}/split/{shard.name}" for shard in index.shards]
        timings = time_side_by_side(
            {
                "ours": lambda: _cold_epoch(f"{place}/split", folder / str(next(number)), global_batch_size),
                "raw": lambda: _download(client, shards),
                "s3fs": lambda: fsspec.filesystem("s3").cat(shards),
                "webdataset": lambda: consume(plain_batches([f"{place}/plain.tar"], global_batch_size)),
            },
            budget_s=0,
            min_rounds=repeats,
        )
    seconds = {name: timing.median_s for name, timing in timings.items()}
    rate = len(many) / seconds["ours"]
    return {
        "s3_images_per_s": rate,
        "s3_raw_download_mb_per_s": sum(shard.size_bytes for shard in index.shards) / seconds["raw"] / 1e6,
        "s3_share_of_raw_download": seconds["raw"] / seconds["ours"],
        "s3_share_of_s3fs_download": seconds["s3fs"] / seconds["ours"],
        "s3_speedup_vs_webdataset": rate * seconds["webdataset"] / len(images[few]),
    }


def _cold_epoch(split: str, cache: Path, global_batch_size: int) -> None:
    with _environment({"CAPSDIST_CACHE": str(cache)}):
        consume(TrainStream(split, seed=0, global_batch_size=global_batch_size).epoch(0))


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables in the context."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _download(client: Any, urls: list[str]) -> None:
    def fetch(url: str) -> int:
        bucket, key = _bucket_and_key(url)
        return len(client.get_object(Bucket=bucket, Key=key)["Body"].read())

    with ThreadPoolExecutor(_NUM_DOWNLOADS) as pool:
        list(pool.map(fetch, urls))


@contextlib.contextmanager
def _removed(place: str) -> Iterator[Any]:
    """Yield a client of the server, a thread-safe one; remove what is below `place` at the end."""
    client = botocore.session.get_session().create_client("s3")
    try:
        yield client
    finally:
        bucket, prefix = _bucket_and_key(place)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=entry["Key"])


def _upload(client: Any, file: Path, url: str) -> None:
    bucket, key = _bucket_and_key(url)
    client.put_object(Bucket=bucket, Key=key, Body=file.read_bytes())


def _bucket_and_key(url: str) -> tuple[str, str]:
    found = Place.parse(url)
    return found.bucket, found.prefix
