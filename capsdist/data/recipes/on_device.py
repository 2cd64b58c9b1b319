"""Overlay digits on a device: what `Frames` does with numpy, in operations of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from capsdist.data.recipes.overlay import Frames

__all__ = ["DeviceFrames"]


class DeviceFrames:
    """The digits of `frames` on `device`: a copy of the whole buffer."""

    def __init__(self, frames: Frames, device: torch.device) -> None:
        self.grid = grid = frames.grid
        self._buffer = torch.from_numpy(frames.buffer).to(device)
        channels, rows, columns = map(torch.arange, (grid.shape[0], grid.height, grid.width))
        places = channels[:, None, None] * grid.plane + rows[:, None] * grid.row + columns
        self._places = (places + grid.start).to(device)  # of the pixels of digit 0, not shifted [C, H', W']

    def separate(self, digits: Tensor, shifts: Tensor) -> Tensor:
        """Return both digits of each sample, shifted: uint8 [n, 2, C, H + 2 pad, W + 2 pad].

        digits: places int64 [n, 2]; shifts: pixels down and right, int64 [n, 2, 2]; both on the device.
        """
        grid = self.grid
        down, right = (shifts + grid.pad).unbind(2)
        starts = digits * (grid.shape[0] * grid.plane) - down * grid.row - right
        places = self._places + starts[:, :, None, None, None]
        return self._buffer.index_select(0, places.flatten()).view(places.shape)

    @staticmethod
    def added(parts: Tensor) -> Tensor:
        """Return what `Frames.overlay_into` writes, uint8 [n, C, H', W'], of parts [n, 2, C, H', W']."""
        lower, upper = parts.unbind(1)
        return lower + torch.minimum(upper, ~lower)  # ~x is 255 - x: the room that is left
