"""Random numbers of augmentation: a pure function of (seed, epoch, sample id, draw).

So neither the batch nor the number of ranks matters, and nothing has to be saved to resume. With
k = mix(mix(mix(seed + G) ^ epoch) ^ draw), `uniform` is the upper 53 bits of mix(k + (id + 1) * G). Here mix
is the finaliser of splitmix64 (Steele, Lea, Flood 2014) and G = 0x9E3779B97F4A7C15, all modulo 2^64.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

__all__ = ["Draw", "Draws", "uniform"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Draw(IntEnum):
    """What a number is for. A number that has once been given stays: runs must be repeatable."""

    SHIFT_Y = 0
    SHIFT_X = 1
    CROP_Y = 2
    CROP_X = 3
    FLIP = 4
    BRIGHTNESS = 5
    CONTRAST = 6
    PART_Y = 7
    PART_X = 8
    PART_AREA = 9
    PART_RATIO = 10
    ROTATION = 11
    TRANSLATION_Y = 12
    TRANSLATION_X = 13
    SCALE = 14
    SHEAR = 15
    CUTOUT_Y = 16
    CUTOUT_X = 17
    MIXUP = 18
    KNOWN_RIGHT = 19
    KNOWN_DOWN = 20


def uniform(sample_ids: Tensor, draw: int, seed: int, epoch: int | Tensor) -> Tensor:
    """Return float64 [b] in [0, 1): one number per sample, a pure function of the four arguments.

    sample_ids int64 [b], on any device; epoch: of all samples, or int64 [b]; 53 random bits a number.
    """
    key = _mix_int(seed + _GOLDEN)
    if isinstance(epoch, int):  # without a kernel a GPU would have to start
        start: int | Tensor = _signed(_mix_int(_mix_int(key ^ epoch) ^ draw))
    else:
        start = _mix(_mix(epoch ^ _signed(key)) ^ draw)
    state = _mix((sample_ids + 1) * _signed(_GOLDEN) + start)
    return ((state >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch. sample_ids int64 [b]; epoch: of all samples, or int64 [b]."""

    sample_ids: Tensor
    seed: int
    epoch: int | Tensor

    def uniform(self, draw: Draw) -> Tensor:
        """Return float64 [b] in [0, 1)."""
        return uniform(self.sample_ids, draw, self.seed, self.epoch)

    def between(self, draw: Draw, low: float, high: float) -> Tensor:
        """Return float64 [b] in [low, high), all of them `low` where both are equal."""
        return low + (high - low) * self.uniform(draw)

    def below(self, draw: Draw, limit: int) -> Tensor:
        """Return int64 [b] in 0 .. limit - 1."""
        return (self.uniform(draw) * limit).long()


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix(value: Tensor) -> Tensor:
    """Return splitmix64's finaliser of int64 `value`; >> is arithmetic, so the sign bits are masked off."""

    def shifted(amount: int) -> Tensor:
        return (value >> amount) & ((1 << (64 - amount)) - 1)

    value = (value ^ shifted(30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ shifted(27)) * _signed(0x94D049BB133111EB)
    return value ^ shifted(31)
