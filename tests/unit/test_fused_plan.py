"""Plans of `fused` cover every shape, and its kernels compile for the GPU that they are made for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from capsdist.routing.dynamic.fused import launch_backward, launch_forward, plan
from capsdist.routing.dynamic.fused.call import Call
from capsdist.routing.dynamic.fused.plan import Sizes, candidates, default_plan, fits_whole

MNIST = Sizes(128, 1152, 10, 8, 16, operand_bytes=2)
IMAGENET = Sizes(256, 6272, 1000, 8, 16, operand_bytes=2)
ODD = Sizes(3, 37, 7, 5, 19, operand_bytes=4)
WIDE = Sizes(128, 1152, 3, 70, 130, operand_bytes=2)
KERNELS = ["totals", "normalise", "sweep", "poses", "state", "weights"]
H100_MULTIPROCESSORS, H100_SHARED_BYTES = 132, 232_448  # NVIDIA H100 data sheet: 227 KB a block
RTX_4090_SHARED_BYTES = 101_376  # CUDA C++ programming guide, compute capability 8.9: 99 KB a block


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", [MNIST, IMAGENET, ODD, WIDE], ids=["mnist", "imagenet", "odd", "wide"])
def test_every_plan_is_one_that_kernels_can_take(kernel: str, sizes: Sizes) -> None:
    plans = candidates(kernel, sizes, H100_MULTIPROCESSORS)
    assert plans[0] == default_plan(kernel, sizes, H100_MULTIPROCESSORS)
    assert len(set(plans)) == len(plans) <= 24
    for one in plans:
        tiles = -(-sizes.num_children // one.children)
        steps = -(-tiles // one.splits)
        # Each range has a tile, and each tile is in a range.
        assert (one.splits - 1) * steps < tiles <= one.splits * steps
        assert one.images == 16 * one.warps
        assert one.children * sizes.padded[0] >= 16  # the least depth of a product
        assert 1 <= one.parents <= sizes.num_parents


SMALLER_GPU = replace(MNIST, shared_bytes=166_912)  # NVIDIA A100: 163 KB a block


@pytest.mark.parametrize(
    ("sizes", "whole"),
    [(MNIST, True), (IMAGENET, False), (ODD, False), (WIDE, False), (SMALLER_GPU, False)],
    ids=["mnist", "imagenet", "odd", "wide", "a100"],
)
def test_all_parents_at_once_only_where_they_fit(sizes: Sizes, whole: bool) -> None:
    assert fits_whole(sizes) == whole
    assert (default_plan("sweep", sizes, H100_MULTIPROCESSORS).parents == sizes.num_parents) == whole


def test_plans_are_found_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)  # a user of a container, whom nobody knows
    monkeypatch.setattr(plan, "_plans", None)
    with pytest.raises(RuntimeError):
        Path.home()
    assert plan._known() == {}
    plan._write({})


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], plan.Plan]:
    """Return the plan that a GPU's process takes for MNIST's totals, without a search, from the file."""
    gpu = SimpleNamespace(name="GPU", multi_processor_count=H100_MULTIPROCESSORS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(plan, "_file", lambda: tmp_path / "plans.json")
    monkeypatch.setattr(plan, "_checked", set())

    def first() -> plan.Plan:
        monkeypatch.setattr(plan, "_plans", None)
        plan._checked.clear()
        cuda = torch.device("cuda")
        return plan.launch_tuned("totals", MNIST, "x", cuda, lambda chosen: chosen, search=False)

    return first


@pytest.mark.parametrize("value", [4096, 1.0, True, "1", None, -1, 0])
def test_a_plan_in_the_file_that_no_search_would_find_is_not_taken(tuned, tmp_path: Path, value) -> None:
    default = default_plan("totals", MNIST, H100_MULTIPROCESSORS)
    other = candidates("totals", MNIST, H100_MULTIPROCESSORS)[-1]
    shared = replace(MNIST, num_images=plan.power_of_two(MNIST.num_images))
    key = "/".join(["GPU", "totals", "x", *map(str, asdict(shared).values())])
    assert other not in (default, replace(default, splits=1))
    plan._write({key: other})
    assert [path.name for path in tmp_path.iterdir()] == ["plans.json"]
    assert tuned() == other
    plan._write({key: replace(other, splits=value)})
    assert tuned() == default
    assert type(tuned().splits) is int


def test_parts_of_the_totals_are_fewer_than_children() -> None:
    cifar10 = Sizes(128, 9216, 10, 8, 16, operand_bytes=2)
    for one in candidates("totals", cifar10, H100_MULTIPROCESSORS):
        assert one.splits <= 3 * H100_MULTIPROCESSORS < cifar10.num_children / 16


LARGE = [  # B, I, J, D, E
    pytest.param((4, 600_000, 20, 8, 16), id="children"),
    pytest.param((4, 64, 100_000, 8, 16), id="parents"),
    pytest.param((600_000, 64, 20, 8, 16), id="images"),
    pytest.param((600_000, 64, 10, 8, 16), id="images-all-parents-at-once"),
    pytest.param((64, 6_000, 10_000, 300, 300), id="dimensions"),
]


@pytest.mark.parametrize("sizes", LARGE)
def test_grids_are_no_larger_than_cuda_launches(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int, int, int]
) -> None:
    grids: list[tuple[int, ...]] = []

    def tuned(kernel: str, sizes: Sizes, _variant: str, _device: Any, launch: Any, **_: Any) -> Any:
        return launch(default_plan(kernel, sizes, H100_MULTIPROCESSORS))

    for module in (launch_forward, launch_backward):
        monkeypatch.setattr(module, "launch_tuned", tuned)
        monkeypatch.setattr(module, "start", lambda _kernel, grid, *_, **__: grids.append(grid))
    num_images, num_children, num_parents, child_dim, parent_dim = sizes
    poses = torch.empty(num_images, num_children, child_dim, device="meta")  # of which nothing is stored
    weights = torch.empty(num_parents, parent_dim, child_dim, num_children, device="meta")
    call = Call.prepare(poses, weights, None, False, torch.float32)
    parent_poses, totals = launch_forward.route_forward(call, None, 2, torch.float32)
    launch_backward.route_backward(
        call, totals, parent_poses, poses_dtype=poses.dtype, weights_dtype=weights.dtype, want_bias=True
    )
    # CUDA C++ programming guide, technical specifications: 2^31 - 1, and 65,535 along the others.
    assert all(0 < first < 2**31 for first, *_ in grids)
    assert all(0 < size < 2**16 for _, *others in grids for size in others)
    assert max(first for first, *_ in grids) >= 2**16  # along another axis, this would not be launched


def compiled(which: str) -> dict[str, int]:
    """Compile kernels for a GPU; return the most shared memory that a program of each takes."""
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


MANY_PARENTS = {
    "begin_gradients",
    "finish_gradients",
    "finish_totals",
    "normalise",
    "sum_poses_gradient",
    "sum_state_gradient",
    "sum_totals",
    "sum_weights_gradient",
}
WIDE_CAPSULES = {
    "normalise_wide",
    "sum_wide_poses_gradient",
    "sum_wide_state_gradient",
    "sum_wide_totals",
    "sum_wide_weights_gradient",
}


@pytest.mark.parametrize("which", ["few", pytest.param("many", marks=pytest.mark.slow)])
def test_every_kernel_compiles_for_an_h100_and_fits_into_it(which: str) -> None:
    bytes_of = compiled(which)
    assert bytes_of.keys() == MANY_PARENTS | WIDE_CAPSULES | {"sweep"}
    assert max(bytes_of.values()) <= H100_SHARED_BYTES


@pytest.mark.slow
def test_kernels_fit_into_a_gpu_with_less_shared_memory() -> None:
    bytes_of = compiled("smaller")
    assert bytes_of.keys() == MANY_PARENTS
    assert max(bytes_of.values()) <= RTX_4090_SHARED_BYTES
