"""Resident sets: a whole split is read once, each checksum compared, and stays in memory.

Where it stays: in the memory of the training device (on a CPU, of the process), or in shared memory, one copy
for all processes of a user on a node. Batches are equal to those that are read from files.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from capsdist.data.encoded.split import EncodedSplit
from capsdist.data.format.packed import IMAGE
from capsdist.data.format.source import Source, open_split
from capsdist.data.gather import Close, FromFiles, FromFrames, FromTensors, Gather, Residence
from capsdist.data.recipes.on_device import DeviceFrames
from capsdist.data.recipes.source import Recipes, check_pairs
from capsdist.storage.memory import free_memory
from capsdist.storage.shared_memory import NoRoomError, SharedMemory, free_shared_memory, remove_unused

__all__ = ["Choice", "open_gather"]

Choice = Literal["auto", "never", "device", "shared"]
"""Values of `data.resident`."""

_SHARE = 4  # "auto" takes at most this part of the free memory
_READ_BYTES = 8 << 20  # read at once
_AHEAD = 4  # reads that are fetched before they are needed, where the split is far


def open_gather(
    folder: str | os.PathLike[str],
    source: Source,
    *,
    resident: Choice,
    device: torch.device,
    workers_on_node: int = 1,
    pin: bool = False,
    parts: bool = False,
) -> Gather:
    """Return what makes batches of the split in `folder`, which `source` reads.

    parts: give also the image of each label alone; only recipes have it.
    resident: "device" or "shared" says where the set is kept. "auto" keeps a set of blocks or recipes that
    takes at most a quarter of the free memory: on a GPU there; on a CPU in this process, or shared where
    `workers_on_node` processes train. Encoded images, which have to be decoded first, "auto" never keeps.

    Raises:
        NoRoomError: the set does not fit where `resident` wants it. DataError: it cannot be read, or it has
            no parts.
    """
    if parts:
        check_pairs(source.index, folder)
    remove_unused()
    where = resident if resident != "auto" else _chosen(source, device, workers_on_node)
    if where == "never":
        return FromFiles(source, pin=pin, parts=parts)
    kept: _Kept = _Recipes(folder, source, parts) if isinstance(source, Recipes) else _Images(folder, source)
    check = _Room(str(folder), kept.num_bytes, where, device, _SHARE if resident == "auto" else 1)
    try:
        if where == "shared":
            return _shared(kept, pin, check)
        check()
    except NoRoomError:
        if resident != "auto":
            raise
        return FromFiles(source, pin=pin, parts=parts)
    if device.type != "cpu":
        return kept.on(device)
    kept.fill(memory := np.zeros(kept.num_bytes, np.uint8))
    return kept.gather(memory, pin=pin, resident="device", close=lambda: None)


def _chosen(source: Source, device: torch.device, workers_on_node: int) -> Residence:
    if isinstance(source, EncodedSplit):
        return "never"
    return "shared" if device.type == "cpu" and workers_on_node > 1 else "device"


@dataclass(frozen=True)
class _Room:
    """Refuses the set at `place`, of `num_bytes`, if it takes more than 1 / `share` of the free memory."""

    place: str
    num_bytes: int
    where: Residence
    device: torch.device
    share: int

    def __call__(self) -> None:
        if self.where == "device" and self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        else:
            free = free_memory()
            if self.where == "shared":
                free = min(free, free_shared_memory())
        if self.num_bytes * self.share > free:
            raise NoRoomError(
                f"{self.place}: data.resident={self.where} takes {self.num_bytes:,} bytes, {free:,} are free "
                "there; set --data.resident never"
            )


class _Kept(Protocol):
    """A set that is kept in `num_bytes` of memory; `name` tells which one, and what is in its bytes."""

    @property
    def num_bytes(self) -> int: ...

    @property
    def name(self) -> str: ...

    def fill(self, memory: np.ndarray) -> None:
        """Read the set into `memory`, uint8 [num_bytes], all zeros."""

    def gather(self, memory: np.ndarray, *, pin: bool, resident: Residence, close: Close) -> Gather:
        """Return what gathers on the host, out of `memory` that is filled."""
        ...

    def on(self, device: torch.device) -> Gather:
        """Read the set into the memory of a GPU, and return what gathers there."""
        ...


def _shared(kept: _Kept, pin: bool, check_room: Callable[[], None]) -> Gather:
    key = hashlib.sha256(kept.name.encode()).hexdigest()[:32]
    shared = SharedMemory(
        key, kept.num_bytes, lambda memory: kept.fill(np.frombuffer(memory, np.uint8)), check_room=check_room
    )
    memory = np.frombuffer(shared.memory, np.uint8)
    return kept.gather(memory, pin=pin, resident="shared", close=shared.close)


class _Images:
    """The images that `source` returns of the split in `folder`: all labels, then all images."""

    def __init__(self, folder: str | os.PathLike[str], source: Source) -> None:
        index = source.index
        self._folder, self._index, self._label = folder, index, index.field[index.label_name]
        self._shape = (index.num_samples, *index.image_shape)
        self._label_shape = (index.num_samples, *self._label.shape)
        self._label_bytes = 8 * math.prod(self._label_shape)
        self.num_bytes = self._label_bytes + math.prod(self._shape)
        self.name = f"images {index.digest} {index.image_shape}"

    def fill(self, memory: np.ndarray) -> None:
        self._read(*self._views(memory))

    def gather(self, memory: np.ndarray, *, pin: bool, resident: Residence, close: Close) -> Gather:
        return FromTensors(*self._views(memory), pin=pin, resident=resident, close=close)

    def on(self, device: torch.device) -> Gather:
        images = torch.empty(self._shape, dtype=torch.uint8, device=device)
        labels = torch.empty(self._label_shape, dtype=torch.int64)
        self._read(images, labels)
        return FromTensors(images, labels.to(device), pin=device.type == "cuda", resident="device")

    def _views(self, memory: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return images and labels that lie in `memory`."""
        size = self._label_bytes
        images = torch.from_numpy(memory[size:]).view(self._shape)
        return images, torch.from_numpy(memory[:size].view(np.int64)).view(self._label_shape)

    def _read(self, images: Tensor, labels: Tensor) -> None:
        """Read the set into `images`, on any device, and `labels`, on the CPU."""
        source, index = open_split(self._folder, size=self._index.image_shape[1:]), self._index
        at_once = max(1, _READ_BYTES // index.image_bytes)
        for start in range(0, index.num_samples, at_once):
            source.prefetch(np.arange(start, min(start + _AHEAD * at_once, index.num_samples)))
            part = slice(start, min(start + at_once, index.num_samples))
            target = images[part]
            found = target if target.device.type == "cpu" else torch.empty_like(target, device="cpu")
            out = {IMAGE: found.numpy(), self._label.name: labels[part].numpy()}
            source.gather_into(np.arange(part.start, part.stop), out)
            if found is not target:
                target.copy_(found)


class _Recipes:
    """The base split of the recipes in `folder`, as `source` holds it; parts: see `open_gather`."""

    def __init__(self, folder: str | os.PathLike[str], source: Recipes, parts: bool = False) -> None:
        self._folder, self._source, self.num_bytes = folder, source, source.held_bytes
        self._parts = parts
        self.name = f"recipes {source.index.digest}"

    def fill(self, memory: np.ndarray) -> None:
        self._source.fill(memory)

    def gather(self, memory: np.ndarray, *, pin: bool, resident: Residence, close: Close) -> Gather:
        self._source.hold(memory)
        return FromFiles(self._source, pin=pin, resident=resident, close=close, parts=self._parts)

    def on(self, device: torch.device) -> Gather:
        frames, labels, pairs = Recipes(self._folder).held()  # not of `_source`, which stays
        return FromFrames(
            DeviceFrames(frames, device),
            torch.from_numpy(labels).to(device),
            pairs,
            pin=device.type == "cuda",
            parts=self._parts,
        )
