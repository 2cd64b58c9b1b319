"""Memory and time against the sizes of routing and of images; each point in a process of its own.

One size varies over up to three decades, the others stay. Routing alone (child poses [B, I, D], weights
[I, J, D, E], R iterations, forward and backward, fp32, one thread); for images a whole optimizer step of a
small network on square images. What formulas say for the large sizes:

    time        proportional to B I J D E (7 R - 4): products of `streamed`, forward and backward
    weights     4 I J D E bytes, as many for their gradients: in the total, not in the working memory
    votes       4 B I J E bytes: the reference stores them, `streamed` never does
    coupling    4 B I J bytes
    images      feature maps and children grow with the number of pixels

Assumptions: the fitted power has no constant part, and all points weigh the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from capsdist.bench.ranks import PeakMemory, on_ranks
from capsdist.bench.scaling_fit import Power, fit_power
from capsdist.console import Log

__all__ = ["STUDIES", "Point", "Study", "describe", "fits", "measure_points", "shape_figures"]

_LEAST_TOTAL = 1e6
_BUDGET_S, _MOST_RUNS = 1.5, 15  # for the times of a point; at least 3


@dataclass(frozen=True)
class Study:
    """One size that varies: its name in figures, its field, its values; the others' values; the backends."""

    name: str
    size: str
    values: tuple[int, ...]
    fixed: dict[str, int] = field(default_factory=dict)
    backends: tuple[str, ...] = ("streamed",)

    def chosen(self, goals: bool) -> tuple[int, ...]:
        """Return the values that are measured: with `goals` every second one, which keeps both ends."""
        return self.values[::2] if goals else self.values


@dataclass(frozen=True)
class Point:
    """One measurement.

    seconds: median of forward and backward; working_bytes: peak of torch's allocations above inputs, weights,
    gradients and results, None for a network; total_bytes: peak of resident memory above that of a process
    that has computed a tiny case, so everything that the size brings.
    """

    backend: str
    value: int
    seconds: float
    working_bytes: float | None
    total_bytes: float


STUDIES = {
    study.name: study
    for study in (
        Study(
            "classes", "num_parents", (10, 32, 100, 316, 1_000, 3_162, 10_000),
            {"num_images": 4, "num_children": 64}, ("streamed", "reference"),
        ),
        Study("children", "num_children", (10, 32, 100, 316, 1_000, 3_162, 10_000), {"num_images": 16}),
        Study(
            "parent_dim", "parent_dim", (2, 6, 20, 63, 200, 632, 2_000),
            {"num_images": 16, "num_children": 64},
        ),
        Study(  # the profiler that measures memory records every operation, whose number grows as R^2
            "iterations", "iterations", (1, 3, 10, 32, 100), {"num_images": 4, "num_children": 64},
        ),
        Study("images", "num_images", (1, 3, 10, 32, 100, 316, 1_000), {"num_children": 144}),
        Study("pixels", "side", (20, 36, 64, 112, 200, 356, 632), {}, ("network",)),
    )
}  # fmt: skip


def shape_figures(
    studies: Sequence[str], *, goals: bool, log: Log
) -> tuple[dict[str, float], dict[str, list[Point]]]:
    """Return exponents with standard errors, and the points by study. `log` is told of each.

    `memory_exponent_X`: of the working memory, where there is one; `total_memory_exponent_X`,
    `time_exponent_X`; `reference_...`: the same of the textbook form; `..._error`: their standard errors.

    Raises:
        RunError: a point failed.
    """
    figures: dict[str, float] = {}
    points: dict[str, list[Point]] = {}
    for name in studies:
        points[name] = list(measure_points(STUDIES[name], goals=goals, log=log))
        for figure, power in fits(name, points[name]).items():
            figures |= {figure: power.exponent, f"{figure}_error": power.error}
            log(f"{figure} {power.exponent:.3f} +- {power.error:.3f}")
    return figures, points


def measure_points(study: Study, *, goals: bool, log: Log) -> list[Point]:
    """Return the points of a study, each measured in a new process."""
    found = []
    for backend in study.backends:
        for value in study.chosen(goals):
            run = _network_point if backend == "network" else _routing_point
            [numbers] = on_ranks(run, 1, backend, {**study.fixed, study.size: value}, group=False)
            pixels = value**2 if study.size == "side" else value
            point = Point(backend, pixels, *numbers)
            log(describe(study.name, point))
            found.append(point)
    return found


def describe(name: str, point: Point) -> str:
    """Return a point as one line for people."""
    working = "" if point.working_bytes is None else f"  working {point.working_bytes / 1e6:9.3f} MB"
    return (
        f"{name:<11}{point.value:>8,} {point.backend:<10}{1e3 * point.seconds:10.2f} ms{working}"
        f"  total {point.total_bytes / 1e6:9.2f} MB"
    )


def fits(name: str, points: Sequence[Point]) -> dict[str, Power]:
    """Return the fitted powers of a study by figure, where two points or more have values.

    A total below 1 MB is left out: an allocator's own pieces are as large.
    """
    found = {}
    for backend in dict.fromkeys(point.backend for point in points):
        own = [point for point in points if point.backend == backend]
        prefix = "reference_" if backend == "reference" else ""
        kinds = {
            "memory": {point.value: point.working_bytes for point in own if point.working_bytes},
            "total_memory": {p.value: p.total_bytes for p in own if p.total_bytes > _LEAST_TOTAL},
            "time": {point.value: point.seconds for point in own},
        }
        for kind, values in kinds.items():
            if len(values) > 1:
                found[f"{prefix}{kind}_exponent_{name}"] = fit_power([*values], [*values.values()])
    return found


def _routing_point(backend: str, sizes: dict[str, int]) -> tuple[float, float, float]:
    """In a process of its own: return seconds, working bytes and total bytes of routing."""
    from capsdist.bench.memory import peak_bytes
    from capsdist.bench.routing import Case, forward_backward

    forward_backward(Case(num_images=2, num_children=4, num_parents=2), backend)()  # libraries set up
    memory = PeakMemory()
    run = forward_backward(replace(Case(num_images=1, num_children=1, num_parents=10), **sizes), backend)
    run()
    total = memory.bytes
    return _median_s(run), peak_bytes(run, warm=False), total


def _network_point(_: str, sizes: dict[str, int]) -> tuple[float, None, float]:
    """In a process of its own: return seconds and total bytes of an optimizer step on square images."""
    _network_step(20)()
    memory = PeakMemory()
    run = _network_step(sizes["side"])
    run()
    total = memory.bytes
    return _median_s(run), None, total


def _network_step(side: int) -> Callable[[], object]:
    """Return a step of a small network without decoder on 2 images of `side` pixels a side."""
    import torch

    from capsdist.bench.step import Step
    from capsdist.config import CapsNetConfig, Config
    from capsdist.config.models import find_family
    from capsdist.models import build_model

    sizes: dict[str, Any] = {
        "image_size": side, "conv_channels": 16, "primary_types": 2, "class_dim": 4, "decoder": False,
    }  # fmt: skip
    model = CapsNetConfig.model_validate(sizes)
    config = Config(model=model)
    network = build_model(config.model, config.routing)
    images, labels = torch.rand(2, 1, side, side), torch.tensor([0, 1])
    return Step(network, find_family("capsnet"), config, images=images, labels=labels, precision="fp32")


def _median_s(run: Callable[[], object]) -> float:
    """Return the median seconds of a few runs, after one that was not counted."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or (len(times) < _MOST_RUNS and time.perf_counter() - start < _BUDGET_S):
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return statistics.median(times)
