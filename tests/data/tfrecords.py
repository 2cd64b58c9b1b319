"""Read the records of TFRecord files whose records are `tf.train.Example`s, without TensorFlow.

A record is its length (uint64), a checksum of that, the data, and a checksum of these; the checksums are not
compared. An Example is a protobuf message: field 1 a map from names to lists of bytes, floats or integers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path


def examples(path: Path) -> Iterator[dict[str, bytes | int]]:
    """The examples of a file; of each feature the first value."""
    content, start = path.read_bytes(), 0
    while start < len(content):
        (size,) = struct.unpack_from("<Q", content, start)
        yield _example(content[start + 12 : start + 12 + size])
        start += size + 16


def _example(message: bytes) -> dict[str, bytes | int]:
    found: dict[str, bytes | int] = {}
    [(_, features)] = _fields(message)
    for _, entry in _fields(features):
        parts = dict(_fields(entry))
        [(kind, values)] = _fields(parts[2])
        [(_, value)] = _fields(values)
        # lists of bytes are field 1, of integers field 3, whose values are packed
        found[parts[1].decode()] = value if kind == 1 else _varint(value, 0)[0]
    return found


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of the fields of a message, all of which are of the type with a length."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        assert key & 7 == 2, f"field {key >> 3} has type {key & 7}"
        size, place = _varint(message, place)
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
