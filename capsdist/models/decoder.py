"""The reconstruction network: from class capsules back to the image (paper, section 4.1, figure 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from capsdist.errors import ShapeError
from capsdist.ops.checks import check_class_numbers, check_tensor
from capsdist.ops.targets import class_mask
from capsdist.routing.common.checks import check_flag

__all__ = ["Decoder", "overlaid"]


class Decoder(nn.Module):
    """Three dense layers (ReLU, ReLU, sigmoid) over the class capsules, of which only the chosen ones pass.

    Source: paper, section 4.1 and figure 2: 512, 1,024 and 784 units. All other capsules are set to zero, and
    only the chosen ones receive a gradient from the reconstruction.

    `separate`: of an image with several labels each is drawn by itself, from its capsule alone (section 6).
    Without it the chosen capsules of an image draw one image together.

    Shapes: parent_poses [B, J, E], mask_labels -> images [B, C, H, W] in [0, 1], fp32 under 16-bit autocast,
    else of the input's dtype. mask_labels: int64 [B] in [0, J), one class of each image; int64 [B, K], up to
    K < J classes, -1 where there are fewer; or bool [B, J], any of them, which draw together. With `separate`
    labels [B, K] give images [B, K, C, H, W] in one pass of B K rows; -1 there is drawn from no capsule.
    Raises: ShapeError if an input has another shape or dtype, or on a CPU a label out of range. On a GPU that
    is not looked for (it would have to wait): no capsule passes.

    Example:
        >>> Decoder(10, 16, (1, 28, 28))(torch.zeros(2, 10, 16), torch.tensor([3, 7])).shape
        torch.Size([2, 1, 28, 28])
        >>> pairs = Decoder(10, 16, (1, 36, 36), separate=True)
        >>> pairs(torch.zeros(1, 10, 16), torch.tensor([[3, 7]])).shape
        torch.Size([1, 2, 1, 36, 36])
    """

    def __init__(
        self,
        num_classes: int,
        class_dim: int,
        image_shape: tuple[int, int, int],
        hidden: tuple[int, int] = (512, 1024),
        *,
        separate: bool = False,
    ) -> None:
        super().__init__()
        check_flag("separate", separate)
        self.separate = separate
        self.num_classes, self.class_dim, self.image_shape = num_classes, class_dim, tuple(image_shape)
        first, second = hidden
        self.layers = nn.Sequential(
            nn.Linear(num_classes * class_dim, first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, math.prod(image_shape)),
        )

    def forward(self, parent_poses: Tensor, mask_labels: Tensor) -> Tensor:
        """Return the images that the capsules of `mask_labels` stand for: [B, C, H, W] or [B, K, C, H, W]."""
        check_tensor("parent_poses", parent_poses)
        check_tensor("mask_labels", mask_labels)
        if parent_poses.shape[1:] != (self.num_classes, self.class_dim):
            raise ShapeError(
                f"parent_poses has shape {list(parent_poses.shape)}; this decoder was built for "
                f"[B, {self.num_classes}, {self.class_dim}]: match num_classes and class_dim"
            )
        chosen = self._mask(mask_labels, parent_poses.shape[0])
        several = chosen.dim() == 3
        poses = parent_poses[:, None] if several else parent_poses
        # where, not a product: it keeps a non-finite pose of another class out of the image and its gradient
        masked = torch.where(chosen[..., None], poses, torch.zeros_like(poses)).flatten(-2)
        pixels = self.layers(masked.flatten(0, 1) if several else masked)
        pixels = pixels.float() if pixels.dtype in (torch.float16, torch.bfloat16) else pixels
        images = torch.sigmoid(pixels).unflatten(1, self.image_shape)
        return images.unflatten(0, (-1, chosen.shape[1])) if several else images

    def _mask(self, mask_labels: Tensor, num_images: int) -> Tensor:
        """Return which capsules pass, bool [B, J], or [B, K, J] where each of K labels is drawn by itself."""
        shape, boolean = list(mask_labels.shape), mask_labels.dtype == torch.bool
        if boolean and shape != [num_images, self.num_classes]:
            raise ShapeError(
                f"mask_labels has shape {shape}; give a mask as bool [{num_images}, {self.num_classes}]"
            )
        if len(shape) not in (1, 2) or shape[0] != num_images:
            raise ShapeError(
                f"mask_labels has shape {shape}; give [{num_images}], one an image, or [{num_images}, K]"
            )
        if boolean:
            return mask_labels
        if len(shape) == 2 and (mask_labels.is_floating_point() or shape[1] >= self.num_classes):
            raise ShapeError(
                f"mask_labels {shape} of dtype {mask_labels.dtype} has no sets of fewer than "
                f"{self.num_classes} class numbers; give a mask as bool"
            )
        check_class_numbers("mask_labels", mask_labels, self.num_classes)
        if self.separate and len(shape) == 2:
            return mask_labels[:, :, None] == torch.arange(self.num_classes, device=mask_labels.device)
        return class_mask(mask_labels, self.num_classes)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        each = ", each label by itself" if self.separate else ""
        return f"{self.num_classes} x {self.class_dim}D -> image {list(self.image_shape)}{each}"


def overlaid(drawn: Tensor) -> Tensor:
    """Return one image [B, C, H, W] of what a decoder has drawn, to be shown.

    drawn: [B, C, H, W], or parts [B, K, C, H, W], which are added up to 1 as the pixels of overlaid images.
    """
    return drawn.sum(1).clamp(max=1) if drawn.dim() == 5 else drawn
