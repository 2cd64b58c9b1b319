"""Shared pieces of the kernels: tiles of poses, weights and parents, and products with them.

A tile of children is kept as a matrix of DP * IT columns, dimension d of child i in column d * IT + i: that
is how poses [B, D, I] and packed weights [J, E, D, I] lie in memory, and with children innermost the sum over
D of a matrix product's result adds registers of one thread, without a shuffle.

Of a wide capsule a tile has a block of DP or EP dimensions that starts at `dim` or `row`; otherwise DP and EP
are D and E padded to powers of two.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension; BT images and IT
children of a tile. What is outside is 0.
"""

# Kernels are Python in syntax only: numbers are constants of the compiler, tuples of tiles grow by addition,
# and I is the letter of the paper.
# ruff: noqa: E741
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = [
    "RUN_TIME_SIZES", "add_product", "begin", "dot_children", "first_image", "load_children", "load_parents",
    "load_poses", "load_priors", "load_weights", "multiply", "num_numbers", "parent_tile", "round_to",
    "scale_operand", "scale_poses", "squash", "squash_backward", "store", "store_children", "store_parents",
    "store_poses", "store_weights",
]  # fmt: skip

# Arguments that a kernel is not compiled anew for: batches differ, and so do the plans that a search tries.
RUN_TIME_SIZES = ("B", "steps", "splits", "iterations")
# From here on, an offset needs 64 bits.
MANY = tl.constexpr(2**31)
# Triton's interpreter neither multiplies bf16 numbers nor rounds to the nearest of them. Below it, both are
# done in fp32, with the same results as on a GPU.
INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def begin(EARLY: tl.constexpr):
    """Wait for the kernel before, and let the next one come as far as here meanwhile.

    With EARLY a kernel is launched before the one before it has ended (programmatic dependent launch, from
    Hopper on), so that the time between two kernels is saved. Every kernel has to wait here first, then all
    that came before is done and seen.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def first_image(B, BT: tl.constexpr, OTHERS: tl.constexpr):
    """Return this program's first image, and which of OTHERS it takes: one axis of a grid has both.

    It is the first axis, because CUDA launches at most 65,535 programs along the others. Images are
    innermost, so that programs that need the same weights run together.
    """
    program = tl.program_id(0)
    if OTHERS == 1:
        image, other = program * BT, 0
    else:
        tiles = tl.cdiv(B, BT)
        image, other = program % tiles * BT, program // tiles
    return image, other


@triton.jit
def num_numbers(B, SIZE: tl.constexpr):
    """Return B times SIZE in 64 bits."""
    return tl.cast(B, tl.int64) * SIZE


@triton.jit
def round_to(values, DTYPE: tl.constexpr):
    """Return fp32 values rounded to the nearest of DTYPE; interpreted, bf16 numbers stay in fp32."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = values.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return ((bits >> 16) << 16).to(tl.float32, bitcast=True)
    else:
        return values.to(DTYPE)


@triton.jit
def add_product(total, left, right, PRECISION: tl.constexpr):
    """Return the fp32 `total` plus the matrix product of `left` and `right`."""
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def multiply(left, right, PRECISION: tl.constexpr):
    """Return the matrix product of `left` and `right`, in fp32."""
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def store(pointers, values, inside):
    """Write fp32 values, rounded to what the memory holds."""
    DTYPE: tl.constexpr = pointers.dtype.element_ty
    tl.store(pointers, round_to(values, DTYPE).to(DTYPE), inside)


@triton.jit
def _columns(child, dim, I: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, IT: tl.constexpr):
    """Return offsets [DP * IT] within [D, I] of a tile of children, and which of them exist."""
    column = tl.arange(0, DP * IT)
    dims, children = dim + column // IT, column % IT
    exist = (dims < D) & (child + children < I)
    if D * I >= MANY:
        dims = dims.to(tl.int64)
    return dims * I + child + children, exist


@triton.jit
def poses_tile(
    image, child, dim, B,
    I: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr, IT: tl.constexpr,
):  # fmt: skip
    """Return offsets and mask of a tile [BT, DP * IT] of an array [B, D, I]."""
    images = image + tl.arange(0, BT)
    columns, exist = _columns(child, dim, I, D, DP, IT)
    offsets = images.to(tl.int64)[:, None] * (D * I) + columns[None, :]
    inside = (images < B)[:, None]
    if D % DP > 0 or I % IT > 0:  # else no column is outside, and its mask would cost instructions
        inside = inside & exist[None, :]
    return offsets, inside


@triton.jit
def load_poses(
    poses, image, child, B,
    I: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr, IT: tl.constexpr, dim=0,
):  # fmt: skip
    """Return the tile [BT, DP * IT] of poses [B, D, I] that starts at `image` and `child`."""
    offsets, inside = poses_tile(image, child, dim, B, I, D, DP, BT, IT)
    return tl.load(poses + offsets, inside, other=0.0)


@triton.jit
def store_poses(
    array, tile, image, child, B,
    I: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr, IT: tl.constexpr, dim=0,
):  # fmt: skip
    """Write a tile [BT, DP * IT] to an array [B, D, I]."""
    offsets, inside = poses_tile(image, child, dim, B, I, D, DP, BT, IT)
    store(array + offsets, tile, inside)


@triton.jit
def weights_tile(
    parent, child, dim, row, I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    DP: tl.constexpr, EP: tl.constexpr, IT: tl.constexpr, PARENTS: tl.constexpr,
):  # fmt: skip
    """Return offsets and mask of the tile [EP, DP * IT] of one parent in an array [J, E, D, I]."""
    rows = row + tl.arange(0, EP)
    columns, exist = _columns(child, dim, I, D, DP, IT)
    inside = tl.full((EP, DP * IT), True, tl.int1)
    if E % EP > 0:
        inside = inside & (rows < E)[:, None]
    if D % DP > 0 or I % IT > 0:
        inside = inside & exist[None, :]
    if J % PARENTS > 0:
        inside = inside & (tl.full((EP, 1), parent, tl.int32) < J)
    if E * D * I >= MANY:
        rows = rows.to(tl.int64)
    offsets = tl.cast(parent, tl.int64) * (E * D * I) + (rows[:, None] * (D * I) + columns[None, :])
    return offsets, inside


@triton.jit
def load_weights(
    weights, parent, child, I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    DP: tl.constexpr, EP: tl.constexpr, IT: tl.constexpr, PARENTS: tl.constexpr, AGAIN: tl.constexpr,
    dim=0, row=0,
):  # fmt: skip
    """Return the tile [EP, DP * IT] of one parent; programs take PARENTS of the J parents each.

    AGAIN gives the same tile as another value: the compiler would see that a product with it has been taken
    before, and keep that in registers, where taking it again costs less.
    """
    offsets, inside = weights_tile(parent, child, dim, row, I, J, D, E, DP, EP, IT, PARENTS)
    if AGAIN:
        return tl.load(weights + offsets, inside, other=0.0, eviction_policy="evict_last")
    else:
        return tl.load(weights + offsets, inside, other=0.0)


@triton.jit
def store_weights(
    array, tile, parent, child, I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    DP: tl.constexpr, EP: tl.constexpr, IT: tl.constexpr, PARENTS: tl.constexpr, dim=0, row=0,
):  # fmt: skip
    """Write a tile [EP, DP * IT] of one parent to an array [J, E, D, I]."""
    offsets, inside = weights_tile(parent, child, dim, row, I, J, D, E, DP, EP, IT, PARENTS)
    store(array + offsets, tile, inside)


@triton.jit
def parent_tile(
    parent, image, row, B,
    J: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BT: tl.constexpr, PARENTS: tl.constexpr,
):  # fmt: skip
    """Return offsets and mask of the tile [BT, EP] of one parent in an array [J, B, E]."""
    images, columns = image + tl.arange(0, BT), row + tl.arange(0, EP)
    offsets = (tl.cast(parent, tl.int64) * B + images[:, None]) * E + columns[None, :]
    inside = (images < B)[:, None]
    if E % EP > 0:
        inside = inside & (columns < E)[None, :]
    if J % PARENTS > 0:
        inside = inside & (tl.full((BT, 1), parent, tl.int32) < J)
    return offsets, inside


@triton.jit
def load_parents(
    array, parent, image, B,
    J: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BT: tl.constexpr, PARENTS: tl.constexpr, row=0,
):  # fmt: skip
    """Return the tile [BT, EP] of one parent of an array [J, B, E]."""
    offsets, inside = parent_tile(parent, image, row, B, J, E, EP, BT, PARENTS)
    return tl.load(array + offsets, inside, other=0.0)


@triton.jit
def store_parents(
    array, tile, parent, image, B,
    J: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BT: tl.constexpr, PARENTS: tl.constexpr, row=0,
):  # fmt: skip
    """Write the tile [BT, EP] of one parent to an array [J, B, E]."""
    offsets, inside = parent_tile(parent, image, row, B, J, E, EP, BT, PARENTS)
    store(array + offsets, tile, inside)


@triton.jit
def load_children(array, image, child, B, outside, I: tl.constexpr, BT: tl.constexpr, IT: tl.constexpr):
    """Return the tile [BT, IT] of an array [B, I], with `outside` where there is none."""
    images, children = image + tl.arange(0, BT), child + tl.arange(0, IT)
    offsets = images.to(tl.int64)[:, None] * I + children[None, :]
    return tl.load(array + offsets, (images < B)[:, None] & (children < I)[None, :], other=outside)


@triton.jit
def store_children(array, tile, image, child, B, I: tl.constexpr, BT: tl.constexpr, IT: tl.constexpr):
    """Write the tile [BT, IT] to an array [B, I]."""
    images, children = image + tl.arange(0, BT), child + tl.arange(0, IT)
    offsets = images.to(tl.int64)[:, None] * I + children[None, :]
    tl.store(array + offsets, tile, (images < B)[:, None] & (children < I)[None, :])


@triton.jit
def load_priors(priors, parent, child, I: tl.constexpr, J: tl.constexpr, IT: tl.constexpr):
    """Return the log-priors [IT] of one parent, from an array [I, J]."""
    children = child + tl.arange(0, IT)
    offsets = children.to(tl.int64) * J + parent
    inside = (children < I) & (tl.full((IT,), parent, tl.int32) < J)
    return tl.load(priors + offsets, inside, other=0.0).to(tl.float32)


@triton.jit
def dot_children(product, poses, BT: tl.constexpr, DP: tl.constexpr, IT: tl.constexpr):
    """Return the dot products over D of two tiles [BT, DP * IT]: [BT, IT]."""
    return tl.sum(tl.reshape(product * poses, (BT, DP, IT)), 1)


@triton.jit
def scale_poses(factor, poses, BT: tl.constexpr, DP: tl.constexpr, IT: tl.constexpr):
    """Return the tile `poses` [BT, DP * IT] with every child multiplied by its `factor` [BT, IT]."""
    scaled = tl.expand_dims(factor, 1) * tl.reshape(poses, (BT, DP, IT))
    return tl.reshape(scaled, (BT, DP * IT))


@triton.jit
def scale_operand(factor, poses, BT: tl.constexpr, DP: tl.constexpr, IT: tl.constexpr):
    """Do as `scale_poses` in the dtype of `poses`, as an operand of a product: two bf16 numbers at once."""
    DTYPE: tl.constexpr = poses.dtype
    if INTERPRETED:
        rounded = round_to(factor, DTYPE).to(tl.float32)
        return round_to(scale_poses(rounded, poses.to(tl.float32), BT, DP, IT), DTYPE)
    else:
        return scale_poses(factor.to(DTYPE), poses, BT, DP, IT)


@triton.jit
def squash(total):
    """Return the squashed vectors of a tile [BT, EP]: s |s| / (1 + |s|^2), 0 at 0."""
    norm = tl.sqrt(tl.sum(total * total, 1, keep_dims=True))
    return total * (norm / (1.0 + norm * norm))


@triton.jit
def squash_backward(total, grad):
    """Return the gradient for a tile [BT, EP] of totals, given `grad` for its squash; finite at 0."""
    norm = tl.sqrt(tl.sum(total * total, 1, keep_dims=True))
    unit = total / tl.where(norm > 0, norm, 1.0)
    scale = 1.0 / (1.0 + norm * norm)
    radial = tl.sum(unit * grad, 1, keep_dims=True)
    return norm * scale * (grad + (1.0 - norm * norm) * scale * radial * unit)
