"""Targets of images, in three forms: one class, a set of classes, or a value for each class.

- int64 [B]: the class of each image, in [0, J).
- int64 [B, K], K < J: up to K classes of each image, -1 where it has fewer; one named twice counts once.
- floating [B, J]: 1 for classes that are present and 0 for the others (multi-hot), or values in between (soft
  targets, as mixup makes them).

Class numbers and values are looked at on a CPU only, and neither in compilers nor in torch.func.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.ops.checks import check_class_numbers, check_tensor, has_values_at_hand

__all__ = ["check_probabilities", "check_targets", "class_mask", "multi_hot"]

_SUM_TOLERANCE = 0.01  # of probabilities in 16 bits


def multi_hot(targets: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the value of each class for each image: 1 for its classes and 0 for the others, or soft targets.

    Args:
        targets: int64 [B], int64 [B, K] or floating [B, J].
        num_classes: J.
        dtype: floating dtype of the result.

    Returns:
        [B, J]. Class numbers out of range that are not looked at give 0.

    Raises:
        ShapeError: they have none of the three forms, a class number is out of range, or a floating target is
            outside of [0, 1].

    Example:
        >>> multi_hot(torch.tensor([[2, 0], [1, -1]]), 3)
        tensor([[1., 0., 1.],
                [0., 1., 0.]])
    """
    check_targets("targets", targets, num_classes)
    if targets.is_floating_point():
        return targets.to(dtype)
    return class_mask(targets, num_classes).to(dtype)


def class_mask(numbers: Tensor, num_classes: int) -> Tensor:
    """Return the classes of each image, bool [B, J], given their numbers [B] or [B, K]; checks nothing."""
    classes = torch.arange(num_classes, device=numbers.device)
    if numbers.dim() == 1:
        return numbers[:, None] == classes
    return (numbers[:, :, None] == classes).any(1)


def check_targets(name: str, targets: Tensor, num_classes: int) -> None:
    """Raise ShapeError unless `targets` have one of the three forms for J = `num_classes` classes."""
    check_tensor(name, targets)
    shape, dims = list(targets.shape), targets.dim()
    if dims not in (1, 2):
        raise ShapeError(f"{name} have shape {shape}; pass [B], int64 [B, K] or floating [B, {num_classes}]")
    if targets.is_floating_point() and dims == 2:
        if shape[1] != num_classes:
            raise ShapeError(
                f"{name} have shape {shape}; floating targets are [B, {num_classes}], a value for each class"
            )
        _check_values(name, targets)
        return
    if targets.dtype != torch.int64:
        remedy = "class numbers with .long()" + (", or a multi-hot with .float()" if dims == 2 else "")
        raise ShapeError(f"{name} have dtype {targets.dtype}; convert the {remedy}")
    if dims == 2 and shape[1] >= num_classes:
        raise ShapeError(
            f"{name} {shape} of dtype int64 are no sets of fewer than {num_classes} class numbers; "
            "convert a multi-hot with .float()"
        )
    check_class_numbers(name, targets, num_classes)


def check_probabilities(name: str, targets: Tensor, num_classes: int) -> None:
    """Raise ShapeError unless `targets` are floating [B, J], and of each image sum to 1."""
    check_targets(name, targets, num_classes)
    remedy = "give probabilities, or set num_labels to the labels of an image"
    if not targets.is_floating_point():
        raise ShapeError(
            f"{name} {list(targets.shape)} of dtype {targets.dtype} are several an image; {remedy}"
        )
    if not has_values_at_hand(targets):
        return
    sums = targets.detach().double().sum(1)
    if (wrong := (sums - 1).abs() > _SUM_TOLERANCE).any():
        image = int(wrong.nonzero()[0])
        raise ShapeError(f"{name}[{image}] sum to {float(sums[image]):g}, not to 1; {remedy}")


def _check_values(name: str, values: Tensor) -> None:
    """Raise ShapeError for a value outside of [0, 1], where looking costs nothing."""
    if not has_values_at_hand(values) or not values.numel():
        return
    lowest, highest = map(float, torch.aminmax(values.detach()))
    if not 0 <= lowest <= highest <= 1:
        raise ShapeError(
            f"{name} have values from {lowest:g} to {highest:g}; give 0 for absent classes and 1 for present "
            "ones, or values in between"
        )
