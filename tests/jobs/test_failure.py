"""Which of many workers' errors is told, and in which words."""

from __future__ import annotations

import errno
import pickle

import pytest
import torch
from ray.train import ControllerError

from capsdist.errors import ConfigError, DataError, MemoryExhaustedError, Problem
from capsdist.launch.failure import full_disk, is_out_of_memory, one_line, root_cause, root_of_many


class ActorDiedError(Exception):
    """Named like Ray's."""


class Wrapped(Exception):
    """Carries another error under one of the names that Ray uses."""

    def __init__(self, **inner: object) -> None:
        super().__init__("many\nlines")
        self.__dict__.update(inner)


LOST_PARTNER = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
DIED = Wrapped(health_check_failure=ActorDiedError("The actor died"))


@pytest.mark.parametrize(
    ("failures", "rank"),
    [
        ({0: LOST_PARTNER, 1: ValueError("x")}, 1),
        ({0: LOST_PARTNER, 1: DIED}, 1),
        ({0: ValueError("x"), 2: DIED}, 2),
        ({0: DIED, 1: LOST_PARTNER, 2: DataError("x")}, 2),
        ({0: LOST_PARTNER, 1: LOST_PARTNER}, 0),
        ({3: ValueError("x"), 1: TypeError("x")}, 1),
    ],
)
def test_the_cause_stands_before_its_consequences(failures, rank):
    assert root_of_many(failures)[0] == rank


def test_wrappers_are_opened():
    error = DataError("shard 3: damaged")
    assert root_cause(Wrapped(controller_failure=Wrapped(cause=error))) == (None, error)
    assert root_cause(Wrapped(worker_failures={1: Wrapped(cause=error), 0: LOST_PARTNER})) == (1, error)
    assert root_cause(error) == (None, error)


@pytest.mark.parametrize(
    ("rank", "error", "line"),
    [
        (None, DataError("shard 3: damaged"), "shard 3: damaged"),
        (2, ValueError("first\n\n  last  \n"), "worker 2: ValueError: last"),
        (0, KeyError(), "worker 0: KeyError: no message"),
        (1, ActorDiedError("a\nb"), "worker 1: its process died (killed, out of memory, or a native crash)"),
        (
            None,
            ActorDiedError("died because of an error raised in its creation task\n  File\nOSError: full"),
            "ActorDiedError: OSError: full",
        ),
        (
            None,
            ConfigError([Problem("a.b", 1, "rule", "fix"), Problem("c.d", 2, "rule", "fix")]),
            "a.b=1: rule; fix; c.d=2: rule; fix",
        ),
    ],
)  # fmt: skip
def test_one_line(rank, error, line):
    assert one_line(rank, error) == line


def test_errors_of_ours_survive_the_way_between_processes():
    error = ConfigError([Problem("a.b", 1, "rule", "fix")])
    assert one_line(None, pickle.loads(pickle.dumps(error))) == one_line(None, error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (MemoryExhaustedError("out of memory on one"), True),
        (RuntimeError("shape mismatch"), False),
        (LOST_PARTNER, False),
    ],
)
def test_out_of_memory_is_known_by_its_many_names(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_full_disk_is_known_by_its_number():
    failure = ControllerError(OSError(errno.ENOSPC, "Error writing bytes to file. Detail: no space"))
    rank, cause = root_cause(pickle.loads(pickle.dumps(failure)))
    assert (rank, full_disk(cause)) == (None, "No space left on device")
    assert full_disk(OSError(errno.EACCES, "No space left on device")) is None
    assert full_disk(ValueError("No space left on device")) is None


def test_torch_says_so_when_memory_is_short():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)


def test_the_report_of_rays_memory_monitor_is_one_line_that_says_what_was_killed():
    """The words are those of Ray 2.60, as its monitor wrote them; between them stand 1,000 characters."""
    text = (
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
        "10.0.0.7, ID: "
        "33679ae90d478efb) was 5.19GB used / 23.54GB limit (0.220322)\nOOM kill reason: Memory usage "
        "5454274560B exceeded threshold of 758295040B (3.0% of 25276502016B limit)\nRay killed 1 worker(s) "
        "based on the killing policy\nSelected to kill: (Actor(a611f2cd): job ID=01000000, lease "
        "ID=0000000080def, "
        "task name=RayTrainWorker.__init__, required resources={}, pid=20691, actual memory used=0.10GB, "
        "worker ID=2cfbfbf5)\n" + "Top 10 memory users: PID\tMEM(GB)\tCOMMAND\n" * 30
    )
    line = one_line(1, type("OutOfMemoryError", (Exception,), {})(text))
    assert line == (
        "worker 1: Ray's memory monitor killed RayTrainWorker.__init__ (process 20691, 0.10 GB), because "
        "node 10.0.0.7 had 5.19 GB of 23.54 GB in use; use fewer workers per node, or set a "
        "smaller --train.microbatch-size"
    )
