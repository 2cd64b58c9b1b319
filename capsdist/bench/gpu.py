"""Benchmarks on a GPU: routing, replayed as a CUDA graph, and the training loop (`gpu_loop.py`).

A kernel of routing takes a few microseconds and its launch from Python takes longer, so that without a graph
the launches would be timed. Needs torch and Triton only. Without a GPU the same code runs interpreted, at
sizes that mean nothing, so that it is known to work.

Shape letters: B images, I children, J parents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from capsdist.bench import routing
from capsdist.bench.aims import goals_table
from capsdist.bench.ceilings import measure_ceilings
from capsdist.bench.gpu_aims import GPU_ROWS
from capsdist.bench.gpu_loop import loop_rows, train_briefly
from capsdist.bench.timer import time_side_by_side

__all__ = ["as_graph", "figures", "measure", "report", "routing_cases", "routing_rows"]

Row = dict[str, Any]
# Calls between two looks at the clock.
CALLS = 20
_MNIST, _IMAGENET = "B=1024 I=1152 J=10 R=3", "B=256 I=6272 J=1000 R=3"
# Error that a short training must get below; a guess is wrong in 90 %.
MAX_ERROR_PERCENT = 5.0


def report(device: str) -> Row:
    """Return the figures of `measure`, and print which aims they reach; see `measure`."""
    found = figures(measure(device))
    if device == "cuda":
        print(goals_table(GPU_ROWS, found))
    return found


def measure(device: str) -> Row:
    """Measure routing, then the training loop, then train; print rows as they come, return all of them.

    Raises:
        SystemExit: the training did not learn.
    """
    import triton  # late: TRITON_INTERPRET may be set after this module is imported

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, interpreted"
    found: Row = {"device": f"{name}, torch {torch.__version__}, triton {triton.__version__}"}
    found["routing"] = _shown("routing, forward and backward", routing_rows(device))
    found["loop"] = _shown("training loop", loop_rows(device))
    (found["training"],) = _shown("training", [train_briefly(device)])
    error_percent = found["training"]["error_percent"]
    if device == "cuda" and error_percent > MAX_ERROR_PERCENT:
        raise SystemExit(f"training did not learn: error_percent {error_percent:.1f}")
    return found


def figures(found: Row) -> Row:
    """Return the named figures of what `measure` has found, as far as they are there; its rows below `rows`.

    speedup_vs_reference, share_of_roofline, imagenet_ms, imagenet_peak_gib: of `fused`, forward and backward,
    in bf16: at MNIST's shape with the largest batch and R = 3; of a layer of 6,272 to 1,000 capsules, 256
    images. mnist_b128_images_per_s, cifar10_b512_mfu_percent and so on: of the training loop, by network and
    batch; step_r3_over_r1: at the largest batch of the MNIST network.
    """
    times: dict[str, dict[str, Row]] = {}
    for row in found["routing"]:
        if "microseconds" in row:
            backend = row["backend"].partition(",")[0]
            best = times.setdefault(row["sizes"], {}).get(backend)
            if best is None or row["microseconds"] < best["microseconds"]:
                times[row["sizes"]][backend] = row
    named: Row = {}
    mnist, imagenet = times.get(_MNIST, {}), times.get(_IMAGENET, {})
    if {"fused", "reference"} <= mnist.keys():
        named["speedup_vs_reference"] = mnist["reference"]["microseconds"] / mnist["fused"]["microseconds"]
        named["share_of_roofline"] = mnist["fused"]["share_of_roofline"]
    if "fused" in imagenet:
        named["imagenet_ms"] = imagenet["fused"]["microseconds"] / 1e3
        named["imagenet_peak_gib"] = imagenet["fused"]["peak_gib"]
    for row in found["loop"]:
        subject = f"{row['preset'].partition('_')[0]}_b{row['num_images']}"
        for name in ("images_per_s", "mfu_percent"):
            if (value := row.get(name)) is not None:
                named[f"{subject}_{name}"] = value
        if "step_r3_over_r1" in row:
            named["step_r3_over_r1"] = row["step_r3_over_r1"]
    return {**named, "rows": found}


def _shown(title: str, rows: Iterable[Row]) -> list[Row]:
    print(f"-- {title}", flush=True)
    kept: list[Row] = []
    for row in rows:
        values = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("  ".join(values), flush=True)
        kept.append(row)
    return kept


def as_graph(run: Callable[[], object], device: str) -> Callable[[], None]:
    """Return a call that replays `run` from a CUDA graph; on a CPU, one that runs it.

    `run` is called a few times first, which also lets kernels search for their plans.
    """
    if device == "cpu":
        return lambda: (run(), None)[1]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def routing_cases(device: str) -> list[routing.Case]:
    """Return the shapes: MNIST's at two batches and R = 1 and 3, larger networks, a layer for ImageNet."""
    if device == "cpu":
        return [routing.Case(num_images=2, num_children=9, num_parents=3, child_dim=2, parent_dim=3)]
    mnist = replace(routing.MNIST, device=device, dtype="bfloat16")
    return [
        *(replace(mnist, num_images=b, iterations=r) for b in (128, 1024) for r in (1, 3)),
        replace(mnist, num_children=routing.MULTIMNIST.num_children),
        replace(mnist, num_children=routing.CIFAR10.num_children),
        replace(mnist, num_images=256, num_children=6272, num_parents=1000),
    ]


def routing_rows(device: str, budget_s: float = 5.0) -> Iterator[Row]:
    """Yield a row per shape and backend, forward and backward: time and share of roofline, or an error."""
    ceilings = None if device == "cpu" else measure_ceilings(device, "bfloat16")
    for case in routing_cases(device):
        early = ["fused, launched early"] if device != "cpu" else []
        for name in ("fused", *early, "reference"):
            backend = name.split(",")[0]
            sizes = f"B={case.num_images} I={case.num_children} J={case.num_parents} R={case.iterations}"
            row: Row = {"sizes": sizes, "backend": name, "dtype": case.dtype}
            os.environ["CAPSDIST_EARLY_LAUNCH"] = str(int(name in early))
            if ceilings is not None:
                torch.cuda.reset_peak_memory_stats()
            try:
                median_s = _seconds(
                    as_graph(routing.forward_backward(case, backend), device), device, budget_s
                )
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                yield row | {"error": "out of memory"}
                continue
            finally:
                del os.environ["CAPSDIST_EARLY_LAUNCH"]
            row["microseconds"] = 1e6 * median_s
            if ceilings is not None:
                row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
                floor_s = ceilings.floor_s(case.flop, case.least_bytes("forward+backward"))
                row["share_of_roofline"] = floor_s / median_s
            yield row


def _seconds(run: Callable[[], object], device: str, budget_s: float) -> float:
    """Return the median time of one call of `run`, in seconds."""
    calls = CALLS if device != "cpu" else 1

    def several() -> None:
        for _ in range(calls):
            run()

    return time_side_by_side({"run": several}, budget_s=budget_s)["run"].median_s / calls
