"""Tar files as other people make them: KEY.png and KEY.cls, beside members that must never be looked into."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def image_file(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Encode pixels, uint8 [H, W, C] or [H, W]."""
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(stream, kind)
    return stream.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write members in this order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample_of(key: str, pixels: np.ndarray, label: int, *, as_json: bool = False) -> Mapping[str, bytes]:
    """The members of one sample."""
    text = json.dumps({"label": label}) if as_json else str(label)
    return {f"{key}.png": image_file(pixels), f"{key}.{'json' if as_json else 'cls'}": text.encode()}


def write_tars(
    folder: Path, num: int, *, tars: int = 3, shape: tuple[int, int, int] = (9, 9, 1), classes: int = 3
) -> tuple[str, np.ndarray, np.ndarray]:
    """Write `num` samples into files 0.tar, 1.tar, ...; return their URL, pixels and labels.

    Every image is told from the others by its first pixel. Every second label is JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(num)
    images = rng.integers(0, 60, (num, *shape), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(num)
    labels = np.arange(num) % classes
    for image, label in zip(images[..., 0], labels, strict=True):
        image[2 + 2 * label : 4 + 2 * label, 2:8] |= 0xC0
    for tar in range(tars):
        members = [
            member
            for number in range(tar, num, tars)
            for member in sample_of(
                f"k/{number:04d}", images[number], int(labels[number]), as_json=number % 2 == 1
            ).items()
        ]
        write_tar(folder / f"{tar}.tar", members)
    return f"{folder}/{{0..{tars - 1}}}.tar", images, labels
