"""What the routing benchmark measures is what it says; no figure is judged here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from capsdist.bench.full_shape import route_full_shape
from capsdist.bench.other_routings import LATER, conv_run, em_run, later_run
from capsdist.bench.routing import (
    BACKENDS,
    MNIST,
    Case,
    cases,
    describe,
    forward_backward,
    goals,
    table,
    try_goals,
)
from capsdist.routing import route_reference

TINY = Case(num_images=3, num_children=20)
NAMED = {
    "speedup_vs_reference", "speedup_vs_full_shape", "share_of_gemm_rate", "memory_ratio_vs_reference",
    "saved_bytes_per_image", "peak_bytes", "step_r3_over_r1",
}  # fmt: skip
OTHERS = (
    {f"{kind}_saved_bytes_ratio" for kind in ("em", "conv", *LATER)}
    | {f"{kind}_speedup_vs_reference" for kind in ("em", *LATER)}
    | {"conv_speedup_vs_unfold"}
)
SAME = ["streamed", "reference", "full_shape"]


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_full_shape_baseline_has_the_references_numbers(iterations: int) -> None:
    generator = torch.Generator().manual_seed(iterations)
    poses, weights, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 7, 4), (7, 5, 4, 6), (5, 6))
    )
    expected = route_reference(poses, weights, iterations, bias=bias)
    found = route_full_shape(poses, weights, iterations, bias=bias)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", SAME)
def test_all_forms_that_are_compared_compute_the_same(backend: str) -> None:
    expected = forward_backward(TINY, "reference")()
    for found, wanted in zip(forward_backward(TINY, backend)(), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [partial(em_run, num_images=2), partial(conv_run, num_images=2, side=7)]
    + [partial(later_run, name, num_images=2) for name in LATER],
)
def test_the_runs_of_other_routings_compute_the_same(make: Callable[[str], Any]) -> None:
    ours, votes = make("streamed"), make("reference")
    for found, wanted in zip(ours(), votes(), strict=True):
        # float32 and fresh inputs: EM's sums cancel, and differ by up to 2e-4 of the largest element
        torch.testing.assert_close(found, wanted, atol=1e-3 * float(wanted.abs().max()), rtol=0)
    assert 0 < ours.saved_bytes < votes.saved_bytes


def in_place_product(total: list[int], left: list[int], right: list[int], **_: object) -> int:
    """FLOP of the in-place products, which torch's counter does not know."""
    return 2 * math.prod(left) * right[-1]


def test_the_detached_backend_has_the_same_poses_and_another_gradient() -> None:
    [poses, *gradients], [expected, *whole] = (forward_backward(TINY, f)() for f in ("detached", "reference"))
    torch.testing.assert_close(poses, expected, atol=0, rtol=0)
    assert not any(torch.allclose(found, full) for found, full in zip(gradients, whole, strict=True))


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_flop_are_those_that_torch_counts(iterations: int) -> None:
    case = replace(TINY, iterations=iterations)
    in_place = {torch.ops.aten.addmm_: in_place_product, torch.ops.aten.baddbmm_: in_place_product}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        forward_backward(case, "streamed")()
    assert counter.get_total_flops() == case.flop


def test_flop_of_the_papers_network() -> None:
    assert MNIST.flop == 17 * 2 * 128 * 1152 * 10 * 8 * 16  # 6.4 GFLOP


def test_goals_name_all_figures() -> None:
    figures = goals(TINY, budget_s=0)
    assert set(figures) >= NAMED
    assert all(value > 0 for value in figures.values())


def test_table_has_a_row_for_each_case_pass_and_backend() -> None:
    rows = list(table([TINY, replace(TINY, iterations=1)], budget_s=0))
    assert len(rows) == 2 * 2 * (len(BACKENDS) - 1)  # no kernels on a CPU
    assert len({(row["iterations"], row["pass"], row["backend"]) for row in rows}) == len(rows)
    assert all(row["median_s"] > 0 and row["share_of_roofline"] > 0 for row in rows)
    assert all("ms" in describe(row) for row in rows)


def test_least_bytes_are_one_pass_over_operands_and_results() -> None:
    poses, weights, grad = TINY.operands()
    forward = sum(tensor.numel() * tensor.itemsize for tensor in (poses, weights, grad))
    assert (TINY.least_bytes("forward"), TINY.least_bytes("forward+backward")) == (forward, 3 * forward)
    assert replace(TINY, dtype="bfloat16").least_bytes("forward") == forward / 2


def test_the_whole_table_has_every_network_and_many_iterations() -> None:
    found = cases(128, "cpu", ["float32", "bfloat16"])
    assert {(case.num_children, case.num_parents) for case in found} == {
        (1152, 10), (3200, 10), (9216, 10), (6272, 1000),
    }  # fmt: skip
    assert {case.iterations for case in found} >= {1, 3, 10}
    assert {case.dtype for case in found} == {"float32", "bfloat16"}


def test_a_backend_that_runs_out_of_memory_keeps_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> torch.Tensor:
        return torch.empty(2**60)

    monkeypatch.setitem(BACKENDS, "reference", too_large)
    failed = [row for row in table([TINY], budget_s=0) if "error" in row]
    assert [(row["backend"], row["pass"]) for row in failed] == [
        ("reference", "forward"),
        ("reference", "forward+backward"),
    ]
    assert all("failed: " in describe(row) for row in failed)


def test_a_backend_that_fails_while_it_is_timed_keeps_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, calls = BACKENDS["reference"], []

    def too_large_in_time(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return torch.empty(2**60) if len(calls) > 3 else reference(*arguments)

    monkeypatch.setitem(BACKENDS, "reference", too_large_in_time)
    rows = list(table([TINY], budget_s=0, backends=["streamed", "reference"]))
    assert [("error" in row, "median_s" in row) for row in rows] == [(False, True), (True, False)] * 2


def test_the_job_prints_the_figures_as_its_last_line(repo: Path) -> None:
    command = [
        sys.executable,
        repo / "jobs/bench_routing.py",
        "--goals",
        "--num-images",
        "2",
        "--budget-s",
        "0",
    ]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) >= NAMED | OTHERS


def test_large_weights_exist_once() -> None:
    [_, first, _], [_, second, _] = TINY.operands(), TINY.operands()
    assert first is second
    assert replace(TINY, iterations=1).operands()[1] is not first


def test_a_table_may_be_of_a_few_shapes_and_backends() -> None:
    assert {case.num_children for case in cases(4, "cpu", ["float32"], ["cifar10", "multimnist"])} == {
        9216, 3200,
    }  # fmt: skip
    assert {row["backend"] for row in table([TINY], 0, ["streamed", "fused"])} == {"streamed"}


def test_figures_that_fail_leave_the_table_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> torch.Tensor:
        return torch.empty(2**60)

    monkeypatch.setitem(BACKENDS, "reference", too_large)
    assert set(try_goals(TINY, budget_s=0)) == {"error"}
