"""Squash and lengths: values, gradients, dtypes, extreme inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from capsdist.ops import lengths, squash, squash_backward

Form = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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


def of_length(exponent: int, dim: int) -> Tensor:
    """Float32 vectors in random directions, of lengths from 1 to 1.7 times 10^exponent."""
    directions = torch.randn(100, dim, dtype=torch.float64)
    directions /= directions.norm(dim=-1, keepdim=True)
    return (directions * 10.0**exponent * (1 + 0.7 * torch.rand(100, 1))).float()


def by_autograd(totals: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    given = totals.detach().requires_grad_()
    value = squash(given)
    return value.detach(), torch.autograd.grad(value, given, grad)[0]


def squash_of_0_1(totals: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The mutant: autograd squares the divisor 1 + n^2, which overflows."""
    given = totals.detach().requires_grad_()
    norm = torch.linalg.vector_norm(given, dim=-1, keepdim=True)
    value = given * (norm / (1 + norm * norm))
    return value.detach(), torch.autograd.grad(value, given, grad)[0]


def by_hand(totals: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return squash(totals), squash_backward(totals, grad)


def errors(form: Form, exponent: int, dim: int) -> tuple[float, float, float]:
    """The largest errors at 10^exponent: of values, of gradients relative to theirs, and to the incoming."""
    # of length 1: of a shorter one, intermediate results at 10^18 would be denormal
    totals, grad = of_length(exponent, dim), F.normalize(torch.randn(100, dim), dim=-1)
    value, found = (each.double() for each in form(totals, grad))
    exact, gradient = by_autograd(totals.double(), grad.double())
    norm, incoming = (each.double().norm(dim=-1, keepdim=True) for each in (totals, grad))
    wrong_value, wrong = value - exact, found - gradient
    return (
        float((wrong_value.norm(dim=-1) / exact.norm(dim=-1)).max()),
        float((wrong / (norm / (1 + norm**2) * incoming)).norm(dim=-1).max()),
        float((wrong / incoming).norm(dim=-1).max()),
    )


@pytest.mark.parametrize("form", [by_autograd, by_hand])
@pytest.mark.parametrize("dim", [1, 2, 16])
def test_value_and_gradient_are_accurate_over_the_range_that_is_promised(form: Form, dim: int) -> None:
    torch.seed()  # other vectors each time
    for exponent in range(-30, 20):
        value, gradient, absolute = errors(form, exponent, dim)
        if not -18 <= exponent <= 18:  # intermediate results or gradients are denormal
            assert absolute < 1e-21, exponent
        else:
            assert value < 1e-6, exponent
            assert gradient < 2e-6, exponent


def test_the_form_of_0_1_is_wrong_within_the_range() -> None:
    assert max(errors(squash_of_0_1, exponent, 16)[1] for exponent in range(13, 19)) > 0.1


@pytest.mark.parametrize("form", [by_autograd, by_hand])
@pytest.mark.parametrize("dim", [3, 16])
@pytest.mark.parametrize("scale", [1e-3, 1e8, 1e30])
def test_short_vectors_and_large_gradients_stay_finite(form: Form, dim: int, scale: float) -> None:
    for exponent in (-45, -38, -30, -23, -22, -19):
        value, gradient = form(of_length(exponent, dim), scale * torch.randn(100, dim))
        assert value.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_gradcheck_at_any_length(scale: float) -> None:
    given = (scale * vectors(3, 5, seed=7)).requires_grad_()
    assert torch.autograd.gradcheck(squash, given, eps=1e-6 * scale, atol=1e-8 / scale, rtol=1e-5)


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
