"""Time launches for the search of plans."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

__all__ = ["milliseconds", "no_collection"]

# A graph has as many launches as take about this time, and is replayed this often.
GRAPH_MS, MAX_LAUNCHES, REPLAYS = 2.0, 500, 9


def milliseconds(launch: Callable[[], object]) -> float:
    """Return the time of one launch on the current GPU, without what Python adds to it: in a CUDA graph.

    What is under way is waited for, because the launches write to memory that it may still read: they run on
    a stream of their own. The capture is this thread's alone, so that others may allocate meanwhile, such as
    one that reads data into pinned memory. It must not meet garbage collection, which unloads kernels.
    """
    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        launch()  # compiles
        launches = int(min(MAX_LAUNCHES, max(1.0, GRAPH_MS / max(1e-3, _elapsed(launch)))))
        with no_collection(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(launches):
                launch()
        return median(_elapsed(graph.replay) for _ in range(REPLAYS)) / launches


def _elapsed(work: Callable[[], object]) -> float:
    """Return milliseconds that the current stream needs for `work`, and wait for it."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python from collecting garbage, which unloads kernels and so ends a capture."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
