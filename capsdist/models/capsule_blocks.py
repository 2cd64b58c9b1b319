"""Blocks of deep capsule networks: a layer of convolutional capsules with what keeps stacks of them alive.

Shape letters: B images, H and W positions, T types, D dimensions of a pose.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from capsdist.errors import ShapeError
from capsdist.models.conv_capsules import ConvCapsules

__all__ = ["START_LENGTH", "CapsuleBlock", "ChildPoses", "run_block", "start_gain"]

START_LENGTH = 0.5
"""Length of capsules at the start, about: that of primary capsules, and of layers whose routing iterates."""
_GAIN, _GAIN_OF_ONE = 1.2, 2.25
_EPSILON = 1e-6


def start_gain(iterations: int) -> float:
    """Return the length of the totals of a layer at the start, over that of its children, `START_LENGTH`.

    One iteration: totals of g times the length l have length (g l)^2 / (1 + (g l)^2) after squash. For g
    below 2 that map has no fixed point but 0: every layer is shorter than the one below it, the more so the
    shorter that one is. For g above 2 it has two, (1 -+ sqrt(1 - 4 / g^2)) / 2, and lengths above the lower
    one tend to the upper. With 2.25 they are 0.27 and 0.73, and children start at 0.5, between them.

    Several iterations: the totals of the parents that children agree with grow with each, so that 2.25 would
    saturate them. 1.2 was chosen by a look at untrained stacks of five layers, 4 to 16 types of 6 to 16
    dimensions, on digits: capsules stay live in all of them, and most lengths have slope.
    """
    return _GAIN_OF_ONE if iterations == 1 else _GAIN


class ChildPoses(nn.Module):
    """The poses under a capsule layer as it sees them: normalised, some dropped; nothing by default.

    `length` not None (pose normalisation): all poses of an image are multiplied by one number, so that the
    root of the mean of their squared lengths is `length`. What one capsule is beside another stays, and an
    image does not depend on others; layers cannot starve, however deep. It is computed in fp32 at least.

    `dropout` (capsule dropout): in training a capsule, one type at one position, is 0 with this probability,
    and the others are divided by 1 - dropout, so that the mean of totals is that of evaluation. It draws from
    torch's global generator, which a training step seeds: a resumed run draws the same.

    Shapes: [B, H, W, T, D] -> the same.
    Raises: ShapeError if `dropout` is not from 0 to below 1.
    """

    def __init__(self, length: float | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ShapeError(f"capsule_dropout={dropout!r} must be at least 0 and below 1")
        self.length, self.dropout = length, dropout

    @property
    def draws(self) -> bool:
        """Whether a forward pass now draws random numbers."""
        return self.training and self.dropout > 0

    def forward(self, poses: Tensor) -> Tensor:
        """Return `poses`, normalised and dropped."""
        if self.length is not None:
            dtype = torch.promote_types(poses.dtype, torch.float32)
            dims = tuple(range(1, poses.dim()))
            norms = torch.linalg.vector_norm(poses, dim=dims, keepdim=True, dtype=dtype)
            squares = norms.square() / math.prod(poses.shape[1:-1])
            poses = poses * (self.length * (squares + _EPSILON).rsqrt()).to(poses.dtype)
        if self.draws:
            kept = functional.dropout(poses.new_ones(poses.shape[:-1]), self.dropout)
            poses = poses * kept[..., None]
        return poses

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"length={self.length}, dropout={self.dropout:g}"


class CapsuleBlock(nn.Module):
    """A layer of convolutional capsules, after `ChildPoses`; the input is added where it is residual.

    Residual: the input poses, as they come in, are added to the squashed poses of the layer. Before squash
    they would be part of the totals that children agree with, in all iterations, and their gradient would
    pass squash, whose slope tends to 0 for short poses: added after it, the path past the layer is the
    identity. Lengths can exceed 1 then, up to one more a block; the layer above sees poses, and class
    capsules, whose lengths are scores, are never residual.

    Shapes: [B, H, W, T, D] -> [B, H', W', types, dim].
    """

    def __init__(self, layer: ConvCapsules, inputs: ChildPoses, *, residual: bool) -> None:
        super().__init__()
        self.inputs, self.layer = inputs, layer
        self.residual = residual and fits_residual(layer)

    def forward(self, poses: Tensor) -> Tensor:
        """Return the poses of the layer, and its input added."""
        parents = self.layer(self.inputs(poses))
        return parents + poses if self.residual else parents

    def draw_weights(self, length: float) -> float:
        """Draw the weights for poses that start with `length`; return the length that the block starts with.

        Totals are `start_gain` times `START_LENGTH`, and so is the layer's own output `START_LENGTH`, about.
        Poses and what is added to them have directions of their own: their squares add up.
        """
        seen = self.inputs.length or length
        self.layer.draw_weights(start_gain(self.layer.routing.iterations) * START_LENGTH / seen)
        return math.hypot(length, START_LENGTH) if self.residual else START_LENGTH

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"residual={self.residual}"


def fits_residual(layer: ConvCapsules) -> bool:
    """Say whether the output of a layer has the shape of its input, whatever that is."""
    same = (layer.types, layer.dim) == (layer.child_types, layer.child_dim)
    kept = layer.padding == "same" or set(layer.kernel) == {1}
    return same and kept and set(layer.stride) == {1}


def run_block(block: CapsuleBlock, poses: Tensor, *, recompute: bool) -> Tensor:
    """Return ``block(poses)``; with `recompute` autograd keeps `poses` alone, and the rest is computed again.

    The state of the random generators is kept where the block draws. Gradients are the same to the last bit
    where the forward pass repeats itself, as on a CPU. Cost: one more forward pass of the block.
    """
    if not (recompute and torch.is_grad_enabled()):
        return block(poses)
    draws = block.inputs.draws
    found = checkpoint(block, poses, use_reentrant=False, preserve_rng_state=draws)
    assert isinstance(found, Tensor)
    return found
