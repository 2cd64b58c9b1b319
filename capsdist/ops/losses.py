"""Losses of the capsule network, one value per image: margin loss of lengths, error of reconstructions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.ops.checks import check_tensor
from capsdist.ops.targets import check_targets, class_mask

__all__ = ["MarginReduction", "margin_loss", "reconstruction_loss"]

MarginReduction = Literal["paper", "official"]


def margin_loss(
    lengths: Tensor,
    targets: Tensor,
    *,
    m_plus: float = 0.9,
    m_minus: float = 0.1,
    absent_weight: float = 0.5,
    reduction: MarginReduction = "paper",
) -> Tensor:
    """Return the margin loss of each image.

    Paper, equation 4: the sum over classes of T max(0, m_plus - |v|)^2 + absent_weight (1 - T)
    max(0, |v| - m_minus)^2, where T is 1 for classes that are present and 0 for the others, or in between for
    soft targets. `official` (the authors' code) is the mean over classes of half of that, 2 J times smaller.
    The lengths enter as they are: a softmax before this loss, a common mistake, lets no right answer have a
    loss of 0.

    Args:
        lengths: [B, J] lengths of the class capsules, any floating dtype; computed in at least fp32.
        targets: [B] int64, the class of each image, in [0, J); [B, K] int64, up to K < J classes of each, -1
            where it has fewer; or [B, J] floating, T itself, in [0, 1]. Values are looked at on a CPU only,
            and neither in compilers nor in torch.func; elsewhere torch's own error tells of a class [B] out
            of range, and one of [B, K] is passed over.
        m_plus: length that a present class must reach.
        m_minus: length that an absent class may have.
        absent_weight: weight of the absent classes (lambda).
        reduction: `paper` or `official`.

    Returns:
        [B] loss of each image.

    Raises:
        ShapeError: an argument is no tensor, shapes do not fit, targets have none of these forms or are out
            of range, or the reduction is unknown.
    """
    check_tensor("lengths", lengths)
    check_tensor("targets", targets)
    if lengths.dim() != 2 or targets.shape[:1] != lengths.shape[:1] or not targets.dim():
        raise ShapeError(
            f"lengths {list(lengths.shape)} and targets {list(targets.shape)} do not fit; pass [B, J] and [B]"
        )
    if reduction not in ("paper", "official"):
        raise ShapeError(f"reduction={reduction!r} is no margin loss; choose 'paper' or 'official'")
    check_targets("targets", targets, lengths.shape[1])
    wide = lengths.to(torch.promote_types(lengths.dtype, torch.float32))
    present = torch.relu(m_plus - wide).square()
    absent = absent_weight * torch.relu(wide - m_minus).square()
    if targets.dim() == 1:
        own = targets[:, None]
        # The scatter replaces the absent term of an image's own class by its present term.
        terms = absent.scatter(1, own, present.gather(1, own))
    elif targets.is_floating_point():
        share = targets.to(wide.dtype)
        terms = share * present + (1 - share) * absent
    else:
        terms = torch.where(class_mask(targets, lengths.shape[1]), present, absent)
    return terms.sum(1) if reduction == "paper" else 0.5 * terms.mean(1)


def reconstruction_loss(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Return the sum of squared pixel errors of each image (paper, section 4.1), not yet weighted by 0.0005.

    Of an image whose K labels are drawn one by one it is the sum over all of them (section 6).

    Args:
        reconstructions: [B, ...] decoder output, any floating dtype; computed in at least fp32.
        images: [B, ...] the same number of pixels an image, in [0, 1]; of several labels [B, K, ...], the
            image of each by itself, in the order of the reconstructions.

    Returns:
        [B] loss of each image.

    Raises:
        ShapeError: one is no tensor, or the two differ in batch or in pixels an image.
    """
    check_tensor("reconstructions", reconstructions)
    check_tensor("images", images)
    if reconstructions.shape[0] != images.shape[0] or reconstructions.numel() != images.numel():
        raise ShapeError(
            f"reconstructions {list(reconstructions.shape)} and images {list(images.shape)} differ in size; "
            "give the decoder the image_shape that the images have, a separate one an image for each label"
        )
    dtype = torch.promote_types(torch.promote_types(reconstructions.dtype, images.dtype), torch.float32)
    error = reconstructions.flatten(1).to(dtype) - images.flatten(1).to(dtype)
    return error.square().sum(1)
