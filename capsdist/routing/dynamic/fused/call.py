"""One call of `fused`: its operands as the kernels take them, its shape, and how kernels are started.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capsdist.routing.dynamic.fused.plan import SHARED_BYTES, Plan, Sizes, fits_whole, launches_early

__all__ = ["MAX_AT_ONCE", "Call", "start"]

# Images of a program that adds up parts: many small programs read faster than few large ones.
ROWS = 8
# Parts that such a program reads at once.
MAX_AT_ONCE = 32


@dataclass(frozen=True)
class Call:
    """The operands of one call, as the kernels take them, and its shape.

    Attributes:
        poses: [B, D, I] and weights [J, E, D, I], contiguous, in the dtype of the products.
        priors: [I, J], or None.
    """

    poses: Tensor
    weights: Tensor
    priors: Tensor | None
    none_of_the_above: bool
    sizes: Sizes

    @staticmethod
    def prepare(
        child_poses: Tensor,
        packed_weights: Tensor,
        log_priors: Tensor | None,
        none_of_the_above: bool,
        operand_dtype: torch.dtype,
    ) -> Call:
        """Lay the operands out; copies only what has another dtype or layout, and keeps no copy."""
        num_parents, parent_dim, child_dim, num_children = packed_weights.shape
        shape = len(child_poses), num_children, num_parents, child_dim, parent_dim
        return Call(
            child_poses.transpose(1, 2).to(operand_dtype).contiguous(),
            packed_weights.to(operand_dtype).contiguous(),
            None if log_priors is None else log_priors.contiguous(),
            none_of_the_above,
            Sizes(*shape, operand_dtype.itemsize, _shared_bytes(child_poses.device)),
        )

    @property
    def whole(self) -> bool:
        """Whether a program normalises over all parents by itself."""
        return fits_whole(self.sizes)

    @property
    def long_rows(self) -> bool:
        """Whether a parent's E numbers are more than a tile has, see `rows`."""
        return self.sizes.blocks[1] > 1

    @property
    def uniform_coupling(self) -> float:
        """The coupling of the first iteration without priors."""
        return 1 / (self.sizes.num_parents + self.none_of_the_above)

    def is_coupled(self, iteration: int) -> bool:
        """Whether the coupling of this iteration differs between children, and has to be computed."""
        return iteration > 0 or self.priors is not None

    def parents(self, *leading: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return memory for numbers [..., J, B, E]."""
        sizes = self.sizes
        shape = (*leading, sizes.num_parents, sizes.num_images, sizes.parent_dim)
        return self.poses.new_empty(shape, dtype=dtype)

    def children(self, *leading: int) -> Tensor:
        """Return memory for numbers [..., B, I]."""
        return self.poses.new_empty(
            (*leading, self.sizes.num_images, self.sizes.num_children), dtype=torch.float32
        )

    def constants(self, plan: Plan | None = None) -> dict[str, Any]:
        """Return the compile-time arguments of a kernel over parents or, with a plan, over tiles too."""
        sizes, (child_dim, parent_dim) = self.sizes, self.sizes.padded
        parents = {"J": sizes.num_parents, "E": sizes.parent_dim, "EP": parent_dim}
        launching = {"EARLY": True, "launch_pdl": True} if launches_early() else {"EARLY": False}
        if plan is None:
            return {**parents, **launching, "ROWS": ROWS, "num_warps": 4}
        children = {"I": sizes.num_children, "D": sizes.child_dim, "DP": child_dim}
        tile = {"BT": plan.images, "IT": plan.children, "PRECISION": self.precision}
        tile |= {"num_warps": plan.warps, "num_stages": plan.stages}
        return {**parents, **launching, **children, **tile}

    @property
    def precision(self) -> str:
        """How fp32 products are taken: three TF32 products, or one where torch may do so too."""
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"

    @property
    def variant(self) -> str:
        """What makes other programs of the same kernels."""
        dtype = str(self.poses.dtype).removeprefix("torch.")
        return f"{dtype}-{self.precision}{'-priors' * (self.priors is not None)}"

    def tiles(self, plan: Plan) -> tuple[int, int, int]:
        """Return tiles of images, tiles of children, and blocks of parents: of J, and of E of each."""
        sizes = self.sizes
        return (
            -(-sizes.num_images // plan.images),
            -(-sizes.num_children // plan.children),
            -(-sizes.num_parents // plan.parents) * sizes.blocks[1],
        )

    def rows_grid(self) -> tuple[int]:
        """Return the grid of a kernel over parents."""
        return (-(-self.sizes.num_images // ROWS) * self.sizes.num_parents,)


def _shared_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return SHARED_BYTES
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def start(kernel: Any, grid: tuple[int, ...], *operands: Any, **constants: Any) -> None:
    """Launch a kernel. Triton's own types know tensors and constants of a kernel only as it sees them."""
    kernel[grid](*operands, **constants)
