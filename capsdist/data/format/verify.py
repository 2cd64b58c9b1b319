"""Compare the members of a stored shard of blocks with its index, header by header."""

from __future__ import annotations

import io

import numpy as np
import xxhash

from capsdist.data.format.index import KEPT, Index
from capsdist.data.format.tar_headers import TarDamagedError, tar_headers
from capsdist.errors import DataError

__all__ = ["verify_members"]


def verify_members(content: np.ndarray, index: Index, number: int, path: str, remedy: str) -> None:
    """Compare the blocks and tar headers of shard `number`, whose file at `path` holds `content`, uint8.

    Raises:
        DataError: a checksum of a block or a header that does not agree with the index.
    """
    _check_blocks(content, index, number, path, remedy)
    if (found := _members(content)) != (expected := _expected_members(index, number)):
        wrong = next((pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]), None)
        text = f"has {wrong[0]} where its index says {wrong[1]}" if wrong else "has other members"
        raise DataError(f"{path}: {text}; {remedy or KEPT}")


def _check_blocks(content: np.ndarray, index: Index, number: int, path: str, remedy: str) -> None:
    """Check the checksums of single blocks, which are read where a shard is not in memory."""
    for place, (block, span) in enumerate(zip(index.shards[number].blocks, index.spans(number), strict=True)):
        found = xxhash.xxh3_128_hexdigest(content[span.begin : span.end].data)
        if block.xxh3_128 not in ("", found):
            raise DataError(
                f"{path}: block {place} has another checksum than its index says; {remedy or KEPT}"
            )


def _members(content: np.ndarray) -> list[str]:
    """Return kind and place of every member of a tar file, by its own headers; a block has one key."""
    found: list[str] = []
    keys: list[str] = []
    try:
        for member in tar_headers(io.BytesIO(content.tobytes())):
            key, _, kind = member.name.partition(".")
            name = kind if key.isdecimal() and member.isfile() else member.name
            keys.append(key)
            found.append(_shown(keys.index(key), name, member.size, member.offset_data))
    except TarDamagedError as error:
        found.append(f"no tar header ({error})")
    return found


def _expected_members(index: Index, number: int) -> list[str]:
    names = [index.member_name(field) for field in index.fields]
    return [
        _shown(block * len(names), name, size, start)
        for block, span in enumerate(index.spans(number))
        for name, size, start in zip(names, span.sizes, span.starts, strict=True)
    ]


def _shown(first: int, name: str, size: int, start: int) -> str:
    """Return a member in words; first: number of the first member with its key."""
    name = name if name.isprintable() else repr(name)
    return f"{name} with {size} bytes at byte {start} beside member {first}"
