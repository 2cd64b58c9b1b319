"""Properties of squash, lengths and margin loss, each broken by a mutant with a known defect."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mutants import margin_loss_of_softmax, squash_unguarded
from torch import Tensor

from capsdist.ops import lengths, margin_loss, squash


def gradient_at_zero(function: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of a batch in which one vector is zero."""
    vectors = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    vectors[1] = 0
    vectors.requires_grad_()
    function(vectors).sum().backward()
    assert vectors.grad is not None
    return vectors.grad


@pytest.mark.property("squash", "the gradient of squash and lengths is 0 at a zero vector")
@pytest.mark.parametrize("function", [squash, lengths])
def test_gradient_is_zero_at_zero_and_finite_elsewhere(function: Callable[[Tensor], Tensor]) -> None:
    grad = gradient_at_zero(function)
    assert grad.isfinite().all()
    assert (grad[1] == 0).all()
    assert (grad[0] != 0).all()


@pytest.mark.defect("squash", "squash with 0/0")
def test_gradient_of_unguarded_squash_is_not_a_number() -> None:
    assert gradient_at_zero(squash_unguarded)[1].isnan().all()


def test_unguarded_squash_is_squash_elsewhere() -> None:
    vectors = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(squash(vectors), squash_unguarded(vectors), atol=1e-14, rtol=0)


def loss_of_a_perfect_answer(loss: Callable[[Tensor, Tensor], Tensor], num_classes: int) -> float:
    """The loss of lengths that are 1 for the right class and 0 for all others."""
    perfect = torch.eye(num_classes)
    return float(loss(perfect, torch.arange(num_classes)).max())


@pytest.mark.property("margin", "a perfect answer has no margin loss")
@pytest.mark.parametrize("num_classes", [2, 10])
def test_a_perfect_answer_costs_nothing(num_classes: int) -> None:
    assert loss_of_a_perfect_answer(margin_loss, num_classes) == 0


@pytest.mark.defect("margin", "softmax of the lengths before the margin loss")
@pytest.mark.parametrize("num_classes", [2, 10])
def test_softmax_before_the_margin_loss_breaks_it(num_classes: int) -> None:
    assert loss_of_a_perfect_answer(margin_loss_of_softmax, num_classes) > 0.01
