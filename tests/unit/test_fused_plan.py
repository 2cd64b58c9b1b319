"""Plans of the fused form cover every shape, and its kernels compile for the GPU that they are made for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from capsdist.routing.fused.plan import Sizes, candidates, default_plan, fits_whole

MNIST = Sizes(128, 1152, 10, 8, 16, operand_bytes=2)
IMAGENET = Sizes(256, 6272, 1000, 8, 16, operand_bytes=2)
ODD = Sizes(3, 37, 7, 5, 19, operand_bytes=4)
KERNELS = ["totals", "normalise", "sweep", "poses", "state", "weights"]
H100_MULTIPROCESSORS, H100_SHARED_BYTES = 132, 232_448  # NVIDIA H100 data sheet: 227 KB a block


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", [MNIST, IMAGENET, ODD], ids=["mnist", "imagenet", "odd"])
def test_every_plan_is_one_that_kernels_can_take(kernel: str, sizes: Sizes) -> None:
    plans = candidates(kernel, sizes, H100_MULTIPROCESSORS)
    assert plans[0] == default_plan(kernel, sizes, H100_MULTIPROCESSORS)
    assert len(set(plans)) == len(plans) <= 24
    for plan in plans:
        tiles = -(-sizes.num_children // plan.children)
        steps = -(-tiles // plan.splits)
        # Each range has a tile, and each tile is in a range.
        assert (plan.splits - 1) * steps < tiles <= plan.splits * steps
        assert plan.images == 16 * plan.warps
        assert plan.children * sizes.padded[0] >= 16  # the least depth of a product
        assert 1 <= plan.parents <= sizes.num_parents


@pytest.mark.parametrize(("sizes", "whole"), [(MNIST, True), (IMAGENET, False), (ODD, False)])
def test_all_parents_at_once_only_where_they_fit(sizes: Sizes, whole: bool) -> None:
    assert fits_whole(sizes) == whole
    assert (default_plan("sweep", sizes, H100_MULTIPROCESSORS).parents == sizes.num_parents) == whole


def test_parts_of_the_totals_are_fewer_than_children() -> None:
    cifar10 = Sizes(128, 9216, 10, 8, 16, operand_bytes=2)
    for plan in candidates("totals", cifar10, H100_MULTIPROCESSORS):
        assert plan.splits <= 3 * H100_MULTIPROCESSORS < cifar10.num_children / 16


def compiled(which: str) -> dict[str, int]:
    """Compile kernels for an H100; return the most shared memory that a program of each takes."""
    script = Path(__file__).with_name("compile_fused.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), which],
        capture_output=True,
        text=True,
        env=environment | {"TRITON_DEFAULT_FP_FUSION": "1"},
    )
    assert done.returncode == 0, done.stderr
    bytes_of: dict[str, int] = {}
    for line in done.stdout.splitlines():
        kernel, shared = line.split()
        bytes_of[kernel] = max(bytes_of.get(kernel, 0), int(shared))
    return bytes_of


EVERY_KERNEL = {
    "begin_gradients",
    "finish_gradients",
    "finish_totals",
    "normalise",
    "sum_poses_gradient",
    "sum_state_gradient",
    "sum_totals",
    "sum_weights_gradient",
    "sweep",
}


@pytest.mark.parametrize("which", ["few", pytest.param("many", marks=pytest.mark.slow)])
def test_every_kernel_compiles_for_an_h100_and_fits_into_it(which: str) -> None:
    bytes_of = compiled(which)
    assert bytes_of.keys() == EVERY_KERNEL
    assert max(bytes_of.values()) <= H100_SHARED_BYTES
