"""Files of safetensors, written and read a piece at a time: no tensor has to be in memory as a whole.

The format (https://github.com/huggingface/safetensors): 8 bytes with the length of a header, the header, a
JSON object of dtype, shape and place of each tensor, and their bytes without gaps. What is written here is,
byte for byte, what `safetensors.torch.save_file` writes. Files are not mapped: one that is cut or overwritten
while it is read is an error, not a signal.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from torch import Tensor

from capsdist.errors import CheckpointError, DocumentError
from capsdist.models.parallel.pieces import PIECE
from capsdist.storage.documents import MAX_BYTES, open_file, parse_document, parse_json
from capsdist.train.manifest import FileEntry
from capsdist.train.state import FILE_TYPES, Pieces, Stored, in_order, pieces_of

__all__ = ["open_tensors", "write_tensors"]

_DTYPES = {name: dtype for dtype, name in FILE_TYPES.items()}
_TYPES = "float32 or float64, buffers also int64, int32 or bool"
_CHUNK_BYTES = 1 << 22


class _Place(BaseModel):
    """What a header says of a tensor. data_offsets: in bytes, from the end of the header."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]


def write_tensors(path: Path, tensors: Mapping[str, Stored]) -> FileEntry:
    """Write `tensors` into the file `path`, flush it to disk, and return its size and digest.

    Of the state of an engine it is collective: other ranks call `EngineState.send`.

    Raises:
        OSError: it cannot be written. CheckpointError: a tensor is of another type than `FILE_TYPES`.
    """
    header: dict[str, object] = {}
    end = 0
    for name, tensor in in_order(tensors):
        if tensor.dtype not in FILE_TYPES:
            raise CheckpointError(f"{name!r} is of type {tensor.dtype}; checkpoints hold {_TYPES}")
        start, end = end, end + tensor.shape.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": FILE_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, size = xxhash.xxh3_128(), 0
    with path.open("wb") as file:

        def write(content: bytes | memoryview) -> None:
            nonlocal size
            digest.update(content)
            file.write(content)
            size += len(content)

        write(len(text).to_bytes(8, "little") + text)
        for _, tensor in in_order(tensors):
            for piece in pieces_of(tensor):
                write(_bytes(piece))
        file.flush()
        os.fsync(file.fileno())
    assert size == 8 + len(text) + end, "other numbers than the shapes say"
    return FileEntry(bytes=size, xxh3_128=digest.hexdigest())


def open_tensors(path: Path, expected: FileEntry) -> dict[str, Pieces]:
    """Compare the file `path` with its digest and return its tensors, which are read when they are used.

    Reading raises CheckpointError if the file has changed by then.

    Raises:
        FileNotFoundError: there is none.
        DocumentError: it is not `expected`, or holds what no checkpoint holds.
    """
    with open_file(path) as file:
        found = _entry(file, os.fstat(file.fileno()).st_size, expected)
        if found != expected:
            raise DocumentError(f"has {found.model_dump()}, its manifest says {expected.model_dump()}")
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_BYTES, max(expected.bytes - 8, 0)):
            raise DocumentError(f"cannot be read (a header of {length} bytes)")
        places = _parse(file.read(length), expected.bytes - 8 - length)
        seen = _signature(file)
    tensors = {}
    for name, place in places.items():
        shape, dtype = torch.Size(place.shape), _DTYPES[place.dtype]
        start = 8 + length + place.data_offsets[0]
        tensors[name] = Pieces(shape, dtype, partial(_read, path, seen, start, shape.numel(), dtype))
    return tensors


def _entry(file: BinaryIO, size: int, expected: FileEntry) -> FileEntry:
    """Return size and digest of `file`; of one of another size than expected no digest."""
    if size != expected.bytes:
        raise DocumentError(f"has {size} bytes, its manifest says {expected.bytes}")
    digest, size = xxhash.xxh3_128(), 0
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return FileEntry(bytes=size, xxh3_128=digest.hexdigest())


def _parse(text: bytes, num_bytes: int) -> dict[str, _Place]:
    """Return what a header says of each tensor, in the order of the file, of which `num_bytes` follow it.

    Raises:
        DocumentError: it is damaged, leaves gaps, or has tensors of other types.
    """
    values = parse_json(text)
    if not isinstance(values, dict):
        raise DocumentError("cannot be read (its header is no object)")
    values.pop("__metadata__", None)
    places = {name: parse_document(json.dumps(value).encode(), _Place) for name, value in values.items()}
    places = dict(sorted(places.items(), key=lambda item: item[1].data_offsets))
    end = 0
    for name, place in places.items():
        if place.dtype not in _DTYPES:
            raise DocumentError(f"holds {name!r} of type {place.dtype}, not {_TYPES}")
        start, end = end, end + math.prod(place.shape) * _DTYPES[place.dtype].itemsize
        if place.data_offsets != [start, end]:
            raise DocumentError(f"cannot be read ({name!r} is not where its header says)")
    if end != num_bytes:
        raise DocumentError(f"cannot be read ({num_bytes} bytes of tensors, its header says {end})")
    return places


def _read(path: Path, seen: tuple[int, ...], start: int, number: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the `number` numbers of type `dtype` that begin at byte `start` of the file `path`.

    Raises:
        CheckpointError: it is not the file that was `seen`.
    """
    try:
        with open_file(path) as file:
            file.seek(start)
            while number:
                piece = torch.empty(min(number, PIECE), dtype=dtype)
                if file.readinto(_bytes(piece)) != piece.nbytes:  # pyright: ignore[reportAttributeAccessIssue]
                    break
                number -= len(piece)
                yield piece
            if not number and _signature(file) == seen:
                return
    except (FileNotFoundError, DocumentError, OSError):
        pass
    raise CheckpointError(f"{path} was changed while it was read; start again")


def _signature(file: BinaryIO) -> tuple[int, ...]:
    """Return by what a file that was overwritten or replaced differs."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _bytes(piece: Tensor) -> memoryview:
    """Return the bytes of a flat tensor on the CPU, in its own memory."""
    return memoryview(piece.contiguous().numpy()).cast("B")  # pyright: ignore[reportArgumentType]
