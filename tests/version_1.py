"""Write a split of format version 1, as version 0.1 did: for tests of reading it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import xxhash

__all__ = ["KINDS", "write_version_1"]

KINDS = ("version 1", "none", "zstd")
"""What a split may be written as: by version 0.1, or with a compression."""


def write_version_1(
    folder: Path,
    images: np.ndarray,
    labels: np.ndarray,
    classes: list[str],
    *,
    block_size: int = 1024,
    shard_size: int = 8192,
) -> str:
    """Write images uint8 [N,C,H,W] and labels int64 [N] as a split; return its digest."""
    folder.mkdir(parents=True)
    shards, first_block = [], 0
    for start in range(0, len(images), shard_size):
        stop = min(start + shard_size, len(images))
        stream, blocks = io.BytesIO(), []
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for begin in range(start, stop, block_size):
                end = min(begin + block_size, stop)
                offsets = {}
                for kind, array in (("x", images[begin:end]), ("y", labels[begin:end].astype("<i8"))):
                    content = _npy(array)
                    member = tarfile.TarInfo(f"{first_block:06d}.{kind}.npy")
                    member.size, member.mode, member.mtime = len(content), 0o444, 0
                    offsets[kind] = stream.tell() + 1024
                    tar.addfile(member, io.BytesIO(content))
                blocks.append(
                    {
                        "num_samples": end - begin,
                        "images_offset_bytes": offsets["x"],
                        "labels_offset_bytes": offsets["y"],
                    }
                )
                first_block += 1
        data = stream.getvalue()
        name = f"shard-{len(shards):05d}.tar"
        (folder / name).write_bytes(data)
        shards.append(
            {
                "name": name,
                "size_bytes": len(data),
                "num_samples": stop - start,
                "xxh3_128": xxhash.xxh3_128_hexdigest(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "blocks": blocks,
            }
        )
    document = {
        "format": "capsdist-blocks",
        "version": 1,
        "image_dtype": "|u1",
        "image_shape": list(images.shape[1:]),
        "label_dtype": "<i8",
        "classes": classes,
        "block_size": block_size,
        "num_samples": len(images),
        "shards": shards,
    }
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    (folder / "index.json").write_text(json.dumps({"digest": digest, **document}, indent=1) + "\n")
    return digest


def _npy(array: np.ndarray) -> bytes:
    """Return an .npy file whose array starts at byte 512."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    header = stream.getvalue()[10:].rstrip(b"\n ")
    return b"\x93NUMPY\x01\x00" + (502).to_bytes(2, "little") + header.ljust(501) + b"\n" + array.tobytes()
