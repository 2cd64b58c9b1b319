"""Packed data sets: shards, index, exact order and position, batches, transforms. Start with README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsdist.lazy import load_on_use

if TYPE_CHECKING:
    from capsdist.data.batch import Batch
    from capsdist.data.format.checks import check_split, verify_split
    from capsdist.data.format.index import Index
    from capsdist.data.format.position import Position
    from capsdist.data.format.shards import write_split
    from capsdist.data.format.split import Split, read_index
    from capsdist.data.pipeline import TrainStream, eval_batches
    from capsdist.data.transforms import Mixup, Transform

__all__ = [
    "Batch", "Index", "Mixup", "Position", "Split", "TrainStream", "Transform", "check_split",
    "eval_batches", "read_index", "verify_split", "write_split",
]  # fmt: skip

# Names load on first use: an index is read without torch.
__getattr__ = load_on_use(
    __name__,
    {
        "Batch": ".batch",
        "Index": ".format.index",
        "Mixup": ".transforms",
        "Position": ".format.position",
        "Split": ".format.split",
        "TrainStream": ".pipeline",
        "Transform": ".transforms",
        "check_split": ".format.checks",
        "eval_batches": ".pipeline",
        "read_index": ".format.split",
        "verify_split": ".format.checks",
        "write_split": ".format.shards",
    },
)
