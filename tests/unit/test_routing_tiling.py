"""How work is cut: pieces cover everything once, and buffers stay bounded at any shape."""

from __future__ import annotations

import itertools

import pytest
import torch

from capsdist.routing.common.tiling import Pieces, Scratch, slices
from capsdist.routing.dynamic import cuts
from capsdist.routing.dynamic.cuts import Plan, plan_tiles

MNIST = torch.Size([10, 16, 8, 1152])  # J, E, D, I
SHAPES = [
    MNIST,
    torch.Size([10, 16, 8, 9216]),  # CIFAR-10
    torch.Size([1000, 16, 8, 6272]),  # ImageNet
    torch.Size([1000, 16, 8, 64]),
    torch.Size([7_001, 16, 8, 50]),
    torch.Size([21_841, 16, 8, 6272]),
    torch.Size([60_000, 16, 8, 9]),
    torch.Size([1_000_000, 1, 1, 3]),
    torch.Size([1, 1, 1, 1]),
    torch.Size([3, 64, 64, 101]),
    torch.Size([10, 512, 512, 40]),
    torch.Size([2, 4, 2, 1_000_003]),
]


def plan(
    num_images: int, shape: torch.Size, rows: int = 2, poses_itemsize: int = 4, fit: bool = True
) -> Plan:
    return plan_tiles(
        num_images,
        shape,
        rows=rows,
        itemsize=4,
        poses_itemsize=poses_itemsize,
        device="cpu",
        weights_fit=fit,
    )


def scratch_bytes(plan: Plan, shape: torch.Size, poses_itemsize: int, fit: bool) -> int:
    """Bytes of all buffers of a backward pass in fp32: it needs more than the forward pass."""
    num_parents, parent_dim, child_dim, num_children = shape
    n, m, j, b = plan.images, plan.children, plan.parents, plan.block
    chunk = n * m * (3 * (num_parents + 1) + 2 * j * child_dim) + n * j * 3 * parent_dim
    small = n * m * (child_dim + 1) + 2 * num_parents * m  # gradient of poses, a sum; priors
    copies = 2 * j * parent_dim * child_dim * m if m < num_children or not fit else 0
    poses = b * child_dim * (2 * m + (num_children if poses_itemsize < 4 else 0))
    states = 5 * b * num_parents * parent_dim + 6 * cuts.SQUASH_NUMBERS
    return 4 * (chunk + small + copies + poses + states)


@pytest.mark.property(
    "scratch", "scratch stays below 64 MB whatever the shape, gradients of 16-bit weights aside"
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_images", [1, 7, 128, 4096])
@pytest.mark.parametrize("poses_itemsize", [2, 4])
@pytest.mark.parametrize("fit", [True, False])
@pytest.mark.parametrize("num_threads", [1, 64])
def test_buffers_stay_below_64_mb(
    monkeypatch: pytest.MonkeyPatch,
    shape: torch.Size,
    num_images: int,
    poses_itemsize: int,
    fit: bool,
    num_threads: int,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    chosen = plan(num_images, shape, poses_itemsize=poses_itemsize, fit=fit)
    assert min(chosen.block, chosen.children, chosen.images, chosen.parents) >= 1
    assert scratch_bytes(chosen, shape, poses_itemsize, fit) <= 64e6


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_are_read_as_they_are_or_copied_once(dtype: torch.dtype) -> None:
    scratch = Scratch(torch.float32, torch.device("cpu"))
    tensor = torch.randn(4, 3, 2, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    pieces = Pieces(scratch, "weights", tensor)
    for parents, children in itertools.product(slices(4, 3), slices(10, 4)):
        piece = pieces.at(parents, children)
        assert torch.equal(piece, tensor[parents, ..., children].flatten(2).float())
        assert pieces.at(parents, children).data_ptr() == piece.data_ptr()
    whole = pieces.at(slice(1, 3), slice(0, 10))
    assert (whole.data_ptr() == tensor[1].data_ptr()) == (dtype == torch.float32)


@pytest.mark.parametrize("sizes", [(4, 10), (3, 4), (1, 1)])
def test_sums_of_pieces_reach_every_number_once(sizes: tuple[int, int]) -> None:
    target = torch.zeros(4, 3, 2, 10)
    pieces = Pieces(Scratch(torch.float32, torch.device("cpu")), "sums", target, sums=True)
    for parents, children in itertools.product(slices(4, sizes[0]), slices(10, sizes[1])):
        for _ in range(2):
            piece = pieces.at(parents, children)
            piece += 1
    pieces.flush()
    pieces.flush()
    assert (target == 2).all()


def test_parents_are_cut_only_where_a_tile_would_have_few_children() -> None:
    assert plan(128, MNIST).parents == 10
    assert plan(128, torch.Size([100, 16, 8, 6272])).parents == 100
    many = plan(2, torch.Size([1000, 16, 8, 6272]))
    assert many.parents < 1000
    assert many.children >= 16
