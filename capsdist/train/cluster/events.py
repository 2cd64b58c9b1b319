"""The way of event rows from rank 0 to the driver: a queue in an actor that takes no CPU.

Ours. `ray.train.report` is a barrier of all ranks that waits for the controller, so it carries checkpoints
only; rows travel here, and training never waits for them.
"""

from __future__ import annotations

from typing import Any

import ray
import ray.train
from ray.util.queue import Empty, Queue

from capsdist.errors import CapsdistError
from capsdist.train.cluster.failure import one_line, root_of_many
from capsdist.train.metrics import Row

__all__ = ["EventReceiver", "EventSender", "FailureReporter"]


class EventSender:
    """The training side: call it with a row."""

    def __init__(self, queue: Queue) -> None:
        self._actor: Any = queue.actor
        self._last: Any = None

    def __call__(self, row: Row) -> None:
        """Send `row` and do not wait."""
        self._last = self._actor.put.remote(row)

    def flush(self) -> None:
        """Wait until every row has arrived: rows of one sender stay in order."""
        if self._last is not None:
            ray.get(self._last)


class EventReceiver:
    """The driver's side; it owns the queue."""

    def __init__(self) -> None:
        self.queue = Queue(actor_options={"num_cpus": 0})

    def take(self, timeout_s: float) -> Row | None:
        """Return the next row, or None if none came within `timeout_s`."""
        try:
            return self.queue.get(timeout=timeout_s)
        except Empty:
            return None

    def drain(self) -> list[Row]:
        """Return all rows that have arrived."""
        return self.queue.get_nowait_batch(self.queue.qsize())


class FailureReporter(ray.train.UserCallback):
    """In Ray's controller: tells the driver about failed workers, and ends the run where a restart is vain.

    An error of our own (a damaged shard, a checkpoint of another run) comes again at every attempt, so it
    is raised instead of counted against `max_failures`.
    """

    def __init__(self, queue: Queue) -> None:
        self._send = EventSender(queue)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Send a row of kind "failure"; raise our own errors, which makes Ray give up."""
        rank, error = root_of_many(worker_exceptions)
        if isinstance(error, CapsdistError):
            raise error
        self._send({"kind": "failure", "message": one_line(rank, error)})
