"""What is measured of routing: time and memory of each form, side by side, on random operands.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from capsdist.bench.full_shape import route_full_shape
from capsdist.bench.memory import peak_bytes, saved_bytes
from capsdist.bench.timer import time_side_by_side
from capsdist.routing import route_packed, route_reference, unpack_weights

__all__ = ["CIFAR10", "MNIST", "Case", "describe", "goals", "table"]

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

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return child poses [B, I, D], packed weights [J, E, D, I], a gradient [B, J, E]: fp32, seed 0."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device)

        poses = 0.3 * draw(self.num_images, self.num_children, self.child_dim)
        weights = 0.1 * draw(self.num_parents, self.parent_dim, self.child_dim, self.num_children)
        grad = draw(self.num_images, self.num_parents, self.parent_dim)
        return poses.requires_grad_(), weights.requires_grad_(), grad

    @property
    def flop(self) -> int:
        """FLOP of the streamed form's matrix products, forward and backward (its docstring counts them)."""
        pairs = self.num_images * self.num_children * self.num_parents
        return (7 * self.iterations - 4) * 2 * pairs * self.child_dim * self.parent_dim


MNIST = Case(num_images=128, num_children=1152)
CIFAR10 = Case(num_images=16, num_children=9216)


def _unpacked(form: Route) -> Route:
    return lambda poses, packed, iterations: form(poses, unpack_weights(packed), iterations)


FORMS: dict[str, Route] = {
    "streamed": partial(route_packed, form="streamed"),
    "reference": _unpacked(route_reference),
    "full_shape": _unpacked(route_full_shape),
}


def forward(case: Case, form: str) -> Callable[[], Tensor]:
    """Return the forward pass of a form without autograd, as a call without arguments."""
    poses, weights, _ = (operand.detach() for operand in case.operands())
    return lambda: FORMS[form](poses, weights, case.iterations)


def forward_backward(case: Case, form: str) -> Callable[[], tuple[Tensor, ...]]:
    """Return forward and backward pass of a form as a call; it returns result and gradients."""
    poses, weights, grad = case.operands()

    def run() -> tuple[Tensor, ...]:
        parent_poses = FORMS[form](poses, weights, case.iterations)
        return (parent_poses.detach(), *torch.autograd.grad(parent_poses, (poses, weights), grad))

    return run


def matrix_product(device: str, size: int = 2048) -> tuple[Callable[[], Tensor], float]:
    """Return a product of two square fp32 matrices as a call, and its FLOP: the machine's yardstick."""
    left, right = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    return lambda: left @ right, 2.0 * size**3


def goals(case: Case = MNIST, budget_s: float = 40.0) -> Figures:
    """Measure the named figures of the routing benchmark in one run, forward and backward, fp32.

    Returns:
        speedup_vs_reference, speedup_vs_full_shape: ratios of median times.
        share_of_gemm_rate: FLOP of the streamed form over its time, against a plain matrix product's rate.
        memory_ratio_vs_reference: ratio of peak bytes above inputs and outputs.
        And the numbers that they are made of, units in the names.
    """
    product, product_flop = matrix_product(case.device)
    runs = {form: forward_backward(case, form) for form in FORMS}
    times = time_side_by_side({**runs, "matrix_product": product}, budget_s=budget_s)
    median_s = {name: timing.median_s for name, timing in times.items()}
    peak = {form: peak_bytes(runs[form], case.device) for form in ("streamed", "reference")}
    gemm_rate = product_flop / median_s["matrix_product"]
    return {
        "speedup_vs_reference": median_s["reference"] / median_s["streamed"],
        "speedup_vs_full_shape": median_s["full_shape"] / median_s["streamed"],
        "share_of_gemm_rate": case.flop / median_s["streamed"] / gemm_rate,
        "memory_ratio_vs_reference": peak["reference"] / peak["streamed"],
        **{f"{form}_ms": 1e3 * median_s[form] for form in FORMS},
        **{f"{form}_peak_mb": bytes_ / 1e6 for form, bytes_ in peak.items()},
        "streamed_saved_mb_per_image": _saved_mb_per_image(case, "streamed"),
        "gemm_gflop_per_s": gemm_rate / 1e9,
        "num_runs": len(times["streamed"].seconds),
    }


def table(cases: list[Case], budget_s: float = 15.0) -> Iterator[Row]:
    """Yield a row for each case, form and pass: sizes, times, memory; a form that fails has an `error`."""
    for case in cases:
        for name, make in (("forward", forward), ("forward+backward", forward_backward)):
            runs = {form: make(case, form) for form in FORMS}
            memory: dict[str, Row] = {form: _memory(case, form, run) for form, run in runs.items()}
            fit = {form: run for form, run in runs.items() if "error" not in memory[form]}
            times = time_side_by_side(fit, budget_s=budget_s, max_rounds=15)
            for form in runs:
                timing = times[form].summary() if form in times else {}
                yield {"form": form, "pass": name, **asdict(case), **timing, **memory[form]}


def describe(row: Row) -> str:
    """Return a row of the table as one line for people."""
    sizes = f"B={row['num_images']} I={row['num_children']} J={row['num_parents']} r={row['iterations']}"
    if "error" in row:
        return f"{sizes:<28} {row['pass']:<17} {row['form']:<10} failed: {row['error']}"
    return (
        f"{sizes:<28} {row['pass']:<17} {row['form']:<10} {1e3 * row['median_s']:8.1f} ms"
        f"  peak {row['peak_mb']:7.1f} MB  kept {row['saved_mb_per_image']:.3f} MB an image"
    )


def _memory(case: Case, form: str, run: Callable[[], object]) -> Row:
    try:
        peak = peak_bytes(run, case.device)
    except (RuntimeError, MemoryError) as error:  # torch reports a full CPU memory as a RuntimeError
        return {"error": str(error).splitlines()[0]}
    return {"peak_mb": peak / 1e6, "saved_mb_per_image": _saved_mb_per_image(case, form)}


def _saved_mb_per_image(case: Case, form: str) -> float:
    """Megabytes an image that autograd keeps, the weights aside: they exist once, whatever the batch."""
    poses, weights, _ = case.operands()
    kept = saved_bytes(lambda: FORMS[form](poses, weights, case.iterations), exclude=[weights])
    return kept / case.num_images / 1e6
