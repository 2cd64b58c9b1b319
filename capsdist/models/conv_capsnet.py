"""Deep networks of convolutional capsules: a stem, primary capsules as a grid, blocks, class capsules."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from capsdist.errors import ShapeError
from capsdist.models.capsule_blocks import START_LENGTH, CapsuleBlock, ChildPoses, run_block
from capsdist.models.capsule_network import ClassKeywords
from capsdist.models.conv_capsules import ConvCapsules, SharedClassCapsules
from capsdist.models.layers import Conv2d, Padding, PrimaryCapsules, check_sizes
from capsdist.models.stem_network import CHILD_LENGTH, StemNetwork, initial_total
from capsdist.routing import RoutingKeywords
from capsdist.routing.common.checks import check_flag, check_name, one_of
from capsdist.routing.common.sharing import Competition

__all__ = ["ClassWeights", "ConvCapsNet", "PaperStem"]

ClassWeights = Literal["position", "shared"]
"""Weights of class capsules: a matrix for each child and class, or for each type of child and class."""


class PaperStem(nn.Sequential):
    """The first layer of the paper's network: one convolution and ReLU (section 4).

    Shapes: images [B, C, H, W] -> features [B, channels, H', W'].
    Raises: ShapeError as `Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        kernel_size: int = 9,
        stride: int = 1,
        padding: Padding = "valid",
    ) -> None:
        conv = Conv2d(in_channels, channels, kernel_size, stride, padding)
        super().__init__(conv, nn.ReLU(inplace=True))


class ConvCapsNet(StemNetwork):
    """A stem, primary capsules, layers of convolutional capsules, class capsules, a decoder if wanted.

    `stem`, `stem_frozen` and `norm_groups` are those of `StemNetwork.add_stem`; a `PaperStem` is normalised
    as a stem of the user is. Primary capsules stay where they are, [B, H, W, types, dim]. Each number of
    `capsule_types`, `capsule_dims`, `capsule_kernels` and `capsule_strides` is a layer of `ConvCapsules`,
    all with `capsule_padding` and `competition`; none at all leaves one capsule layer, the class capsules.

    `class_weights`: ``"position"`` is `ClassCapsules`, a matrix for each child; ``"shared"`` is
    `SharedClassCapsules`, one for each type of child, with coordinate addition.

    Remedies for stacks that do not learn: `residual` blocks and `pose_norm` and `capsule_dropout` in front of
    each capsule layer (`CapsuleBlock`, `ChildPoses`); `capsule_bias` and `log_priors` of all capsule layers,
    but shared class capsules have no priors.

    Initialisation: primary capsules start at length 0.5, and so do layers of convolutional capsules, which
    `start_gain` keeps alive, however deep the stack. Totals of class capsules start at `initial_total`.

    `recompute_blocks`, which may be set at any time, makes the backward pass compute each block of
    convolutional capsules again: between the passes only the input of each block is kept. It costs one more
    forward pass of the blocks. Class capsules keep no more than their input and totals anyway.

    `options` are `ClassKeywords`, without a decoder by default; `num_labels` is that of `CapsNet`. The layers
    under the class capsules route with the same iterations and options of `route`.

    Shapes: as `CapsuleNetwork`.
    Raises: ShapeError as `ResNetCapsNet`, or if the tuples differ in length.

    Example:
        >>> network = ConvCapsNet((1, 20, 33), 5, stem=PaperStem(1, 16, 5), capsule_types=(6, 6),
        ...     capsule_dims=(8, 8), capsule_kernels=(3, 3), capsule_strides=(2, 1), residual=True)
        >>> network(torch.rand(2, 1, 20, 33)).scores.shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
        *,
        stem: nn.Module | None = None,
        stem_frozen: bool = False,
        norm_groups: int = 8,
        primary_types: int = 8,
        primary_dim: int = 8,
        primary_kernel: int = 3,
        primary_stride: int = 2,
        padding: Padding = "same",
        capsule_types: tuple[int, ...] = (8,),
        capsule_dims: tuple[int, ...] = (16,),
        capsule_kernels: tuple[int, ...] = (3,),
        capsule_strides: tuple[int, ...] = (2,),
        capsule_padding: Padding = "same",
        competition: Competition = "field",
        class_weights: ClassWeights = "position",
        residual: bool = False,
        pose_norm: bool = False,
        capsule_dropout: float = 0.0,
        num_labels: int = 1,
        **options: Unpack[ClassKeywords],
    ) -> None:
        super().__init__(image_shape, num_classes, num_labels)
        check_name("competition", competition, get_args(Competition))
        check_flag("residual", residual)
        check_flag("pose_norm", pose_norm)
        if class_weights == "shared" and options.get("class_layer") is not None:
            raise ValueError("class_weights='shared' is for dynamic routing; leave class_layer out")
        if class_weights not in get_args(ClassWeights):
            raise ValueError(
                f"class_weights={class_weights!r} is unknown; choose {one_of(get_args(ClassWeights))}"
            )
        self.recompute_blocks = False
        own = not isinstance(stem, PaperStem)
        features, height, width = self.add_stem(stem, frozen=stem_frozen, norm_groups=norm_groups, own=own)
        self.primary_capsules = PrimaryCapsules(
            features, primary_types, primary_dim, primary_kernel, primary_stride, padding
        )
        self.check_sides(height, width)
        length, layer_options = START_LENGTH if pose_norm else None, _layer_options(options)
        blocks, types, dim = [], primary_types, primary_dim
        for size in _layer_sizes(capsule_types, capsule_dims, capsule_kernels, capsule_strides):
            layer = ConvCapsules(types, dim, *size, capsule_padding, competition=competition, **layer_options)
            blocks.append(CapsuleBlock(layer, ChildPoses(length, capsule_dropout), residual=residual))
            types, dim = layer.types, layer.dim
        self.blocks = nn.ModuleList(blocks)
        self.class_inputs = ChildPoses(length, capsule_dropout)
        rows, columns = self.child_sides(height, width)
        num_children = rows * columns * types
        if class_weights == "shared":
            layer_options.pop("log_priors", None)
            num_children, options["class_layer"] = types, partial(SharedClassCapsules, **layer_options)
        self.add_classes(num_children, dim, **options)
        self.initialise_capsules()
        self.train()

    @property
    def capsule_blocks(self) -> list[CapsuleBlock]:
        """The blocks of convolutional capsules, from below."""
        return [block for block in self.blocks if isinstance(block, CapsuleBlock)]

    @torch.no_grad()
    def initialise_capsules(self) -> None:
        """Draw the weights of all capsules anew; see the class."""
        self.initialise_primary(self.primary_capsules)
        length = CHILD_LENGTH
        for block in self.capsule_blocks:
            length = block.draw_weights(length)
        length = self.class_inputs.length or length
        if isinstance(layer := self.class_capsules, SharedClassCapsules):
            layer.draw_weights(initial_total(layer.num_parents, layer.parent_dim) / length)
        else:
            self.initialise_classes(length)

    def grid(self, images: Tensor) -> Tensor:
        """Return the poses [B, H, W, types, dim] of the last layer under the class capsules."""
        features = self.features(images)
        sides = super().child_sides(features.shape[2], features.shape[3])
        primary = self.primary_capsules(features)  # [B, I, D], positions of a type together
        poses = primary.unflatten(1, (self.primary_capsules.types, *sides)).permute(0, 2, 3, 1, 4)
        for block in self.capsule_blocks:
            poses = run_block(block, poses, recompute=self.recompute_blocks)
        return self.class_inputs(poses)

    def child_poses(self, images: Tensor) -> Tensor:
        """Return the poses of the children of class capsules: [B, I, D], or the grid for shared weights."""
        grid = self.grid(images)
        if isinstance(self.class_capsules, SharedClassCapsules):
            return grid
        return grid.permute(0, 3, 1, 2, 4).flatten(1, 3)

    def child_sides(self, height: int, width: int) -> tuple[int, ...]:
        """Return the rows and columns of the last layer under the class capsules."""
        sides = super().child_sides(height, width)
        for block in self.capsule_blocks:
            sides = block.layer.parent_shape(sides)
        return sides


def _layer_options(options: ClassKeywords) -> dict[str, Any]:
    """Return the options of class capsules that layers of convolutional capsules take too."""
    names = RoutingKeywords.__optional_keys__ | {"iterations", "capsule_bias", "log_priors"}
    return {name.removeprefix("capsule_"): value for name, value in options.items() if name in names}


def _layer_sizes(
    types: tuple[int, ...], dims: tuple[int, ...], kernels: tuple[int, ...], strides: tuple[int, ...]
) -> list[tuple[int, int, int, int]]:
    """Return types, dimension, kernel and stride of each layer.

    Raises:
        ShapeError: the tuples differ in length, or a number is no whole number of at least 1.
    """
    if len({len(each) for each in (types, dims, kernels, strides)}) > 1:
        raise ShapeError(
            f"capsule_types={types!r}, capsule_dims={dims!r}, capsule_kernels={kernels!r} and "
            f"capsule_strides={strides!r} differ in length; give one of each for every layer"
        )
    for kernel in kernels:
        check_sizes(capsule_kernels=kernel)
    return list(zip(types, dims, kernels, strides, strict=True))
