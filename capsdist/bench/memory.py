"""Measure the memory of a computation above its inputs and outputs with torch's own allocators."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes", "saved_bytes", "within_memory"]


def peak_bytes(run: Callable[[], object], device: str = "cpu", *, warm: bool = True) -> int:
    """Return the largest number of bytes allocated at once during `run`, less those of what it returns.

    On a CPU every allocation and release of torch's allocator is read from the profiler, temporaries inside
    operators included; a matrix library's own small packing buffers are not seen. On a GPU the caching
    allocator's statistics are read. What existed before (the inputs) does not count, what `run` returns (the
    outputs: results, gradients) is subtracted.

    Args:
        run: the computation.
        device: "cpu", or a CUDA device.
        warm: run it twice, the first time unobserved, for what is set up only once.
    """
    if warm:
        run()
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        outputs = run()
        results = torch.cuda.memory_allocated(device) - before
        peak = torch.cuda.max_memory_allocated(device) - before
        del outputs
        return peak - results
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler reports its own start and stop otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as observed:
        outputs = run()
    live = peak = 0
    for change in _cpu_changes(observed):
        live += change
        peak = max(peak, live)
    del outputs
    return peak - live


def _cpu_changes(observed: profile) -> list[int]:
    """Return the allocations (positive) and releases (negative) in bytes, in order of time."""
    assert observed.profiler is not None
    results = observed.profiler.kineto_results
    assert results is not None
    events = [e for e in results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return [e.nbytes() for e in events]  # pyright: ignore[reportAttributeAccessIssue]


def saved_bytes(run: Callable[[], object], exclude: Iterable[Tensor] = ()) -> int:
    """Return the bytes of all storages that autograd keeps for the backward pass of `run`.

    Args:
        run: a forward pass; what it returns is dropped.
        exclude: tensors that live on anyhow, such as parameters, and do not count.
    """
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # alive until the end, so that no address is used twice

    def pack(tensor: Tensor) -> None:
        kept.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: _):
        run()
    kept.clear()  # a graph that saves a result of its own holds this function, and so itself, for ever
    for tensor in exclude:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@contextlib.contextmanager
def within_memory(share: float = 0.85) -> Iterator[None]:
    """Let allocations fail beyond `share` of this machine's memory, so that the kernel kills nobody.

    A GPU's own allocator fails by itself; addresses that CUDA only reserves are not limited.
    """
    if torch.cuda.is_available():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_DATA, (int(share * total), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
