"""Pictures of what a network makes of images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from capsdist.models.decoder import overlaid

__all__ = ["NUM_COLUMNS", "reconstruction_picture"]

NUM_COLUMNS = 16
"""Images of a picture of reconstructions, at most."""


def reconstruction_picture(images: Tensor, reconstructions: Tensor) -> np.ndarray:
    """Return images in one row and below each its reconstruction, uint8 [2 H, n W, 3], on the CPU.

    Both are [B, C, H, W] in [0, 1], or reconstructions [B, K, C, H, W], which are shown overlaid; the first
    n = min(B, NUM_COLUMNS) are shown. Where C is not 3, the mean over channels is shown in grey.
    """
    shown = images[:NUM_COLUMNS], overlaid(reconstructions[:NUM_COLUMNS])
    rows = torch.stack([each.float() for each in shown]).clamp(0, 1)
    if rows.shape[2] != 3:
        rows = rows.mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    pixels = (rows * 255).round().to(torch.uint8).permute(0, 3, 1, 4, 2)  # [2, H, n, W, 3]
    return pixels.reshape(2 * rows.shape[3], -1, 3).cpu().numpy()
