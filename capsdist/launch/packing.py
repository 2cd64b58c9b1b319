"""Pack a data set in parallel: Ray tasks write whole shards, the driver publishes the index last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from capsdist.config import Config
from capsdist.console import log
from capsdist.data.encoded.index import EncodedShard
from capsdist.data.encoded.write import Run, ShardJob, write_shard
from capsdist.data.format.folder import SplitFolder
from capsdist.data.sets.imagenet import IMAGENET_FILES
from capsdist.errors import CapsdistError, DataError
from capsdist.launch.failure import one_line, root_cause
from capsdist.launch.preflight import Machine, this_machine
from capsdist.launch.session import prepare_ray, ray_session
from capsdist.storage import is_remote

if TYPE_CHECKING:
    import ray

__all__ = ["IMAGENET", "shards_by_ray"]

_RETRIES = 3  # of a shard whose process or node dies


@contextlib.contextmanager
def shards_by_ray(workers: int = 0) -> Iterator[Run]:
    """Yield what `write_encoded` takes as `run`: it writes up to `workers` shards at once in Ray tasks.

    Starts a Ray on this machine, with `workers` cores, or joins the cluster that RAY_ADDRESS names; 0: one
    task for each core. The original files, and the folder that is packed unless it is on S3, must have the
    same path on all machines. Memory: about 300 MB a task.

    Raises:
        RunError: as `ray_session`; DataError: `workers` is negative.
    """
    if workers < 0:
        raise DataError(f"workers={workers}: give the number of processes, or 0 for one for each core")
    machine = Machine(workers or this_machine().cores, 0) if prepare_ray() else None
    with ray_session(Config(), machine, log=log) as resources:
        num = workers or max(1, int(resources.get("CPU", 1)))
        log(f"writing up to {num} shards at once with Ray")
        yield lambda place, jobs: _written(place, jobs, num)


def _written(place: SplitFolder, jobs: Iterator[ShardJob], workers: int) -> Iterator[EncodedShard | None]:
    """Yield what the tasks return, in the order of `jobs`."""
    import ray

    folder = str(place) if is_remote(str(place)) else os.path.abspath(str(place))
    task = ray.remote(_write).options(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="SPREAD")
    running: dict[ray.ObjectRef, int] = {}
    done: dict[int, EncodedShard | None] = {}
    shards: list[EncodedShard] = []
    wanted = 0
    # After an error the other tasks end their shards: a call of ray.cancel that meets the reply of its task
    # ends this process (Ray's pull request 54798 tells of the race).
    while True:
        while len(running) < workers and (job := next(jobs, None)):
            running[task.remote(folder, job)] = job.number
        if not running:
            break
        [first], _ = ray.wait(list(running), num_returns=1)
        done[running.pop(first)] = _result(first)
        while wanted in done:
            shard = done.pop(wanted)
            shards += [shard] if shard else []
            yield shard
            wanted += 1
    if shards:
        remedy = "give --root a folder that all machines see under this path, or s3://bucket/prefix"
        place.check_sizes([*shards, *(shard.table for shard in shards)], remedy)


def _write(folder: str, job: ShardJob) -> EncodedShard | None:
    return write_shard(SplitFolder(folder), job)


def _result(reference: ray.ObjectRef) -> EncodedShard | None:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reference)
    except RayError as error:
        _, cause = root_cause(error)
        if isinstance(cause, CapsdistError):
            raise cause from None
        raise DataError(
            f"a task that writes a shard failed: {one_line(None, cause)}; start it again"
        ) from None


IMAGENET = replace(IMAGENET_FILES, parallel=shards_by_ray)
