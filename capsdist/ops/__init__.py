"""Tensor functions without parameters: squash, lengths, losses."""

from capsdist.ops.losses import margin_loss, reconstruction_loss
from capsdist.ops.squash import lengths, squash, squash_backward

__all__ = ["lengths", "margin_loss", "reconstruction_loss", "squash", "squash_backward"]
