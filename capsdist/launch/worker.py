"""The function that every Ray Train worker runs: find the place in the group, then train.

The loop knows no Ray; it gets a rank, a device and callbacks: where rows go, how a checkpoint gets to
where the run lies and becomes known to Ray, and whether to stop.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor

from capsdist.config import Config
from capsdist.console import Log, announced
from capsdist.errors import CheckpointError, MemoryExhaustedError, RunError
from capsdist.launch.events import EventSender
from capsdist.launch.failure import is_out_of_memory, one_line
from capsdist.launch.gauges import Gauges
from capsdist.launch.resume import resume_from
from capsdist.launch.signals import StopPoll
from capsdist.launch.watch import watched
from capsdist.runs.checkpoints import opened_checkpoint
from capsdist.runs.files import open_files
from capsdist.runs.record import RunRecord, open_record
from capsdist.runs.retention import checkpoint_name, clean, prune, store_checkpoint
from capsdist.runs.rundir import run_place
from capsdist.storage import Folder
from capsdist.storage.temporary import remove_stale_folders
from capsdist.train.dry_run import dry_run
from capsdist.train.engine.build import prepare_engine
from capsdist.train.loop import Events, run_training
from capsdist.train.metrics import Row

__all__ = ["Fault", "Job", "Observer", "train_worker"]

Fault = Callable[[int, int], None]
"""Called as fault(rank, step) after every step, to fail there on purpose: tests and fault campaigns."""

Observer = Callable[[int, int, Tensor], None]
"""Called as observer(rank, step, sample_ids) before that: what was trained on; see `loop.Observe`."""


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker. threads: torch threads without a GPU; channel: of events."""

    config: dict[str, Any]
    threads: int
    channel: Any
    fault: Fault | None
    observer: Observer | None


def train_worker(settings: dict[str, Any]) -> Row:
    """Train as one rank and return the loop's end row; go on from the newest verified checkpoint.

    `settings`: the fields of a `Job`.
    """
    return _Worker(Job(**settings)).run()


class _Worker:
    """One rank: its place in the group, and its line to the driver."""

    def __init__(self, job: Job) -> None:
        self.job, self.config = job, Config.model_validate(job.config)
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(job.threads)
        self.send = EventSender(job.channel)

    def log(self, text: str) -> None:
        """Send a line that stays."""
        self.send({"kind": "note", "message": text})

    def status(self, text: str) -> None:
        """Send a line about what takes long."""
        self.send({"kind": "status", "message": text})

    def run(self) -> Row:
        """Train, or do a dry run; return the end row."""
        job, config = self.job, self.config
        with contextlib.ExitStack() as stack:
            # before anything that may wait for a mount
            sign = stack.enter_context(watched(job.channel, self.rank))
            remove_stale_folders()  # on this node; the driver may run on another one
            files = _files(config)
            place: dict[str, Any] = {"world_size": self.world_size, "device": self.device}
            poll = StopPoll(job.channel, rank=self.rank, **place)
            prepare_engine(config, log=self.status, sign=sign, **place)

            def should_stop(step: int) -> bool:
                sign()
                if job.fault is not None:
                    job.fault(self.rank, step)
                return poll(step)

            if config.train.dry_run:
                events = self.send if self.rank == 0 else _nowhere
                with _translated_memory_errors():
                    end = dry_run(config, rank=self.rank, events=events, should_stop=should_stop, **place)
            else:
                end = self._train(files, should_stop, stack)
        self.send.flush()  # the driver has all rows when the run is over
        return end

    def _train(self, files: Folder, should_stop: Callable[[int], bool], stack: contextlib.ExitStack) -> Row:
        config, rank, log = self.config, self.rank, self.log
        reading = "reading the newest checkpoint"
        with announced(self.status, reading) if rank == 0 else contextlib.nullcontext():
            checkpoint = stack.enter_context(resume_from(files, log))
            start = stack.enter_context(_start(config, log)) if rank == 0 and checkpoint is None else None
        record: RunRecord | None = None
        events: Events = _nowhere
        if rank == 0:
            clean(files, checkpoint.step if checkpoint else None)
            record = stack.enter_context(open_record(files, config, log))
            events = _everywhere(record, Gauges(config.train.name), self.send)
        observer = self.job.observer
        with _translated_memory_errors():
            return run_training(
                config,
                rank=rank,
                world_size=self.world_size,
                device=self.device,
                events=events,
                save=_Saver(config, files, record, log),
                resume_from=checkpoint.folder if checkpoint else None,
                init_from=start,
                should_stop=should_stop,
                observe=observer and functools.partial(observer, rank),
                picture=record and record.image,
                keep=files.write,
            )


@contextlib.contextmanager
def _start(config: Config, log: Log) -> Iterator[Path | None]:
    """Yield the checkpoint, in a local folder, whose weights a new run starts from, None without one."""
    if config.train.init_from is None:
        yield None
        return
    best = config.train.init_best
    with opened_checkpoint(config.train.init_from, lowest_error=best, log=log) as (_, folder):
        yield folder


@contextlib.contextmanager
def _translated_memory_errors() -> Iterator[None]:
    """Make of an allocation that fails an error of ours, which is not tried again: it would fail again."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryExhaustedError(
            f"out of memory on {socket.gethostname()} ({one_line(None, error)}); set a "
            "smaller --train.microbatch-size, raise --train.num-workers, or choose a smaller network"
        ) from error


def _everywhere(record: RunRecord, gauges: Gauges, send: EventSender) -> Events:
    def events(row: Row) -> None:
        record(row)
        gauges(row, record.num_restarts)
        send(row)

    return events


def _nowhere(row: Row) -> None:
    """Take a row of a rank that has none."""


def _files(config: Config) -> Folder:
    """Return the run's files, which this machine must see as the driver does."""
    files = open_files(run_place(config))
    if files.read("config.json") is None:
        raise RunError(
            f"train.storage={config.train.storage!r}: this machine does not see {files}; use a folder that "
            "all machines of the cluster share, or s3://"
        )
    return files


class _Saver:
    """Has rank 0 write a checkpoint to where the run lies, and all ranks report it; see `loop.Save`.

    Ray's own upload leaves the order of the files open; ours ends with the manifest, within a deadline.
    """

    def __init__(self, config: Config, files: Folder, record: RunRecord | None, log: Log) -> None:
        self._train, self._files, self._record, self._log = config.train, files, record, log

    def __call__(self, write: Callable[[Path | None], None], step: int, metrics: dict[str, float]) -> str:
        """Return the checkpoint's name once it is on storage and all ranks have come here."""
        name = checkpoint_name(step)
        if self._record is None:
            write(None)
            ray.train.report(metrics, checkpoint_dir_name=name)
            return name
        with self._files.staging(name) as folder:
            try:
                write(folder)
            except CheckpointError as error:
                place = self._files.path(name) if self._files.local else str(folder)
                raise CheckpointError(str(error).replace(str(folder), place)) from None
            self._record.publish()

            def upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
                store_checkpoint(self._files, folder, step)
                storage: Any = ray.train.get_context().get_storage()
                path = storage.build_checkpoint_path_from_name(name)
                return ray.train.Checkpoint(path, storage.storage_filesystem)

            ray.train.report(
                metrics,
                ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=name,
                checkpoint_upload_fn=upload,
            )
        prune(self._files, self._log, keep_last=self._train.keep_checkpoints, keep_best=self._train.keep_best)
        return name
