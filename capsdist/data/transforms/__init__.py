"""Transform images on the device: geometry, colours, mixing; README.md gives the order."""

from capsdist.data.transforms.known import known_shifts, with_shifted
from capsdist.data.transforms.mixing import Mixup
from capsdist.data.transforms.random_numbers import uniform
from capsdist.data.transforms.transform import Transform

__all__ = ["Mixup", "Transform", "known_shifts", "uniform", "with_shifted"]
