"""Choose the checkpoint that an attempt continues from, for all ranks; a node fetches it once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ray.train
from ray.train.collective import barrier, broadcast_from_rank_zero

from capsdist.console import Log
from capsdist.runs.checkpoints import VerifiedCheckpoint, newest_verified
from capsdist.runs.files import RunFiles
from capsdist.runs.retention import checkpoint_name
from capsdist.storage.temporary import temporary_folder

__all__ = ["resume_from"]


@contextlib.contextmanager
def resume_from(files: RunFiles, log: Log) -> Iterator[VerifiedCheckpoint | None]:
    """Yield, on every rank of a worker group, the checkpoint to go on from, None to begin anew; collective.

    Rank 0 chooses. From object storage every node gets one copy, made by its first rank.
    """
    context = ray.train.get_context()
    rank = context.get_world_rank()
    with contextlib.ExitStack() as stack:
        chosen = stack.enter_context(newest_verified(files, log)) if rank == 0 else None
        chosen = broadcast_from_rank_zero(chosen)
        if chosen and files.local is None:
            if context.get_local_rank() == 0 and rank > 0:
                stack.enter_context(_copied(files, chosen))
            barrier()
        yield chosen


@contextlib.contextmanager
def _copied(files: RunFiles, chosen: VerifiedCheckpoint) -> Iterator[None]:
    """Have a copy of `chosen` under its path on this node, unless another node of this machine has it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(temporary_folder(at=chosen.folder))
        except FileExistsError:  # another node of this machine has it
            pass
        else:
            files.download(checkpoint_name(chosen.step), chosen.folder)
        yield
