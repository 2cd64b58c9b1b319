"""The pixels of pairs: each digit padded and shifted, with zeros around it, and both added up to 255.

Digits are held with zeros around their rows, in one buffer, so that a shifted one is a rectangle of it: it is
copied, and nothing is computed but its place. What is shifted beyond the edge is cut off.
"""

from __future__ import annotations

import numpy as np

__all__ = ["Frames"]

_AT_ONCE = 128  # images whose pixels are added while they are in the processor's cache


class Frames:
    """`num` digits of `shape` (C, H, W), to be shown with `pad` pixels more on each side.

    shift: the largest shift, in pixels. Memory: num * C * (H + pad + shift) * (W + pad + shift) bytes.
    """

    def __init__(self, num: int, shape: tuple[int, int, int], *, pad: int, shift: int) -> None:
        channels, height, width = shape
        gap = pad + shift  # zeros behind each row and below each digit, and before the first one
        self._width, self._pad, self._channels = width + gap, pad, channels
        self._plane = (height + gap) * self._width
        self._start = gap * self._width + gap
        self._buffer = np.zeros(self._start + num * channels * self._plane, np.uint8)
        planes = self._buffer[self._start :].reshape(num, channels, height + gap, self._width)
        self.digits = planes[:, :, :height, :width]
        """The digits themselves, uint8 [num, C, H, W]: a view, to be filled."""
        size = height + 2 * pad, width + 2 * pad
        last = (size[0] - 1) * self._width + size[1]
        self._windows = np.lib.stride_tricks.as_strided(
            self._buffer,
            shape=(len(self._buffer) - last + 1, *size),
            strides=(1, self._width, 1),
            writeable=False,
        )

    def shifted(self, digits: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """Return images uint8 [n, C, H + 2 pad, W + 2 pad] of the digits at places `digits` [n].

        shifts: pixels down and right, int64 [n, 2].
        """
        down, right = (shifts + self._pad).T
        starts = self._start + digits * (self._channels * self._plane) - down * self._width - right
        return self._windows[starts[:, None] + np.arange(self._channels) * self._plane]

    def overlay_into(self, digits: np.ndarray, shifts: np.ndarray, out: np.ndarray) -> None:
        """Write the sums of two digits each, at most 255, into `out`, uint8 [n, C, H + 2 pad, W + 2 pad].

        digits: places [n, 2]; shifts: [n, 2, 2].
        """
        for start in range(0, len(digits), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            lower = self.shifted(digits[part, 0], shifts[part, 0])
            upper = self.shifted(digits[part, 1], shifts[part, 1])
            np.minimum(upper, ~lower, out=upper)  # ~x is 255 - x: the room that is left
            np.add(lower, upper, out=out[part])
