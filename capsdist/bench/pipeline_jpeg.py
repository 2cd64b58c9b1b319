"""Benchmark reading of splits of JPEG files beside decoders alone: same files, threads and output size."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from capsdist.bench.pipeline_images import tar_contents
from capsdist.bench.pipeline_local import consume
from capsdist.bench.timer import time_side_by_side
from capsdist.data import TrainStream
from capsdist.data.encoded.register import index_tars
from capsdist.storage.temporary import temporary_folder

__all__ = ["jpeg_figures"]

_BATCH = 128
_LEAST = 300  # images that are read at a time: fewer are read several times

_Decode = Callable[[bytes], np.ndarray]


def jpeg_figures(name: str, tar: Path, size: tuple[int, int], *, repeats: int) -> dict[str, float]:
    """Return `NAME_images_per_s` of our reader over the JPEG files in `tar`, and `NAME_share_of_decoder`.

    The share is of the rate of the fastest of simplejpeg, Pillow and, where it is installed, PyTurboJPEG,
    decoding the same files out of memory, in as many threads, into one array uint8 [n,H,W,3] of `size`.
    Files of another size are scaled as `decode_into` does: decoded to at least twice `size` where the
    library can, then by Pillow's triangular filter. Our reader shuffles, reads the tar file, compares
    checksums, and returns batches of 128 as training takes them.
    """
    num_threads, epochs = len(os.sched_getaffinity(0)), itertools.count()
    with temporary_folder() as folder, ThreadPoolExecutor(num_threads) as pool:
        (folder / "tars").mkdir()
        shutil.copy(tar, folder / "tars")
        index_tars(str(folder / "tars"), str(folder / "split"), warn=lambda _: None)
        stream = TrainStream(folder / "split", seed=0, global_batch_size=_BATCH, decode_size=size)
        passes = -(-_LEAST // stream.index.num_samples)
        contents = tar_contents(tar) * passes
        candidates: dict[str, Callable[[], object]] = {
            "ours": lambda: [consume(stream.epoch(next(epochs))) for _ in range(passes)]
        }
        for decoder, decode in _decoders(size).items():
            candidates[decoder] = partial(_decode_all, pool, num_threads, contents, decode, size)
        timings = time_side_by_side(candidates, budget_s=0, min_rounds=repeats)
    rates = {candidate: len(contents) / timing.median_s for candidate, timing in timings.items()}
    ours = rates.pop("ours")
    alone = {f"{name}_{decoder}_images_per_s": rate for decoder, rate in rates.items()}
    return {
        f"{name}_images_per_s": ours,
        **alone,
        f"{name}_share_of_decoder": ours / max(rates.values()),
    }


def _decode_all(
    pool: ThreadPoolExecutor,
    num_threads: int,
    contents: Sequence[bytes],
    decode: _Decode,
    size: tuple[int, int],
) -> None:
    """Decode `contents` in `num_threads` threads, a contiguous part each."""
    images = np.empty((len(contents), *size, 3), np.uint8)

    def work(thread: int) -> None:
        part = range(thread * len(contents) // num_threads, (thread + 1) * len(contents) // num_threads)
        for number in part:
            images[number] = decode(contents[number])

    list(pool.map(work, range(num_threads)))


def _decoders(size: tuple[int, int]) -> dict[str, _Decode]:
    """Return the decoders that are installed, as functions that return an image uint8 [H,W,3] of `size`."""
    height, width = size

    def with_simplejpeg(content: bytes) -> np.ndarray:
        pixels = simplejpeg.decode_jpeg(content, min_height=2 * height, min_width=2 * width)
        return _fitted(Image.fromarray(pixels), size) if pixels.shape[:2] != size else pixels

    def with_pillow(content: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(content))
        image.draft("RGB", (2 * width, 2 * height))
        return _fitted(image.convert("RGB"), size)

    found: dict[str, _Decode] = {"simplejpeg": with_simplejpeg, "pillow": with_pillow}
    with suppress(ImportError, OSError, RuntimeError):  # without its library of C it raises RuntimeError
        library = import_module("turbojpeg")
        turbo = library.TurboJPEG()

        def with_turbojpeg(content: bytes) -> np.ndarray:
            pixels = turbo.decode(content, pixel_format=library.TJPF_RGB)
            return _fitted(Image.fromarray(pixels), size) if pixels.shape[:2] != size else pixels

        found["turbojpeg"] = with_turbojpeg
    return found


def _fitted(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return `image` scaled until it covers `size`, and cut alike on both sides: uint8 [H,W,3]."""
    height, width = size
    if image.size != (width, height):
        scale = min(image.height / height, image.width / width)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        right, bottom = min(left + width * scale, image.width), min(top + height * scale, image.height)
        box = (max(left, 0), max(top, 0), right, bottom)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image)
