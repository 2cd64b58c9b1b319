"""Offsets of the kernels of `fused` into arrays of more than 2^31 numbers, which no test could allocate."""

# ruff: noqa: E741
# pyright: reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from fused_cases import DEVICE
from torch import Tensor

from capsdist.routing.dynamic.fused.tiles import num_numbers, parent_tile, poses_tile, weights_tile

DP, EP, IT, BT = 2, 16, 8, 16  # a tile


@triton.jit
def write_weights(
    out, parent, child, dim, row,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    DP: tl.constexpr, EP: tl.constexpr, IT: tl.constexpr,
):  # fmt: skip
    offsets, _ = weights_tile(parent, child, dim, row, I, J, D, E, DP, EP, IT, 1)
    places = tl.arange(0, EP)[:, None] * (DP * IT) + tl.arange(0, DP * IT)[None, :]
    tl.store(out + places, offsets)


@triton.jit
def write_poses(
    out, image, child, dim, B,
    I: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr, IT: tl.constexpr,
):  # fmt: skip
    offsets, _ = poses_tile(image, child, dim, B, I, D, DP, BT, IT)
    places = tl.arange(0, BT)[:, None] * (DP * IT) + tl.arange(0, DP * IT)[None, :]
    tl.store(out + places, offsets)


@triton.jit
def write_parents(
    out, parent, image, row, B,
    J: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    offsets, _ = parent_tile(parent, image, row, B, J, E, EP, BT, 1)
    tl.store(out + tl.arange(0, BT)[:, None] * EP + tl.arange(0, EP)[None, :], offsets)


@triton.jit
def write_product(out, B, SIZE: tl.constexpr):
    tl.store(out, num_numbers(B, SIZE))


def counted(first: int, number: int, stride: int) -> Tensor:
    """Offsets of `number` neighbours along an axis, from the one at `first`."""
    return torch.arange(first, first + number, device=DEVICE) * stride


def needs_64_bits(expected: Tensor) -> bool:
    """Whether kernels that count in 32 bits, their known defect, would be elsewhere."""
    return bool((expected.int() != expected).any())


@pytest.mark.parametrize(
    ("num_children", "child_dim", "parent_dim"),
    [(600_000, 64, 64), (600_000, 4096, 16)],
    ids=["many-children", "wide-children"],
)
def test_weights_of_many_children(num_children: int, child_dim: int, parent_dim: int) -> None:
    child, dim, row = num_children - IT, child_dim - DP, parent_dim - EP
    out = torch.zeros(EP, DP * IT, dtype=torch.int64, device=DEVICE)
    write_weights[(1,)](out, 1, child, dim, row, num_children, 2, child_dim, parent_dim, DP, EP, IT)
    columns = counted(dim, DP, num_children)[:, None] + counted(child, IT, 1)
    rows = counted(parent_dim + row, EP, child_dim * num_children)
    expected = rows[:, None] + columns.flatten()
    assert torch.equal(out, expected)
    assert needs_64_bits(expected - parent_dim * child_dim * num_children)


def test_poses_of_many_images() -> None:
    num_images, num_children, child_dim = 1000, 600_000, 4
    image, child, dim = num_images - BT, num_children - IT, child_dim - DP
    out = torch.zeros(BT, DP * IT, dtype=torch.int64, device=DEVICE)
    write_poses[(1,)](out, image, child, dim, num_images, num_children, child_dim, DP, BT, IT)
    columns = counted(dim, DP, num_children)[:, None] + counted(child, IT, 1)
    expected = counted(image, BT, child_dim * num_children)[:, None] + columns.flatten()
    assert torch.equal(out, expected)
    assert needs_64_bits(expected)


def test_parents_of_many_images() -> None:
    num_images, num_parents, parent_dim = 2000, 100_000, 100
    parent, image, row = num_parents - 1, num_images - BT, parent_dim - EP
    out = torch.zeros(BT, EP, dtype=torch.int64, device=DEVICE)
    write_parents[(1,)](out, parent, image, row, num_images, num_parents, parent_dim, EP, BT)
    rows = counted(parent * num_images + image, BT, parent_dim)
    expected = rows[:, None] + counted(row, EP, 1)
    assert torch.equal(out, expected)
    assert needs_64_bits(expected)


def test_the_numbers_of_an_iteration() -> None:
    out = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    write_product[(1,)](out, 2048, 100_000 * 16)
    assert out.item() == 2048 * 100_000 * 16
    assert needs_64_bits(out)
