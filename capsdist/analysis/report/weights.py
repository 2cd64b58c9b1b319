"""Weights of a network for a page: whole numbers of 8 bits with one scale a row, in one string of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Entry", "packed", "restored", "row_axes"]

_LARGEST = 127
_ALIGNED = 4  # bytes: where a page reads numbers of 32 bits


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the bytes, from `offset` on.

    rows > 0: fp32 scales [rows], then int8 [rows, columns]. rows = 0: fp32 [columns].
    """

    name: str
    rows: int
    columns: int
    offset: int


def row_axes(name: str, tensor: Tensor) -> int:
    """Return how many first dimensions of a tensor number its rows, the output channels; 0: no row.

    A convolution [C', C, K, K] and a dense layer [M, N] have one. Class capsules [J, E, D, I] have J E rows.
    Biases, and log priors [I, J], are kept as they are.
    """
    if name.endswith("packed_weights"):
        return 2
    return 0 if tensor.dim() < 2 or name.endswith(("bias", "log_priors")) else 1


def packed(tensors: Mapping[str, Tensor]) -> tuple[list[Entry], bytes]:
    """Return the bytes of floating tensors of finite numbers, and where each lies in them.

    A row is rounded to multiples of its scale, its largest magnitude / 127.
    """
    entries: list[Entry] = []
    parts: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        axes = row_axes(name, tensor)
        values = tensor.detach().float().cpu()
        table = values.flatten(0, axes - 1).flatten(1) if axes else values.reshape(1, -1)
        rows = len(table) if axes else 0
        content = _rounded(table) if rows else table.numpy().astype("<f4").tobytes()
        content += bytes(-len(content) % _ALIGNED)
        entries.append(Entry(name, rows, table.shape[1], offset))
        parts.append(content)
        offset += len(content)
    return entries, b"".join(parts)


def _rounded(table: Tensor) -> bytes:
    """Return the scales and the whole numbers of a table [rows, columns]."""
    scales = table.abs().amax(1) / _LARGEST
    whole = (table / scales.masked_fill(scales == 0, 1)[:, None]).round().to(torch.int8)
    return scales.numpy().astype("<f4").tobytes() + whole.numpy().tobytes()


def restored(entries: list[Entry], content: bytes, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `packed` has kept of `tensors`, in their shapes: what the page computes with."""
    found: dict[str, Tensor] = {}
    for entry in entries:
        count = entry.rows or entry.columns
        numbers = np.frombuffer(content, "<f4", count, entry.offset)
        if entry.rows:
            size = entry.rows * entry.columns
            whole = np.frombuffer(content, np.int8, size, entry.offset + 4 * entry.rows)
            numbers = numbers[:, None] * whole.reshape(entry.rows, entry.columns).astype(np.float32)
        shape = tensors[entry.name].shape
        found[entry.name] = torch.from_numpy(np.array(numbers)).reshape(shape)
    return found
