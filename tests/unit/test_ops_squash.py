"""Squash and lengths: values, gradients, dtypes, extreme inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from capsdist.ops import lengths, squash, squash_backward


def vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_squash_of_known_vectors() -> None:
    # |s| = 5: v = s * 5 / 26; a unit vector is halved.
    found = squash(torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[15 / 26, 20 / 26], [0.0, 0.5], [0.0, 0.0]]))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_squash_and_lengths_along_any_dimension(dim: int) -> None:
    given = vectors(5, 3, 7)
    moved = squash(given.movedim(dim, -1)).movedim(-1, dim)
    torch.testing.assert_close(squash(given, dim), moved)
    torch.testing.assert_close(lengths(squash(given, dim), dim), moved.square().sum(dim).sqrt())


@pytest.mark.parametrize("function", [squash, lengths])
def test_gradients(function) -> None:
    given = vectors(4, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e-3, 1.0, 1e3])
def test_squash_backward_is_the_gradient_of_squash(scale: float) -> None:
    given, grad = (scale * vectors(3, 6, seed=2)).requires_grad_(), vectors(3, 6, seed=3)
    (expected,) = torch.autograd.grad(squash(given), given, grad)
    torch.testing.assert_close(squash_backward(given.detach(), grad), expected, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0, 300.0])
def test_any_dtype_and_size_stays_finite(dtype: torch.dtype, scale: float) -> None:
    given = (scale * vectors(8, 16, seed=4)).to(dtype).requires_grad_()
    squashed = squash(given)
    lengths(squashed).sum().backward()
    assert squashed.dtype == dtype
    assert squashed.isfinite().all()
    assert given.grad is not None
    assert given.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    given = vectors(50, 9, seed=5).to(dtype)
    assert torch.equal(squash(given), squash(given.float()).to(dtype))
    assert torch.equal(lengths(given), lengths(given.float()))
    assert lengths(given).dtype == torch.float32


def test_lengths_are_below_one() -> None:
    assert lengths(squash(1e6 * vectors(20, 3, seed=6))).max() <= 1
