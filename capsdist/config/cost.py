"""What a layer costs, as numbers: parameters, FLOP, and memory of a training step.

A `Family` may have a function ``cost(model, routing)`` that returns a `Cost`; the planner and the search then
price its networks without building them. `capsdist.models.costs` has the layers. Imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Bytes", "Cost", "LayerCost", "Numbers", "Routed"]


@dataclass(frozen=True)
class Bytes:
    """A sum of bytes: `image` for each image, `fixed` whatever their number."""

    image: int = 0
    fixed: int = 0

    def of(self, num_images: int) -> int:
        """Return the bytes for `num_images`."""
        return self.image * num_images + self.fixed


@dataclass(frozen=True)
class Numbers:
    """Numbers that autograd keeps of one image: `narrow` in the forward pass's precision, `wide` in fp32."""

    narrow: int = 0
    wide: int = 0

    def bytes_at(self, narrow_bytes: int) -> int:
        """Return the bytes, with `narrow_bytes` a narrow number."""
        return self.narrow * narrow_bytes + self.wide * 4


@dataclass(frozen=True)
class Routed:
    """Sizes of class capsules, which ranks can share: I children, D, J parents, E, R iterations."""

    children: int
    child_dim: int
    parents: int
    parent_dim: int
    iterations: int


@dataclass(frozen=True)
class LayerCost:
    """One layer in a training step. FLOP and numbers are those of one image.

    Attributes:
        name: for people.
        parameters: trainable numbers.
        frozen: numbers of weights that do not learn: without gradient, optimizer state and exchange.
        forward_flop, backward_flop: FLOP of matrix products and convolutions, 2 a multiply-add.
        recomputed_flop: what the backward pass computes that the forward pass had computed.
        saved: what autograd keeps from the forward to the backward pass, without parameters.
        forward_peaks, backward_peaks: bytes that exist at once while the layer runs, above what is kept; each
            entry is one moment, in fp32. Forward with its output, backward with the gradients of its output,
            its input and its parameters, and the copies that libraries make.
        cast: numbers of parameters of which a 16-bit precision keeps a copy from forward to backward.
        cast_input: numbers of its input of an image of which it keeps a copy; the images', of a first layer.
        copied: numbers made of parameters that are kept in fp32 whatever the precision, once a batch.
        routed: sizes, of class capsules only.
    """

    name: str
    parameters: int = 0
    forward_flop: int = 0
    backward_flop: int = 0
    recomputed_flop: int = 0
    saved: Numbers = Numbers()
    forward_peaks: tuple[Bytes, ...] = ()
    backward_peaks: tuple[Bytes, ...] = ()
    cast: int = 0
    cast_input: int = 0
    copied: int = 0
    routed: Routed | None = None
    frozen: int = 0


@dataclass(frozen=True)
class Cost:
    """The layers of a network in the order of the forward pass.

    input_numbers: of an image, and of what there is to reconstruct besides.
    """

    input_numbers: int
    layers: list[LayerCost] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Trainable numbers of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def frozen(self) -> int:
        """Numbers of all layers' weights that do not learn."""
        return sum(layer.frozen for layer in self.layers)
