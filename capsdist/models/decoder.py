"""The reconstruction network: from one class capsule back to the image (paper, section 4.1, figure 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from capsdist.errors import ShapeError
from capsdist.ops.checks import check_class_numbers, check_tensor


class Decoder(nn.Module):
    """Three dense layers (ReLU, ReLU, sigmoid) over the class capsules, all but one of them set to zero.

    Source: paper, section 4.1 and figure 2: 512, 1,024 and 784 units. Only the capsule named by
    `mask_labels` passes, so only it receives a gradient from the reconstruction.

    Shapes: parent_poses [B, J, E], mask_labels int64 [B] in [0, J) -> images [B, C, H, W] in [0, 1],
    fp32 under 16-bit autocast, else of the input's dtype.
    Raises: ShapeError if an input has another shape, or on a CPU a label out of range. On a GPU that is not
    looked for (it would have to wait): no capsule passes.

    Example:
        >>> Decoder(10, 16, (1, 28, 28))(torch.zeros(2, 10, 16), torch.tensor([3, 7])).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        num_classes: int,
        class_dim: int,
        image_shape: tuple[int, int, int],
        hidden: tuple[int, int] = (512, 1024),
    ) -> None:
        super().__init__()
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
        """Return the images [B, C, H, W] that the capsules of `mask_labels` [B] stand for."""
        check_tensor("parent_poses", parent_poses)
        check_tensor("mask_labels", mask_labels)
        if parent_poses.shape[1:] != (self.num_classes, self.class_dim):
            raise ShapeError(
                f"parent_poses has shape {list(parent_poses.shape)}; this decoder was built for "
                f"[B, {self.num_classes}, {self.class_dim}]: match num_classes and class_dim"
            )
        if mask_labels.shape != parent_poses.shape[:1]:
            raise ShapeError(
                f"mask_labels has shape {list(mask_labels.shape)}; give [{len(parent_poses)}], one an image"
            )
        check_class_numbers("mask_labels", mask_labels, self.num_classes)
        classes = torch.arange(self.num_classes, device=mask_labels.device)
        chosen = mask_labels[:, None, None] == classes[:, None]  # [B, J, 1]
        # where, not a product: it keeps a non-finite pose of another class out of the image and its gradient
        masked = torch.where(chosen, parent_poses, torch.zeros_like(parent_poses))
        pixels = self.layers(masked.flatten(1))
        pixels = pixels.float() if pixels.dtype in (torch.float16, torch.bfloat16) else pixels
        return torch.sigmoid(pixels).unflatten(1, self.image_shape)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"{self.num_classes} x {self.class_dim}D -> image {list(self.image_shape)}"
