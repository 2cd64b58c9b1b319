"""Compressed blocks: unpacked only to the size that the index gives them."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from capsdist.data.format.blocks import npy_bytes, packed_member, read_block
from capsdist.data.format.fields import Field
from capsdist.data.format.index import Index
from capsdist.data.format.layout import Block, spans
from capsdist.errors import DataError

FIELDS = (Field("image", "|u1", (1, 2, 3)), Field("label", "<i8"))
INDEX = Index(FIELDS, ("a", "b"), 5, (), compression="zstd")


def read(members: list[bytes]) -> dict[str, np.ndarray]:
    """Read a block of 5 samples with these members."""
    [span] = spans([Block(5, stored_bytes=tuple(map(len, members)))], FIELDS)
    content = np.zeros(span.end, np.uint8)
    for start, member in zip(span.starts, members, strict=True):
        content[start : start + len(member)] = np.frombuffer(member, np.uint8)
    return read_block(content, INDEX, span, 5, "shard-00000.tar")


def test_a_block_comes_back():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 1, 2, 3), dtype=np.uint8), rng.integers(0, 2, 5)
    found = read([packed_member(images, INDEX), packed_member(labels, INDEX)])
    assert np.array_equal(found["image"], images)
    assert np.array_equal(found["label"], labels)


def streamed(content: bytes) -> bytes:
    """A frame that does not state its size."""
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(content) + packer.flush()


def renamed(content: bytes, stated: int) -> bytes:
    """A frame whose header states that it has `stated` bytes."""
    frame = zstandard.ZstdCompressor(write_content_size=True).compress(content)
    places = [
        place
        for place in range(4, 16)
        if int.from_bytes(frame[place : place + 2], "little") + 256 == len(content)
    ]
    return frame[: places[0]] + (stated - 256).to_bytes(2, "little") + frame[places[0] + 2 :]


GOOD = npy_bytes(np.zeros((5, 1, 2, 3), np.uint8))
BOMBS = {
    "more bytes": zstandard.compress(bytes(100 << 20)),
    "no stated size": streamed(GOOD),
    "more than stated": renamed(GOOD + bytes(99), len(GOOD)),
    "less than stated": renamed(GOOD[:-9], len(GOOD)),
    "another array": zstandard.compress(npy_bytes(np.zeros((5, 1, 3, 2), np.uint8))),
    "pickled objects": zstandard.compress(GOOD.replace(b"|u1", b"|O ")),
    "no frame": b"\x28\xb5\x2f\xfd nothing",
    "one byte": b"(",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_member_that_is_another_array_is_refused(name):
    labels = packed_member(np.zeros(5, np.int64), INDEX)
    message = r"shard-00000\.tar: holds no uint8 array of shape \[5, 1, 2, 3\], as its index says; pack"
    with pytest.raises(DataError, match=message):
        read([BOMBS[name], labels])
