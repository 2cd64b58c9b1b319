"""Every backend of routing has the range that `squash` promises: totals from 1e-18 to 1e19 in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from capsdist.routing import route


def results(poses: Tensor, weights: Tensor, grad: Tensor, backend: str, recompute: str) -> list[Tensor]:
    """Parent poses and the gradients of both operands, in float64."""
    given = [poses.clone().requires_grad_(), weights.clone().requires_grad_()]
    found = route(*given, iterations=1, backend=backend, recompute=recompute)  # pyright: ignore[reportArgumentType]
    return [each.double() for each in (found.detach(), *torch.autograd.grad(found, given, grad))]


BACKENDS = [
    ("reference", "none"),
    ("reference", "iterations"),
    ("streamed", "streamed"),
    ("fused", "streamed"),
]


@pytest.mark.parametrize(("backend", "recompute"), BACKENDS)
def test_forms_agree_over_the_range_that_squash_promises(
    backend: str, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One iteration, so that the lengths of the totals are those of the weights."""
    if backend == "fused":
        pytest.importorskip("triton")
        monkeypatch.setenv("CAPSDIST_TUNE", "0")
    torch.seed()  # other numbers each time
    device = "cuda" if backend == "fused" and torch.cuda.is_available() else "cpu"
    for exponent in (-18, -12, -3, 0, 6, 13, 15, 17, 18):
        poses, weights, grad = torch.randn(3, 5, 4), torch.randn(5, 2, 4, 6), torch.randn(3, 2, 6)
        weights *= 10.0**exponent
        found = results(*(each.to(device) for each in (poses, weights, grad)), backend, recompute)
        exact = results(poses.double(), weights.double(), grad.double(), "reference", "none")
        for wrong, right in zip(found, exact, strict=True):
            assert torch.linalg.vector_norm(wrong.cpu() - right) < 1e-5 * torch.linalg.vector_norm(right), (
                exponent
            )
