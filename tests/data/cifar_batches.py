"""CIFAR-10 batches with random content, in the exact format of the original files."""

from __future__ import annotations

import hashlib
import struct

import numpy as np


def python2(value) -> bytes:
    """Pickle `value` with the opcodes that Python 2 and its numpy used for the original batches."""
    if isinstance(value, bytes):  # a str of Python 2: BINSTRING
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(python2, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(key) + python2(held) for key, held in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    kind = value.dtype.str[1:].encode()
    dtype = b"cnumpy\ndtype\n" + python2((kind, 0, 1)) + b"R" + b"(" + python2(3) + python2(b"|") + b"NNN"
    dtype += python2(-1) + python2(-1) + python2(0) + b"tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + python2((0,)) + python2(b"b") + b"tR"
    state = b"(" + python2(1) + python2(value.shape) + dtype + b"\x89" + python2(value.tobytes()) + b"tb"
    return made + state


def batch_bytes(num: int, seed: int, **changes) -> bytes:
    rng = np.random.default_rng(seed)
    batch = {
        b"batch_label": b"training batch 1 of 5",
        b"labels": rng.integers(0, 10, num).tolist(),
        b"data": rng.integers(0, 256, (num, 3072), dtype=np.uint8),
        b"filenames": [b"x.png"] * num,
    }
    return b"\x80\x02" + python2(batch | {key.encode(): value for key, value in changes.items()}) + b"."


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
