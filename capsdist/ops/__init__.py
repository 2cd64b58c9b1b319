"""Tensor functions without parameters: squash, lengths, losses, forms of targets."""

from capsdist.ops.losses import margin_loss, reconstruction_loss, spread_loss
from capsdist.ops.squash import lengths, squash, squash_backward
from capsdist.ops.targets import multi_hot

__all__ = [
    "lengths",
    "margin_loss",
    "multi_hot",
    "reconstruction_loss",
    "spread_loss",
    "squash",
    "squash_backward",
]
