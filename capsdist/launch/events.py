"""Events between workers and driver: rows go up, requests to stop go down, through a Ray actor.

`ray.train.report` is a barrier of all ranks that waits for the controller, so it carries checkpoints
only; rows travel here, and training never waits for them.
"""

from __future__ import annotations

from typing import Any

import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from capsdist.errors import CapsdistError
from capsdist.launch.failure import one_line, root_of_many
from capsdist.launch.watch import WorkerProcess
from capsdist.train.metrics import Row

__all__ = ["EventChannel", "EventSender", "FailureReporter", "open_event_channel"]


class EventChannel:
    """What the actor holds: rows not yet taken, workers to watch, whether training runs and shall stop."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._training = self._stop = False
        self._workers: dict[int, WorkerProcess] = {}
        self._signs = 0

    def put(self, row: Row) -> None:
        """Take a row from a worker or the controller."""
        self._rows.append(row)
        self._signs += 1
        if row["kind"] == "failure":  # all workers end, and others will join
            self._workers.clear()

    def join(self, worker: WorkerProcess) -> None:
        """Take up a worker to be watched."""
        self._workers[worker.rank] = worker

    def leave(self, rank: int) -> None:
        """Watch a worker no longer."""
        self._workers.pop(rank, None)

    def sign(self) -> None:
        """Count a sign of a worker: it has done a step."""
        self._signs += 1

    def watch(self) -> tuple[list[WorkerProcess], int]:
        """Return the watched workers, and how many signs have come."""
        return [self._workers[rank] for rank in sorted(self._workers)], self._signs

    def take(self) -> list[Row]:
        """Hand the rows over that came since the last call, in their order."""
        rows, self._rows = self._rows, []
        return rows

    def stop(self) -> bool:
        """Wish that the run stops; return whether there is somebody who will see it, and so save."""
        self._stop = True
        return self._training

    def poll(self) -> bool:
        """Return, to rank 0 in training, whether the run shall stop."""
        self._training = True
        return self._stop


def open_event_channel() -> Any:
    """Start the actor on the driver's own node, so that no other node takes it along when it is lost."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(EventChannel).options(num_cpus=0, scheduling_strategy=here).remote()


class EventSender:
    """The training side: call it with a row."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._last: Any = None

    def __call__(self, row: Row) -> None:
        """Send `row` and do not wait."""
        self._last = self._channel.put.remote(row)

    def flush(self) -> None:
        """Wait until every row has arrived: rows of one sender stay in order."""
        if self._last is not None:
            ray.get(self._last)


class FailureReporter(ray.train.UserCallback):
    """In Ray's controller: tells the driver about failed workers, and ends the run where a restart is vain.

    An error of our own (a damaged shard, a checkpoint of another run) comes again at every attempt, so it
    is raised instead of counted against `max_failures`.
    """

    def __init__(self, channel: Any) -> None:
        self._send = EventSender(channel)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Send a row of kind "failure"; raise our own errors, which makes Ray give up."""
        rank, error = root_of_many(worker_exceptions)
        if isinstance(error, CapsdistError):
            raise error
        self._send({"kind": "failure", "message": one_line(rank, error)})
