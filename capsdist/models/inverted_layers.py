"""Class capsules with inverted dot-product attention routing: one layer, or several that can take turns.

Source: Tsai, Srivastava, Goh, Salakhutdinov, "Capsules with Inverted Dot-Product Attention Routing" (ICLR
2020): Procedure 1 for a layer, and the concurrent routing of several, which the authors' code has as well.

Shape letters: B images, I children, D child dimension, J parents, E parent dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from capsdist.models.layers import CapsuleLayer, PackedCapsules, check_sizes, describe_sizes, set_to_zero
from capsdist.models.units import passes_of
from capsdist.routing.common.checks import check_flag
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.later.forms import Backend, LaterOptions, with_lengths
from capsdist.routing.later.inverted import update_inverted

__all__ = ["InvertedCapsules", "InvertedLayer", "Pass"]

Pass = tuple[Tensor, Tensor | None]
"""What a pass is called with: child poses [B, I, D], and parent poses [B, J, E] unless it is the first."""


class InvertedLayer(PackedCapsules):
    """One layer of capsules, of which a call is one pass; all parents share a LayerNorm.

    Initialisation (ours): weights as `ClassCapsules`; the LayerNorm changes nothing.

    Shapes: child_poses [B, I, D], parent_poses [B, J, E] of the pass before or None -> [B, J, E].
    Raises: ShapeError if a size is no whole number of at least 1, or the input does not fit.
    """

    def __init__(
        self, num_children: int, child_dim: int, num_parents: int, parent_dim: int, backend: Backend = "auto"
    ) -> None:
        super().__init__(num_children, child_dim, num_parents, parent_dim)
        self.routing = LaterOptions(1, backend)
        self.scale, self.shift = (nn.Parameter(torch.empty(parent_dim)) for _ in range(2))
        self.add_parameters(num_children)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew; the LayerNorm changes nothing."""
        super().reset_parameters()
        self.scale.fill_(1)
        set_to_zero(self.shift)

    def forward(self, child_poses: Tensor, parent_poses: Tensor | None = None) -> Tensor:
        """Return the parents' poses p_j [B, J, E] after one pass; None: the uniform pass that begins."""
        self.check_input(child_poses)
        operands = child_poses, self.packed_weights, self.scale, self.shift, parent_poses
        return update_inverted(*operands, backend=self.routing.backend)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return describe_sizes(self)


class InvertedCapsules(CapsuleLayer):
    """Class capsules with inverted dot-product attention routing (see `capsdist.routing.later.inverted`).

    After the LayerNorm lengths say nothing, so the paper ends in one linear classifier, shared over classes,
    and cross-entropy. Here the logistic function of that classifier's logit w . p_j + b becomes the length of
    capsule j, and p_j its direction: margin loss and decoder are those of every network of capsules. Chosen:
    b = 0 and w = 0 at first, so that all scores start at 0.5.

    hidden_capsules: numbers of capsules, of E dimensions, of layers between the children and the classes.
    iterations: softmax passes of each layer, the first uniform. By default a layer makes all of its passes
    before the one above begins. `concurrent`: all layers make their first pass from the lowest on; each
    further pass is one of all layers at once, from the poses of children and parents after the pass before.

    Shapes: child_poses [B, I, D] -> parent_poses [B, J, E].
    Raises: ShapeError if a size is no whole number of at least 1, an option is unknown, or the input does not
    fit.
    """

    def __init__(
        self,
        num_children: int,
        child_dim: int,
        num_parents: int,
        parent_dim: int,
        *,
        iterations: int = 3,
        hidden_capsules: Sequence[int] = (),
        concurrent: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(num_children, child_dim, num_parents, parent_dim)
        for number in hidden_capsules:
            check_sizes(hidden_capsules=number)
        check_flag("concurrent", concurrent)
        self.routing, self.concurrent = LaterOptions(iterations, backend), concurrent
        sizes = [(num_children, child_dim), *((each, parent_dim) for each in (*hidden_capsules, num_parents))]
        self.layers = nn.ModuleList(
            InvertedLayer(*below, *above, backend) for below, above in pairwise(sizes)
        )
        self.read_out = nn.Parameter(torch.empty(parent_dim))
        self.read_out_bias = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the classifier to 0, so that all logits are 0; the layers draw their own parameters."""
        set_to_zero(self.read_out, self.read_out_bias)

    def forward(self, child_poses: Tensor) -> Tensor:
        """Return parent_poses [B, J, E] of `child_poses` [B, I, D]."""
        return self._capsules(self._run(child_poses)).to(child_poses.dtype)

    @property
    def inverted_layers(self) -> list[InvertedLayer]:
        """The layers, from below."""
        return [layer for layer in self.layers if isinstance(layer, InvertedLayer)]

    def passes(self, child_poses: Tensor) -> list[list[Pass]]:
        """Return what each pass of each layer is called with, the lowest layer first, for `child_poses`."""
        seen: list[list[Pass]] = [[] for _ in self.layers]
        self._run(child_poses, seen)
        return seen

    def _run(self, child_poses: Tensor, seen: list[list[Pass]] | None = None) -> Tensor:
        """Return the poses of the classes after all passes; add to `seen` what these are called with."""
        self.check_input(child_poses)
        wide = child_poses.to(wide_dtype(child_poses))  # once, so that one copy is kept
        run = self._concurrently if self.concurrent else self._one_by_one
        return run(wide, seen)

    def _one_by_one(self, poses: Tensor, seen: list[list[Pass]] | None) -> Tensor:
        for index in range(len(self.layers)):
            child_poses, poses = poses, self._pass(index, poses, None, seen)
            for _ in range(self.routing.iterations - 1):
                poses = self._pass(index, child_poses, poses, seen)
        return poses

    def _concurrently(self, child_poses: Tensor, seen: list[list[Pass]] | None) -> Tensor:
        poses = [child_poses]
        for index in range(len(self.layers)):
            poses.append(self._pass(index, poses[-1], None, seen))
        passes = passes_of(self.routing.iterations, len(self.layers), concurrent=True)
        for number in range(1, self.routing.iterations):
            before = list(poses)
            for index in range(len(self.layers)):
                if number < passes[index]:
                    poses[index + 1] = self._pass(index, before[index], before[index + 1], seen)
        return poses[-1]

    def _pass(
        self, index: int, child_poses: Tensor, parent_poses: Tensor | None, seen: list[list[Pass]] | None
    ) -> Tensor:
        """Return the poses that a layer has after one pass."""
        if seen is not None:
            seen[index].append((child_poses, parent_poses))
        return self.layers[index](child_poses, parent_poses)

    def _capsules(self, parent_poses: Tensor) -> Tensor:
        """Return poses p_j [B, J, E] with the length that the classifier gives each."""
        with without_autocast(parent_poses):
            wide = parent_poses.to(wide_dtype(parent_poses))
            weights, bias = (each.to(wide.dtype) for each in (self.read_out, self.read_out_bias))
            return with_lengths(wide, wide @ weights + bias).to(parent_poses.dtype)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"iterations={self.routing.iterations}, concurrent={self.concurrent}"
