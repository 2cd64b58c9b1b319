"""The two capsule layers and the convolution under them: ordinary torch modules for any network.

Shape letters: B images, C channels, H and W pixels, I children, D child dimension, J parents,
E parent dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal, Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from capsdist.errors import ShapeError
from capsdist.ops import squash
from capsdist.ops.checks import check_tensor
from capsdist.ops.convolution import convolve
from capsdist.routing import RoutingKeywords, RoutingOptions, unpack_weights
from capsdist.routing.common.checks import check_flag, is_count
from capsdist.routing.dynamic.backends import route_call
from capsdist.routing.dynamic.options import RoutingCall

Padding = Literal["valid", "same"]


class Conv2d(nn.Conv2d):
    """Convolution whose padding is ``"valid"`` or ``"same"`` at any stride, as in TensorFlow.

    Needed because torch refuses ``"same"`` at stride 2, where it is not symmetric: the output has
    ``ceil(size / stride)`` pixels, and the odd row of zeros, if there is one, goes below and to the
    right. The authors' CIFAR-10 network depends on it.

    `scale` multiplies the sum over the kernel before the bias is added. ``None`` is an ordinary convolution.

    Shapes: [B, in_channels, H, W] -> [B, out_channels, H', W'], see `output_side`.
    Raises: ShapeError if a size is no whole number of at least 1 (kernel and stride are one number for both
    directions), or the input has another rank or number of channels, or is smaller than the kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: Padding = "valid",
        scale: float | None = None,
    ) -> None:
        check_sizes(
            in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride
        )
        super().__init__(in_channels, out_channels, kernel_size, stride)
        if padding not in ("valid", "same"):
            raise ValueError(f"padding={padding!r} is unknown; use 'valid' or 'same'")
        self.padding_name: Padding = padding
        self.scale = scale

    def output_side(self, side: int) -> int:
        """Return the output's side for an input of `side` pixels; below 1 if the kernel does not fit."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        return -(-side // stride) if self.padding_name == "same" else (side - kernel) // stride + 1

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `input` [B, C, H, W]."""
        check_floating("input", input, "images / 255 in float")
        if input.dim() != 4 or input.shape[1] != self.in_channels:
            raise ShapeError(
                f"input has shape {list(input.shape)}; give images [B, {self.in_channels}, H, W] "
                f"or build the layer with in_channels={input.shape[1] if input.dim() == 4 else 'C'}"
            )
        height, width = input.shape[2:]
        if self.padding_name == "valid":
            if min(height, width) < self.kernel_size[0]:
                raise ShapeError(
                    f"input of {height}x{width} pixels is smaller than the {self.kernel_size[0]}x"
                    f"{self.kernel_size[0]} kernel; give larger images or use padding='same'"
                )
            return self._convolve(input)
        top, bottom = self._zeros(height)
        left, right = self._zeros(width)
        if (top, left) == (bottom, right):  # symmetric: the convolution pads by itself, without a copy
            return self._convolve(input, (top, left))
        return self._convolve(functional.pad(input, (left, right, top, bottom)))

    def _convolve(self, input: Tensor, zeros: tuple[int, int] = (0, 0)) -> Tensor:
        """Convolve with `zeros` above and below, left and right."""
        stride = self.stride[0], self.stride[1]
        if self.scale is None:  # a comparison of floats would make torch.compile trace twice
            return convolve(input, self.weight, self.bias, stride, zeros)
        sums = convolve(input, self.weight, None, stride, zeros) * self.scale
        assert self.bias is not None
        return sums + self.bias.to(sums.dtype)[:, None, None]

    def _zeros(self, side: int) -> tuple[int, int]:
        """Return the zeros before and after `side` pixels."""
        total = max((self.output_side(side) - 1) * self.stride[0] + self.kernel_size[0] - side, 0)
        return total // 2, total - total // 2

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size[0]}, "
            f"stride={self.stride[0]}, padding={self.padding_name!r}"
            + ("" if self.scale is None else f", scale={self.scale:g}")
        )


class PrimaryCapsules(nn.Module):
    """Lowest capsules: a convolution whose channels are grouped into capsules, squashed (paper, section 4).

    A capsule is `dim` CHANNELS at one position, not `dim` neighbouring pixels of one channel. Channel
    ``d * types + t`` is dimension d of type t, and child ``(t * H' + y) * W' + x`` is type t at
    position (y, x): so the convolution's output is [B, D, I] in memory as it stands, the layout in
    which routing is fast, and the poses handed on are a view of it.

    `coupling` multiplies the convolution before its bias is added; ``None`` is the paper's layer, without it.
    The authors' code sends primary capsules through one routing iteration with a single input capsule, whose
    coupling coefficients are 1 / types, or 1 / (types + 1) with none of the above: it squashes
    conv / types + bias.

    Shapes: images or features [B, in_channels, H, W] -> child_poses [B, I, D],
    I = types * H' * W', D = dim, lengths below 1.
    Raises: ShapeError as `Conv2d`, and if `types` or `dim` is no whole number of at least 1.

    Example:
        >>> PrimaryCapsules(256, types=32, dim=8)(torch.zeros(2, 256, 20, 20)).shape
        torch.Size([2, 1152, 8])
    """

    def __init__(
        self,
        in_channels: int,
        types: int = 32,
        dim: int = 8,
        kernel_size: int = 9,
        stride: int = 2,
        padding: Padding = "valid",
        coupling: float | None = None,
    ) -> None:
        super().__init__()
        check_sizes(types=types, dim=dim)
        self.types, self.dim = types, dim
        self.conv = Conv2d(in_channels, types * dim, kernel_size, stride, padding, scale=coupling)

    def num_capsules(self, height: int, width: int) -> int:
        """Return I, the number of capsules for an input of `height` x `width` pixels."""
        return self.types * self.conv.output_side(height) * self.conv.output_side(width)

    def forward(self, features: Tensor) -> Tensor:
        """Return child_poses [B, I, D] of `features` [B, C, H, W]."""
        # [B, D*types, H', W'] -> [B, D, I]: a view
        poses = self.conv(features).unflatten(1, (self.dim, self.types)).flatten(2)
        return squash(poses, dim=1).transpose(1, 2)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"types={self.types}, dim={self.dim}"


class CapsuleLayer(nn.Module):
    """The sizes of a layer of capsules, child_poses [B, I, D] -> parent_poses [B, J, E].

    Raises: ShapeError if a size is no whole number of at least 1.
    """

    def __init__(self, num_children: int, child_dim: int, num_parents: int, parent_dim: int) -> None:
        super().__init__()
        check_sizes(
            num_children=num_children, child_dim=child_dim, num_parents=num_parents, parent_dim=parent_dim
        )
        self.num_children, self.child_dim = num_children, child_dim
        self.num_parents, self.parent_dim = num_parents, parent_dim

    def check_input(self, child_poses: Tensor) -> None:
        """Raise ShapeError unless `child_poses` is [B, num_children, child_dim]."""
        check_floating("child_poses", child_poses, "poses in float")
        if child_poses.dim() != 3 or child_poses.shape[1:] != (self.num_children, self.child_dim):
            raise ShapeError(
                f"child_poses has shape {list(child_poses.shape)}; this layer was built for "
                f"[B, {self.num_children}, {self.child_dim}]: match num_children and child_dim"
            )


class PackedCapsules(CapsuleLayer):
    """The parameters of capsules with one matrix per child and parent, and how they are initialised.

    The base class of layers, which knows no routing algorithm: a subclass calls `add_parameters` when it is
    built, and an algorithm in its `forward`. `packed_weights` is [J, E, D, I], or what a rank owns of it.

    Raises: ShapeError if a size is no whole number of at least 1.
    """

    packed_weights: nn.Parameter
    bias: nn.Parameter | None
    log_priors: nn.Parameter | None

    def add_parameters(self, num_own: int, *, bias: bool = False, log_priors: bool = False) -> None:
        """Make the parameters, of `num_own` children, and draw them."""
        num_parents, parent_dim = self.num_parents, self.parent_dim
        self.packed_weights = nn.Parameter(torch.empty(num_parents, parent_dim, self.child_dim, num_own))
        self.bias = learned("bias", bias, num_parents, parent_dim)
        self.log_priors = learned("log_priors", log_priors, num_own, num_parents)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew from the default initialisation, and set bias and priors to 0."""
        sd = initial_sd(self.num_children, self.num_parents, self.parent_dim)
        self.draw_weights(lambda weights: weights.normal_(std=sd))
        set_to_zero(self.bias, self.log_priors)

    @torch.no_grad()
    def draw_weights(self, draw: Callable[[Tensor], object]) -> None:
        """Draw the weights anew by `draw`, which fills a tensor [J, E, D, I] in place."""
        draw(self.packed_weights)

    @property
    def weights(self) -> Tensor:
        """The transformation matrices W_ij [I, J, D, E] of the children here, a view of the parameter."""
        return unpack_weights(self.packed_weights)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep the layout, in which `.to(memory_format=torch.channels_last)` sees an image."""
        return super()._apply(lambda tensor: fn(tensor).contiguous(), recurse)


class ClassCapsules(PackedCapsules):
    """One capsule a class, fed by all children through routing by agreement (paper, section 4: DigitCaps).

    The parameter `packed_weights` is stored in the layout [J, E, D, I] that the fast routing reads;
    `weights` is a view of it as the paper writes W_ij. `bias` (the authors' code has one) is added to
    the totals before squash. With `none_of_the_above` a child may also choose none of the parents
    (paper, section 7). With `log_priors` the logits start from a parameter [I, J], not from 0: how likely
    a child belongs to a parent whatever the image (paper, section 2). `iterations` and `options`, among them
    `none_of_the_above`, are those of `route`; the layer keeps them as `routing`, a `RoutingOptions`.

    Initialisation (ours; the paper gives none): bias and priors zero, weights normal with standard deviation
    ``0.4 J / sqrt(I E)``, so that children of length 1 start with totals of length 0.4 whatever the
    sizes. Squash has little slope far below and above length 1: measured on 4,000 MNIST digits after 100
    steps of 32, the paper's network misread 4.2, 5.5, 6.0 and 5.7 % of 300 others with 0.4, 0.1, 1.3 and
    0.04 (mean of 2 seeds), and learned nothing in 60 steps with 4 and above.

    Shapes: child_poses [B, I, D] -> parent_poses [B, J, E]; the length of a parent is its class' score.
    Raises: ShapeError if a size is no whole number of at least 1, an option is none of `route`'s, or the
    input is not [B, num_children, child_dim].

    Example:
        >>> ClassCapsules(1152, 8, num_parents=10, parent_dim=16)(torch.zeros(2, 1152, 8)).shape
        torch.Size([2, 10, 16])
    """

    def __init__(
        self,
        num_children: int,
        child_dim: int,
        num_parents: int,
        parent_dim: int,
        *,
        iterations: int = 3,
        bias: bool = False,
        log_priors: bool = False,
        **options: Unpack[RoutingKeywords],
    ) -> None:
        super().__init__(num_children, child_dim, num_parents, parent_dim)
        self.routing = RoutingOptions(iterations, **options)
        self.add_parameters(num_children, bias=bias, log_priors=log_priors)

    def forward(self, child_poses: Tensor) -> Tensor:
        """Return parent_poses [B, J, E] of `child_poses` [B, I, D]."""
        self.check_input(child_poses)
        call = RoutingCall(child_poses, self.packed_weights, self.routing, self.bias, self.log_priors)
        return route_call(call)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return describe(self, self.routing)


def describe_sizes(layer: Any) -> str:
    """Return the sizes of a layer of capsules for `repr`."""
    return f"{layer.num_children} x {layer.child_dim}D -> {layer.num_parents} x {layer.parent_dim}D"


def describe(layer: Any, routing: Any) -> str:
    """Return sizes and options of class capsules for `repr`; the first option is iterations."""
    parameters = f"bias={layer.bias is not None}, log_priors={layer.log_priors is not None}"
    iterations, *others = (f"{name}={value!r}" for name, value in asdict(routing).items())
    return ", ".join([describe_sizes(layer), iterations, parameters, *others])


def check_sizes(**sizes: object) -> None:
    """Raise ShapeError unless every size is a whole number of at least 1."""
    for name, size in sizes.items():
        if not is_count(size):
            raise ShapeError(f"{name}={size!r} must be a whole number of at least 1")


def check_floating(name: str, tensor: Tensor, remedy: str) -> None:
    """Raise ShapeError unless it is a tensor of floating numbers."""
    check_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise ShapeError(f"{name} has dtype {tensor.dtype}; pass {remedy}")


def learned(name: str, wanted: object, *shape: int) -> nn.Parameter | None:
    """Return a parameter of this shape that is still to be drawn, or None if it is not wanted.

    Raises: ShapeError unless `wanted` is True or False; `name` is that of the option.
    """
    check_flag(name, wanted)
    return nn.Parameter(torch.empty(shape)) if wanted else None


@torch.no_grad()
def set_to_zero(*parameters: nn.Parameter | None) -> None:
    """Set the parameters that there are to 0."""
    for parameter in parameters:
        if parameter is not None:
            parameter.zero_()


def initial_sd(num_children: int, num_parents: int, parent_dim: int, total: float = 0.4) -> float:
    """Return the standard deviation that weights of class capsules are drawn with, see `ClassCapsules`.

    total: length of the totals that children of length 1 start with.
    """
    return total * num_parents / math.sqrt(num_children * parent_dim)


def truncated_normal_(parameter: Tensor, sd: float) -> None:
    """Fill `parameter` from a normal distribution of `sd`, values beyond 2 sd drawn again (TensorFlow's)."""
    nn.init.trunc_normal_(parameter, std=sd, a=-2 * sd, b=2 * sd)


def check_images(images: Tensor, image_shape: tuple[int, int, int]) -> None:
    """Raise ShapeError unless `images` is a tensor [B, *image_shape]."""
    check_tensor("images", images)
    if images.shape[1:] != image_shape:
        raise ShapeError(
            f"images has shape {list(images.shape)}; this network was built for [B, *{image_shape}]: "
            "crop the images or build it with their image_shape"
        )
