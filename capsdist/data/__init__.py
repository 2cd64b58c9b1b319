"""Packed data sets: shards, index, exact order and position, batches, transforms. Start with README.md."""

from __future__ import annotations

from capsdist.data.checks import check_split, verify_split
from capsdist.data.index import Index
from capsdist.data.pipeline import Batch, TrainStream, eval_batches
from capsdist.data.position import Position
from capsdist.data.shards import write_split
from capsdist.data.split import Split, read_index
from capsdist.data.transforms import Transform

__all__ = [
    "Batch",
    "Index",
    "Position",
    "Split",
    "TrainStream",
    "Transform",
    "check_split",
    "eval_batches",
    "read_index",
    "verify_split",
    "write_split",
]
