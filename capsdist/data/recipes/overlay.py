"""The pixels of pairs: each digit padded and shifted, with zeros around it, and both added up to 255.

Digits are held with zeros behind their rows and between them, in one buffer, so that a shifted one is a run
of its bytes: it is copied, and nothing is computed but its place. What is shifted beyond the edge is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Frames", "Grid"]

_AT_ONCE = 128  # images whose pixels are added while they are in the processor's cache


@dataclass(frozen=True)
class Grid:
    """Where the digits are in the buffer: `num` of `shape` (C, H, W), each with `pad` more pixels a side.

    shift: the largest shift, in pixels.
    """

    num: int
    shape: tuple[int, int, int]
    pad: int
    shift: int

    @property
    def gap(self) -> int:
        """Zeros behind each row and below each digit, and before the first one."""
        return self.pad + self.shift

    @property
    def height(self) -> int:
        """Height of an image."""
        return self.shape[1] + 2 * self.pad

    @property
    def width(self) -> int:
        """Width of an image."""
        return self.shape[2] + 2 * self.pad

    @property
    def row(self) -> int:
        """Bytes of a row with the zeros behind it."""
        return max(self.shape[2] + self.gap, self.width)

    @property
    def plane(self) -> int:
        """Bytes of a channel of a digit with its zeros."""
        return (self.shape[1] + self.gap) * self.row

    @property
    def start(self) -> int:
        """Place of the first digit."""
        return self.gap * self.row + self.gap

    @property
    def run(self) -> int:
        """Bytes of a channel of an image, with what stands behind its rows."""
        return self.height * self.row

    @property
    def num_bytes(self) -> int:
        """Bytes of the buffer."""
        return self.start + self.num * self.shape[0] * self.plane + self.run


class Frames:
    """`num` digits of `shape` (C, H, W), to be shown with `pad` pixels more on each side.

    shift: the largest shift, in pixels. Memory: num * C * (H + pad + shift) * (W + pad + shift) bytes, in
    `buffer` where that is given, uint8 [Grid.num_bytes], zero where there is no digit.
    """

    def __init__(
        self,
        num: int,
        shape: tuple[int, int, int],
        *,
        pad: int,
        shift: int,
        buffer: np.ndarray | None = None,
    ) -> None:
        self.grid = grid = Grid(num, shape, pad, shift)
        channels, height, width = shape
        self.buffer = np.zeros(grid.num_bytes, np.uint8) if buffer is None else buffer
        digits = self.buffer[grid.start :][: num * channels * grid.plane]
        self.digits = digits.reshape(num, channels, height + grid.gap, grid.row)[:, :, :height, :width]
        """The digits themselves, uint8 [num, C, H, W]: a view, to be filled."""
        # Every place as the start of an image: a view, so that one indexing call copies whole images.
        self._runs = np.lib.stride_tricks.sliding_window_view(self.buffer, grid.run)

    def shifted(self, digits: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """Return images uint8 [n, C, H + 2 pad, W + 2 pad] of the digits at places `digits` [n].

        shifts: pixels down and right, int64 [n, 2].
        """
        return self._image(self._copied(digits, shifts))

    def overlay_into(self, digits: np.ndarray, shifts: np.ndarray, out: np.ndarray) -> None:
        """Write the sums of two digits each, at most 255, into `out`, uint8 [n, C, H + 2 pad, W + 2 pad].

        digits: places [n, 2]; shifts: [n, 2, 2].
        """
        for start in range(0, len(digits), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            lower = self._copied(digits[part, 0], shifts[part, 0])
            upper = self._copied(digits[part, 1], shifts[part, 1])
            np.minimum(upper, ~lower, out=upper)  # ~x is 255 - x: the room that is left
            np.add(lower, upper, out=lower)
            out[part] = self._image(lower)

    def _copied(self, digits: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """Return the bytes of shifted digits, uint8 [n, C, bytes]; `_image` is what is seen."""
        grid = self.grid
        down, right = (shifts + grid.pad).T
        starts = grid.start + digits * (grid.shape[0] * grid.plane) - down * grid.row - right
        return self._runs[starts[:, None] + np.arange(grid.shape[0]) * grid.plane]

    def _image(self, runs: np.ndarray) -> np.ndarray:
        rows = runs.reshape(*runs.shape[:2], self.grid.height, self.grid.row)
        return rows[..., : self.grid.width]
