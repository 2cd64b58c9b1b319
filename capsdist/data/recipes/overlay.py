"""The pixels of pairs: each digit padded and shifted, with zeros around it, and both added up to 255.

Digits are held with zeros behind their rows and between them, in one buffer, so that a shifted one is a run
of its bytes: it is copied, and nothing is computed but its place. What is shifted beyond the edge is cut off.
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
        self._height, self._width, self._pad = height + 2 * pad, width + 2 * pad, pad
        self._row, self._channels = max(width + gap, self._width), channels
        self._plane = (height + gap) * self._row
        self._start = gap * self._row + gap
        run = self._height * self._row
        buffer = np.zeros(self._start + num * channels * self._plane + run, np.uint8)
        digits = buffer[self._start :][: num * channels * self._plane]
        self.digits = digits.reshape(num, channels, height + gap, self._row)[:, :, :height, :width]
        """The digits themselves, uint8 [num, C, H, W]: a view, to be filled."""
        # Every place as the start of an image: a view, so that one indexing call copies whole images.
        self._runs = np.lib.stride_tricks.sliding_window_view(buffer, run)

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
        down, right = (shifts + self._pad).T
        starts = self._start + digits * (self._channels * self._plane) - down * self._row - right
        return self._runs[starts[:, None] + np.arange(self._channels) * self._plane]

    def _image(self, runs: np.ndarray) -> np.ndarray:
        rows = runs.reshape(*runs.shape[:2], self._height, self._row)
        return rows[..., : self._width]
