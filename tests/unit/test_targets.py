"""Targets in three forms, the margin loss of each, and missed labels, against references in plain loops."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from capsdist.errors import ShapeError
from capsdist.ops import margin_loss, multi_hot
from capsdist.ops import targets as targets_module
from capsdist.ops.predictions import largest, missed_labels
from capsdist.ops.targets import check_probabilities

SIZES = [(1, 2, 1), (3, 5, 2), (7, 11, 4), (2, 3, 0)]  # B, J, K


def some_targets(form: str, size: tuple[int, int, int], seed: int) -> Tensor:
    """Random targets of a form; sets have gaps and members that are named twice."""
    generator = torch.Generator().manual_seed(seed)
    num, classes, most = size
    if form == "one":
        return torch.randint(classes, (num,), generator=generator)
    if form == "sets":
        return torch.randint(-1, classes, (num, most), generator=generator)
    values = torch.rand(num, classes, generator=generator, dtype=torch.float64)
    return values if form == "soft" else values.round()


def lengths_for(size: tuple[int, int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.rand(size[:2], generator=generator, dtype=torch.float64)


def values_of(target: Tensor, num_classes: int) -> list[float]:
    """T of equation 4 of one image, class by class."""
    if target.is_floating_point():
        return target.tolist()
    members = set(target.view(-1).tolist())
    return [1.0 if j in members else 0.0 for j in range(num_classes)]


def margin_by_hand(lengths: Tensor, targets: Tensor) -> Tensor:
    """Equation 4 with m+ 0.9, m- 0.1 and lambda 0.5, a class at a time."""
    losses = []
    for row, target in zip(lengths, targets, strict=True):
        loss = row.new_zeros(())
        for length, value in zip(row, values_of(target, len(row)), strict=True):
            loss = loss + value * (0.9 - length).clamp(min=0) ** 2
            loss = loss + 0.5 * (1 - value) * (length - 0.1).clamp(min=0) ** 2
        losses.append(loss)
    return torch.stack(losses)


def margin_with_the_absent_term_of_all(lengths: Tensor, targets: Tensor) -> Tensor:
    """The mutant: a present class is also asked to be short."""
    shares = multi_hot(targets, lengths.shape[1], lengths.dtype)
    present = shares * torch.relu(0.9 - lengths).square()
    return (present + 0.5 * torch.relu(lengths - 0.1).square()).sum(1)


def margin_of_counted_members(lengths: Tensor, targets: Tensor) -> Tensor:
    """The mutant: a class that is named twice counts twice, and -1 is the last class."""
    shares = functional.one_hot(targets % lengths.shape[1], lengths.shape[1]).sum(1)
    present = shares * torch.relu(0.9 - lengths).square()
    return (present + 0.5 * (1 - shares) * torch.relu(lengths - 0.1).square()).sum(1)


def differs_by(loss: Callable[[Tensor, Tensor], Tensor], lengths: Tensor, targets: Tensor) -> float:
    """How far `loss` and its gradient are from equation 4."""
    found = []
    for each in (loss, margin_by_hand):
        given = lengths.clone().requires_grad_()
        value = each(given, targets)
        (gradient,) = torch.autograd.grad(value.square().sum(), given)
        found.append((value.detach(), gradient))
    return max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))


@pytest.mark.property("equation 4", "the margin loss of several labels and of soft ones is equation 4")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["one", "sets", "multi-hot", "soft"])
def test_margin_loss_is_equation_4_for_every_form(form: str, size: tuple[int, int, int], seed: int) -> None:
    targets = some_targets(form, size, seed)
    assert differs_by(margin_loss, lengths_for(size, seed), targets) < 1e-12
    official = margin_loss(lengths_for(size, seed), targets, reduction="official")
    torch.testing.assert_close(official * 2 * size[1], margin_by_hand(lengths_for(size, seed), targets))


@pytest.mark.defect(
    "equation 4", "the absent term kept for present classes; a class named twice counted twice"
)
@pytest.mark.parametrize("mutant", [margin_with_the_absent_term_of_all, margin_of_counted_members])
def test_the_reference_notices_mutants(mutant: Callable[[Tensor, Tensor], Tensor]) -> None:
    size = (7, 11, 4)
    assert differs_by(mutant, lengths_for(size, 0), some_targets("sets", size, 0)) > 0.01


@pytest.mark.parametrize("reduction", ["paper", "official"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_one_label_is_the_same_to_the_last_bit_in_every_form(dtype: torch.dtype, reduction) -> None:
    lengths, labels = lengths_for((13, 7, 1), 0).to(dtype), some_targets("one", (13, 7, 1), 0)
    expected = margin_loss(lengths, labels, reduction=reduction)
    gaps = torch.full((13, 2), -1)
    for same in (labels[:, None], torch.cat([gaps, labels[:, None]], 1), multi_hot(labels, 7)):
        found = margin_loss(lengths, same, reduction=reduction)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("form", ["one", "sets", "multi-hot", "soft"])
def test_multi_hot_has_the_value_of_each_class(form: str) -> None:
    size = (7, 11, 4)
    targets = some_targets(form, size, 1)
    expected = torch.tensor([values_of(target, 11) for target in targets])
    for dtype in (torch.float32, torch.float64):
        found = multi_hot(targets, 11, dtype)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected.to(dtype))


REFUSED = [
    (torch.zeros(2, 3, dtype=torch.int64), "targets [2, 3] of dtype int64 are no sets of fewer than 3 class "
     "numbers; convert a multi-hot with .float()"),
    (torch.zeros(2, 2), "targets have shape [2, 2]; floating targets are [B, 3], a value for each class"),
    (torch.zeros(2, 2, dtype=torch.int32),
     "targets have dtype torch.int32; convert the class numbers with .long(), or a multi-hot with .float()"),
    (torch.zeros(2, 3, dtype=torch.bool),
     "targets have dtype torch.bool; convert the class numbers with .long(), or a multi-hot with .float()"),
    (torch.zeros(2), "targets have dtype torch.float32; convert the class numbers with .long()"),
    (torch.zeros(2, 1, 1), "targets have shape [2, 1, 1]; pass [B], int64 [B, K] or floating [B, 3]"),
    (torch.tensor([[0, -1], [1, 3]]),
     "targets[1, 1] = 3 is no class of 3; pass numbers from 0 to 2, or -1 for no class"),
    (torch.tensor([[0, -2], [1, 1]]),
     "targets[0, 1] = -2 is no class of 3; pass numbers from 0 to 2, or -1 for no class"),
    (torch.tensor([0, -1]), "targets[1] = -1 is no class of 3; pass numbers from 0 to 2"),
    (torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 1.0]]),
     "targets have values from 0 to 2; give 0 for absent classes and 1 for present ones, or values in "
     "between"),
    (torch.tensor([[0.0, torch.nan, 0.0]] * 2),
     "targets have values from nan to nan; give 0 for absent classes and 1 for present ones, or values in "
     "between"),
]  # fmt: skip


@pytest.mark.parametrize(("targets", "message"), REFUSED)
def test_what_has_no_form_is_refused_in_one_line(targets: Tensor, message: str) -> None:
    for call in (lambda: multi_hot(targets, 3), lambda: margin_loss(torch.rand(2, 3), targets)):
        with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
            call()


def test_margin_loss_wants_as_many_targets_as_lengths() -> None:
    with pytest.raises(ShapeError, match=r"lengths \[2, 3\] and targets \[4, 2\] do not fit"):
        margin_loss(torch.rand(2, 3), torch.zeros(4, 2, dtype=torch.int64))


def test_probabilities_sum_to_1() -> None:
    check_probabilities("labels", torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.0, 1.0]]).half(), 3)
    with pytest.raises(ShapeError, match=r"^labels\[1\] sum to 2, not to 1; give probabilities, or set num"):
        check_probabilities("labels", torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]), 3)
    with pytest.raises(ShapeError, match=r"^labels \[2, 2\] of dtype torch.int64 are several an image; give"):
        check_probabilities("labels", torch.tensor([[0, 1], [1, 2]]), 3)


FORMS = {
    "sets": torch.tensor([[2, -1], [0, 1], [-1, -1], [1, 1]]),
    "soft": torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.5, 0.25, 0.25]]),
}
WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "vmap": lambda given, targets: torch.vmap(lambda a, b: margin_loss(a[None], b[None])[0])(given, targets),
    "compiled": torch.compile(margin_loss, fullgraph=True, backend="eager"),
    "meta": lambda given, targets: margin_loss(given.to("meta"), targets.to("meta")),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_values_out_of_sight_are_not_looked_at(way: str, form: str) -> None:
    given = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    found = WAYS[way](given, FORMS[form])
    assert found.shape == (4,)
    if not found.is_meta:
        torch.testing.assert_close(found, margin_loss(given, FORMS[form]))


def missed_by_hand(scores: Tensor, targets: Tensor) -> list[tuple[int, int]]:
    """Labels of each image that are not among its longest capsules, and all of them."""
    found = []
    for row, target in zip(scores.tolist(), targets, strict=True):
        values = values_of(target, len(row))
        count = round(sum(values))
        order = sorted(range(len(row)), key=lambda j: -row[j])
        labels = sorted(range(len(row)), key=lambda j: -values[j])[:count]
        found.append((len(set(labels) - set(order[:count])), count))
    return found


def missed_of_a_threshold(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mutant: what is longer than a half is predicted, however many that are."""
    members = multi_hot(targets, scores.shape[1]) > 0
    return (members & (scores <= 0.5)).sum(1), members.sum(1)


def missed_of_the_longest(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mutant: one class is predicted."""
    members = multi_hot(targets, scores.shape[1]) > 0
    return members.sum(1) - members.gather(1, scores.argmax(1)[:, None])[:, 0].long(), members.sum(1)


def pairs(missed: tuple[Tensor, Tensor]) -> list[tuple[int, int]]:
    return list(zip(missed[0].tolist(), missed[1].tolist(), strict=True))


@pytest.mark.property("missed", "an image with n labels is read as its n longest capsules")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["one", "sets", "multi-hot", "soft"])
def test_missed_labels_are_those_outside_of_the_longest(
    form: str, size: tuple[int, int, int], seed: int
) -> None:
    targets, scores = some_targets(form, size, seed), lengths_for(size, seed)
    assert pairs(missed_labels(scores, targets)) == missed_by_hand(scores, targets)


@pytest.mark.defect("missed", "what is longer than a threshold is predicted; one class is predicted")
@pytest.mark.parametrize("mutant", [missed_of_a_threshold, missed_of_the_longest])
def test_other_predictions_miss_other_labels(mutant: Callable[..., tuple[Tensor, Tensor]]) -> None:
    targets, scores = some_targets("sets", (7, 11, 4), 0), lengths_for((7, 11, 4), 0)
    assert pairs(mutant(scores, targets)) != missed_by_hand(scores, targets)


def test_the_example_is_true() -> None:
    found = doctest.testmod(targets_module)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_equal_soft_targets_are_labels_alike() -> None:
    scores = torch.tensor([[0.1, 0.2, 0.9], [0.9, 0.2, 0.1], [0.1, 0.9, 0.2]])
    targets = torch.tensor([[0.5, 0.0, 0.5]] * 3)
    assert pairs(missed_labels(scores, targets)) == [(0, 1), (0, 1), (1, 1)]


def test_the_largest_come_in_order_and_of_equal_ones_the_lower_number() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert largest(scores, 3).tolist() == [[1, 0, 2], [0, 1, 2]]
    assert largest(scores, 1).tolist() == [[1], [0]]
