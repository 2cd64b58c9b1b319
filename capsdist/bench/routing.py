"""Benchmark routing: time and memory of each backend, side by side, on random operands.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from capsdist.bench.ceilings import Ceilings, matrix_product, measure_ceilings
from capsdist.bench.full_shape import route_full_shape
from capsdist.bench.memory import peak_bytes, saved_bytes
from capsdist.bench.timer import Timing, time_side_by_side
from capsdist.routing import explain, route_packed, route_reference, unpack_weights
from capsdist.routing.dynamic.products import backward_products, forward_products

__all__ = [
    "BACKENDS",
    "CIFAR10",
    "IMAGENET",
    "MNIST",
    "MULTIMNIST",
    "SHAPES",
    "Case",
    "Shape",
    "cases",
    "describe",
    "goals",
    "table",
    "try_goals",
]  # fmt: skip

Figures = dict[str, float]
Row = dict[str, Any]
Route = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement, and the routing iterations."""

    num_images: int
    num_children: int
    num_parents: int = 10
    child_dim: int = 8
    parent_dim: int = 16
    iterations: int = 3
    device: str = "cpu"
    dtype: str = "float32"

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return child poses [B, I, D], packed weights [J, E, D, I], a gradient [B, J, E]; seed 0.

        The same tensors each time for the case that was asked for last: large weights exist once.
        """
        return _operands(self)

    @property
    def flop(self) -> int:
        """FLOP of the matrix products of `streamed`, forward and backward (its docstring counts them)."""
        return self.forward_flop + backward_products(self.iterations, uniform=True) * self._product_flop

    @property
    def forward_flop(self) -> int:
        """FLOP of the forward pass alone."""
        return forward_products(self.iterations) * self._product_flop

    @property
    def _product_flop(self) -> int:
        return 2 * self.num_images * self._num_weights

    @property
    def _num_weights(self) -> int:
        return self.num_children * self.num_parents * self.child_dim * self.parent_dim

    def least_bytes(self, passes: str) -> int:
        """Return the bytes that must cross the memory bus: every operand and result once per pass."""
        poses = self.num_images * self.num_children * self.child_dim
        parents = self.num_images * self.num_parents * self.parent_dim
        forward = poses + self._num_weights + parents
        numbers = forward if passes == "forward" else 3 * forward  # backward: the same again, and gradients
        return numbers * getattr(torch, self.dtype).itemsize


@lru_cache(maxsize=1)
def _operands(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator).mul_(scale)
        return drawn.to(case.device, getattr(torch, case.dtype))

    poses = draw(0.3, case.num_images, case.num_children, case.child_dim)
    weights = draw(0.1, case.num_parents, case.parent_dim, case.child_dim, case.num_children)
    grad = draw(1.0, case.num_images, case.num_parents, case.parent_dim)
    return poses.requires_grad_(), weights.requires_grad_(), grad


MNIST = Case(num_images=128, num_children=1152)
MULTIMNIST = Case(num_images=32, num_children=3200)
CIFAR10 = Case(num_images=16, num_children=9216)
IMAGENET = Case(num_images=2, num_children=6272, num_parents=1000)

Shape = Literal["mnist", "multimnist", "cifar10", "imagenet"]
SHAPES: dict[Shape, Case] = {
    "mnist": MNIST,
    "multimnist": MULTIMNIST,
    "cifar10": CIFAR10,
    "imagenet": IMAGENET,
}
MNIST_ITERATIONS = (1, 3, 5, 10)


def cases(
    num_images: int, device: str, dtypes: Iterable[str], shapes: Iterable[Shape] = tuple(SHAPES)
) -> list[Case]:
    """Return what the table is over: dtypes and shapes, MNIST's with `num_images` and 1 to 10 iterations."""
    found = []
    for shape in shapes:
        if shape == "mnist":
            mnist = replace(MNIST, num_images=num_images)
            found += [replace(mnist, iterations=r) for r in MNIST_ITERATIONS]
        else:
            found.append(SHAPES[shape])
    return [replace(case, device=device, dtype=dtype) for dtype in dtypes for case in found]


def _unpacked(backend: Route, **settings: Any) -> Route:
    return lambda poses, packed, iterations: backend(poses, unpack_weights(packed), iterations, **settings)


BACKENDS: dict[str, Route] = {
    "fused": partial(route_packed, backend="fused"),
    "streamed": partial(route_packed, backend="streamed"),
    "reference": _unpacked(route_reference),
    "full_shape": _unpacked(route_full_shape),
    "detached": _unpacked(route_reference, gradient="last"),
}
"""What is compared, `fused` on a GPU only (on a CPU it is interpreted). `detached`: as public code that lets
a gradient through its last iteration only: less work, for another gradient."""


def forward(case: Case, backend: str) -> Callable[[], Tensor]:
    """Return the forward pass of a backend without autograd, as a call without arguments."""
    poses, weights, _ = (operand.detach() for operand in case.operands())
    return lambda: BACKENDS[backend](poses, weights, case.iterations)


def forward_backward(case: Case, backend: str) -> Callable[[], tuple[Tensor, ...]]:
    """Return forward and backward pass of a backend as a call; it returns result and gradients."""
    poses, weights, grad = case.operands()

    def run() -> tuple[Tensor, ...]:
        parent_poses = BACKENDS[backend](poses, weights, case.iterations)
        return (parent_poses.detach(), *torch.autograd.grad(parent_poses, (poses, weights), grad))

    return run


# What a backend that does not fit ends with: torch reports a full CPU memory as a RuntimeError.
FAILURES = (RuntimeError, MemoryError)
_PASSES = {"forward": forward, "forward+backward": forward_backward}


def goals(case: Case = MNIST, budget_s: float = 40.0) -> Figures:
    """Measure the named figures of the routing benchmark in one run, forward and backward.

    Args:
        case: the shape, device and dtype; the figures are meant for `MNIST` in fp32 on a CPU.
        budget_s: seconds for all times.

    Returns:
        speedup_vs_reference, speedup_vs_full_shape: ratios of median times of the backend that `auto` takes.
        share_of_gemm_rate: its FLOP over its time, against a plain matrix product's rate.
        saved_bytes_per_image: live between forward and backward pass, layout copies included, weights not;
            at `case.iterations`, and `saved_bytes_per_image_r10` at 10.
        peak_bytes: above inputs, outputs and gradients.
        memory_ratio_vs_reference: ratio of peak bytes.
        cifar10_peak_bytes: as peak_bytes, for as many images of the CIFAR-10 network.
        step_r3_over_r1: a whole training step of the MNIST network with 3 routing iterations over one with 1.
        And the numbers that they are made of, units in the names.
    """
    from capsdist.bench.training import step_figures, step_rows  # needs more packages than routing does

    poses, weights, _ = case.operands()
    ours = explain(poses, unpack_weights(weights), case.iterations).backend
    product, product_flop = matrix_product(case.device, case.dtype)
    runs = {backend: forward_backward(case, backend) for backend in (ours, "reference", "full_shape")}
    times = time_side_by_side({**runs, "matrix_product": product}, budget_s=0.7 * budget_s)
    median_s = {name: timing.median_s for name, timing in times.items()}
    peak = {backend: peak_bytes(runs[backend], case.device) for backend in (ours, "reference")}
    gemm_rate = product_flop / median_s["matrix_product"]
    cifar10 = replace(case, num_children=CIFAR10.num_children)
    precision = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[case.dtype]
    steps = step_rows(
        "mnist_paper",
        num_images=case.num_images,
        device=case.device,
        precision=precision,
        budget_s=0.3 * budget_s,
    )
    return {
        "speedup_vs_reference": median_s["reference"] / median_s[ours],
        "speedup_vs_full_shape": median_s["full_shape"] / median_s[ours],
        "share_of_gemm_rate": case.flop / median_s[ours] / gemm_rate,
        "saved_bytes_per_image": _saved_bytes_per_image(case, ours),
        "saved_bytes_per_image_r10": _saved_bytes_per_image(replace(case, iterations=10), ours),
        "peak_bytes": peak[ours],
        "memory_ratio_vs_reference": peak["reference"] / peak[ours],
        "cifar10_peak_bytes": peak_bytes(forward_backward(cifar10, ours), case.device),
        "step_r3_over_r1": step_figures(steps)["step_r3_over_r1"],
        **{f"{backend}_ms": 1e3 * median_s[backend] for backend in runs},
        "reference_peak_bytes": peak["reference"],
        "gemm_gflop_per_s": gemm_rate / 1e9,
        "num_runs": len(times[ours].seconds),
        "num_step_runs": min(row["num_runs"] for row in steps),
    }


def try_goals(case: Case, budget_s: float) -> Row:
    """Return `goals` and `other_goals` to four digits, or the `error` that they end with.

    So what a table has found stays. Other routings have half of the budget.
    """
    # needs pydantic, which a machine with a GPU may lack
    from capsdist.bench.other_routings import other_goals

    try:
        figures = goals(case, budget_s / 2) | other_goals(case.device, budget_s / 2, case.num_images)
        return {name: float(f"{value:.4g}") for name, value in figures.items()}
    except FAILURES as error:
        return {"error": _first_line(error)}


def table(
    cases: Iterable[Case], budget_s: float = 15.0, backends: Iterable[str] = tuple(BACKENDS)
) -> Iterator[Row]:
    """Yield a row for each case, pass and backend: sizes, times, memory; a backend that fails has an `error`.

    `budget_s`: seconds for the times of all backends in one pass of one case. `backends`: of `BACKENDS`.
    `share_of_roofline`: the least time that the FLOP of `streamed` and one pass over operands and results
    take on this device (`ceilings`), over the median.
    """
    ceilings: dict[tuple[str, str], Ceilings] = {}
    for case in cases:
        kind = (case.device, case.dtype)
        if kind not in ceilings:
            ceilings[kind] = measure_ceilings(*kind)
        for name, make in _PASSES.items():
            runs = {backend: make(case, backend) for backend in _backends(case.device, backends)}
            memory: dict[str, Row] = {backend: _memory(case, backend, run) for backend, run in runs.items()}
            fit = {backend: run for backend, run in runs.items() if "error" not in memory[backend]}
            times = _times(fit, memory, budget_s)
            flop = case.forward_flop if name == "forward" else case.flop
            floor_s = ceilings[kind].floor_s(flop, case.least_bytes(name))
            for backend in runs:
                row: Row = {"backend": backend, "pass": name, **asdict(case), **memory[backend]}
                if backend in times:
                    row |= times[backend].summary()
                    row["share_of_roofline"] = floor_s / times[backend].median_s
                yield row


def describe(row: Row) -> str:
    """Return a row of the table as one line for people."""
    sizes = (
        f"B={row['num_images']} I={row['num_children']} J={row['num_parents']} r={row['iterations']} "
        f"{row['dtype']}"
    )
    head = f"{sizes:<37} {row['pass']:<17} {row['backend']:<10}"
    if "error" in row:
        return f"{head} failed: {row['error']}"
    return (
        f"{head} {1e3 * row['median_s']:8.1f} ms  {100 * row['share_of_roofline']:5.1f} % of roofline"
        f"  peak {row['peak_mb']:7.1f} MB  kept {row['saved_mb_per_image']:.3f} MB an image"
    )


def _backends(device: str, backends: Iterable[str]) -> list[str]:
    return [backend for backend in backends if backend != "fused" or torch.device(device).type != "cpu"]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _times(
    runs: dict[str, Callable[[], object]], found: dict[str, Row], budget_s: float
) -> dict[str, Timing]:
    """Time backends side by side; of one that fails now, note its error in `found` and go on without."""

    def run(backend: str) -> object:
        try:
            return runs[backend]()
        except FAILURES as error:
            found[backend] = {"error": _first_line(error)}
            raise

    while runs:
        try:
            calls = {backend: partial(run, backend) for backend in runs}
            return time_side_by_side(calls, budget_s=budget_s, max_rounds=15)
        except FAILURES:
            left = {backend: call for backend, call in runs.items() if "error" not in found[backend]}
            if left == runs:
                raise
            runs = left
    return {}


def _memory(case: Case, backend: str, run: Callable[[], object]) -> Row:
    try:
        peak = peak_bytes(run, case.device)
    except FAILURES as error:
        return {"error": _first_line(error)}
    return {"peak_mb": peak / 1e6, "saved_mb_per_image": _saved_bytes_per_image(case, backend) / 1e6}


def _saved_bytes_per_image(case: Case, backend: str) -> float:
    """Bytes an image that autograd keeps, the weights aside: they exist once, whatever the batch."""
    poses, weights, _ = case.operands()
    kept = saved_bytes(lambda: BACKENDS[backend](poses, weights, case.iterations), exclude=[weights])
    return kept / case.num_images
