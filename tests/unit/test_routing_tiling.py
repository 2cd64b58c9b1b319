"""How work is cut: pieces cover everything once, and buffers stay bounded at any shape."""

from __future__ import annotations

import itertools

import pytest
import torch

from capsdist.routing.tiling import Plan, Scratch, plan_tiles, slices

MNIST = torch.Size([10, 16, 8, 1152])  # J, E, D, I
SHAPES = [
    MNIST,
    torch.Size([10, 16, 8, 9216]),  # CIFAR-10
    torch.Size([1000, 16, 8, 6272]),  # ImageNet
    torch.Size([1000, 16, 8, 64]),
    torch.Size([1, 1, 1, 1]),
    torch.Size([3, 64, 64, 101]),
    torch.Size([2, 4, 2, 1_000_003]),
]


def plan(num_images: int, shape: torch.Size, rows: int = 2, poses_itemsize: int = 4) -> Plan:
    return plan_tiles(num_images, shape, rows=rows, itemsize=4, poses_itemsize=poses_itemsize, device="cpu")


def scratch_bytes(plan: Plan, shape: torch.Size, poses_itemsize: int) -> int:
    """Bytes of all buffers of a backward pass in fp32: it needs more than the forward pass."""
    num_parents, dim_parent, dim_child, num_children = shape
    tiled = plan.children < num_children
    chunk = (2 * dim_child + 3) * num_parents * plan.images * plan.children
    weights = 2 * num_parents * dim_parent * dim_child * plan.children if tiled else 0
    poses = plan.block * dim_child * plan.children * (1 + tiled)
    wide = plan.block * dim_child * num_children if poses_itemsize < 4 else 0
    small = plan.images * plan.children * (dim_child + 1)
    return 4 * (chunk + weights + poses + wide + small)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_images", [1, 7, 128, 4096])
@pytest.mark.parametrize("poses_itemsize", [2, 4])
def test_buffers_stay_below_64_mb(shape: torch.Size, num_images: int, poses_itemsize: int) -> None:
    chosen = plan(num_images, shape, poses_itemsize=poses_itemsize)
    assert min(chosen.block, chosen.children, chosen.images) >= 1
    assert scratch_bytes(chosen, shape, poses_itemsize) <= 64e6


def test_more_threads_bring_more_cache() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = plan(128, MNIST)
        torch.set_num_threads(2)
        together = plan(128, MNIST)
    finally:
        torch.set_num_threads(threads)
    assert alone.images * alone.children < together.images * together.children


@pytest.mark.parametrize("rows", [1, 2])
def test_products_have_enough_images(rows: int) -> None:
    assert plan(128, MNIST, rows).images >= 8
    assert plan(3, MNIST, rows).images == 3


def test_tiles_of_many_children_are_aligned() -> None:
    chosen = plan(128, torch.Size([10, 16, 8, 9216]))
    assert chosen.children < 9216
    assert chosen.children % 16 == 0
    assert chosen.images % 8 == 0


@pytest.mark.parametrize(("length", "size"), list(itertools.product([0, 1, 5, 16], [1, 3, 5, 100])))
def test_slices_cover_everything_once(length: int, size: int) -> None:
    covered = [i for piece in slices(length, size) for i in range(length)[piece]]
    assert covered == list(range(length))


def test_scratch_reuses_its_buffers() -> None:
    scratch = Scratch(torch.float32, torch.device("cpu"))
    first = scratch.take("a", 4, 6)
    assert scratch.take("a", 2, 3).data_ptr() == first.data_ptr()
    assert scratch.take("b", 4, 6).data_ptr() != first.data_ptr()


def test_scratch_copies_only_what_does_not_fit() -> None:
    scratch = Scratch(torch.float32, torch.device("cpu"))
    fits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert scratch.fit("a", fits) is fits
    torch.testing.assert_close(scratch.fit("a", fits.T), fits.T)
    assert scratch.fit("a", fits.T).is_contiguous()
    assert scratch.fit("a", fits.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("part", [slice(0, 2), (..., slice(1, 3))])
def test_sums_reach_the_target_directly_or_at_the_end(part) -> None:
    scratch, target = Scratch(torch.float32, torch.device("cpu")), torch.ones(4, 3)
    with scratch.adding_to("sums", target, part) as sums:
        assert sums is not None
        assert sums.is_contiguous()
        sums += 2
    expected = torch.ones(4, 3)
    expected[part] = 3
    assert torch.equal(target, expected)


def test_no_target_no_sums() -> None:
    with Scratch(torch.float32, torch.device("cpu")).adding_to("sums", None, slice(0, 2)) as sums:
        assert sums is None
