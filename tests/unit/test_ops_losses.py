"""Margin and reconstruction loss: known values, both reductions, dtypes, refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from capsdist.errors import ShapeError
from capsdist.ops import lengths, margin_loss, reconstruction_loss, squash


def test_margin_loss_by_hand() -> None:
    # Right class 0.5 long: 0.4^2; wrong ones 0.3 and 0.05 long: 0.5 * 0.2^2 and nothing.
    found = margin_loss(torch.tensor([[0.3, 0.5, 0.05]]), torch.tensor([1]))
    torch.testing.assert_close(found, torch.tensor([0.16 + 0.5 * 0.04]))


def test_margins_and_downweight_by_hand() -> None:
    found = margin_loss(
        torch.tensor([[0.5, 0.5]]), torch.tensor([0]), m_plus=0.8, m_minus=0.3, absent_weight=2.0
    )
    torch.testing.assert_close(found, torch.tensor([0.3**2 + 2 * 0.2**2]))


def test_official_form_is_the_mean_over_classes_of_half_present_and_a_quarter_absent() -> None:
    lengths = torch.rand(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.arange(6)
    present = torch.nn.functional.one_hot(targets, 10).double()
    positive = present * torch.relu(0.9 - lengths) ** 2
    negative = (1 - present) * torch.relu(lengths - 0.1) ** 2
    official = (0.5 * positive + 0.25 * negative).mean(1)
    torch.testing.assert_close(margin_loss(lengths, targets, reduction="official"), official)
    torch.testing.assert_close(margin_loss(lengths, targets), 20 * official)


def test_margin_loss_gradient() -> None:
    lengths = torch.rand(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([0, 3, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda x: margin_loss(x, targets), lengths.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_losses_are_computed_in_at_least_fp32(dtype: torch.dtype) -> None:
    values = torch.rand(3, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    targets = torch.tensor([4, 0, 2])
    assert torch.equal(margin_loss(values, targets), margin_loss(values.to(wide), targets))
    images = torch.zeros(3, 5, dtype=torch.float32)
    assert torch.equal(reconstruction_loss(values, images), reconstruction_loss(values.to(wide), images))


def test_reconstruction_loss_by_hand() -> None:
    images = torch.zeros(2, 1, 2, 2)
    reconstructions = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    torch.testing.assert_close(reconstruction_loss(reconstructions, images), torch.tensor([5.0, 1.0]))


REFUSED = [
    pytest.param(
        lambda: margin_loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)),
        "lengths [2, 3] and targets [3] do not fit; pass [B, J] and [B]",
        id="batch",
    ),
    pytest.param(
        lambda: margin_loss(torch.zeros(2), torch.zeros(2, dtype=torch.int64)),
        "lengths [2] and targets [2] do not fit; pass [B, J] and [B]",
        id="dims",
    ),
    pytest.param(
        lambda: margin_loss(torch.zeros(2, 3), torch.zeros(2)),
        "targets have dtype torch.float32; convert the class numbers with .long()",
        id="dtype",
    ),
    pytest.param(
        lambda: margin_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), reduction="spread"),  # type: ignore[arg-type]
        "reduction='spread' is no margin loss; choose 'paper' or 'official'",
        id="reduction",
    ),
    pytest.param(
        lambda: margin_loss([[0.5, 0.1]], torch.tensor([0])),  # type: ignore[arg-type]
        "lengths is of type list; pass a torch.Tensor",
        id="lengths-in-a-list",
    ),
    pytest.param(
        lambda: margin_loss(torch.zeros(2, 3), [0, 1]),  # type: ignore[arg-type]
        "targets is of type list; pass a torch.Tensor",
        id="targets-in-a-list",
    ),
    pytest.param(
        lambda: margin_loss(torch.zeros(2, 3), np.array([0, 1])),  # type: ignore[arg-type]
        "targets is of type ndarray; pass a torch.Tensor",
        id="targets-of-numpy",
    ),
    pytest.param(
        lambda: margin_loss(torch.zeros(3, 3), torch.tensor([0, 3, 1])),
        "targets[1] = 3 is no class of 3; pass numbers from 0 to 2",
        id="class-too-high",
    ),
    pytest.param(
        lambda: margin_loss(torch.zeros(3, 3), torch.tensor([2, 5, -1])),
        "targets[2] = -1 is no class of 3; pass numbers from 0 to 2",
        id="class-below-0",
    ),
    pytest.param(
        lambda: reconstruction_loss([0.0], torch.zeros(1, 1)),  # type: ignore[arg-type]
        "reconstructions is of type list; pass a torch.Tensor",
        id="reconstructions-in-a-list",
    ),
    pytest.param(
        lambda: reconstruction_loss(torch.zeros(1, 1), np.zeros((1, 1))),  # type: ignore[arg-type]
        "images is of type ndarray; pass a torch.Tensor",
        id="images-of-numpy",
    ),
    pytest.param(
        lambda: squash([1.0, 2.0]),  # type: ignore[arg-type]
        "totals is of type list; pass a torch.Tensor",
        id="squash-a-list",
    ),
    pytest.param(
        lambda: lengths(np.zeros((1, 2, 3))),  # type: ignore[arg-type]
        "poses is of type ndarray; pass a torch.Tensor",
        id="lengths-of-numpy",
    ),
    pytest.param(
        lambda: reconstruction_loss(torch.zeros(2, 9), torch.zeros(2, 1, 2, 2)),
        "reconstructions [2, 9] and images [2, 1, 2, 2] differ in size; "
        "give the decoder the image_shape that the images have, a separate one an image for each label",
        id="pixels",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals_name_value_and_remedy(call, message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        call()


def test_no_images_have_no_class_out_of_range() -> None:
    assert margin_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def per_image(given: Tensor, targets: Tensor) -> Tensor:
    return torch.vmap(lambda one, target: margin_loss(one[None], target[None])[0])(given, targets)


WAYS = {
    "vmap": per_image,
    "compiled": torch.compile(margin_loss, fullgraph=True, backend="eager"),
    "grad": lambda given, targets: torch.func.vjp(lambda x: margin_loss(x, targets), given)[0],
    "exported": lambda given, targets: torch.export.export(_Loss(), (given, targets)).module()(
        given, targets
    ),
}


class _Loss(torch.nn.Module):
    def forward(self, given: Tensor, targets: Tensor) -> Tensor:
        return margin_loss(given, targets)


@pytest.mark.parametrize("way", WAYS)
def test_where_values_are_out_of_sight_the_classes_are_not_looked_at(way: str) -> None:
    given, targets = torch.rand(4, 3), torch.tensor([2, 0, 1, 1])
    torch.testing.assert_close(WAYS[way](given, targets), margin_loss(given, targets))


def test_tensors_without_values_pass() -> None:
    with FakeTensorMode():
        assert margin_loss(torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)).shape == (4,)
    assert margin_loss(
        torch.rand(4, 3, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    ).is_meta
