"""Kernels of the forward pass. An iteration is `sum_totals`, then `finish_totals`.

With V the sum of the parent poses so far, tile by tile, nothing of it written to memory:

    agreement   b_ij = prior_ij + u_i . (W_ij V_j)     matrix product [BT, E] x [E, D * IT], then a dot over D
    coupling    c_ij = softmax over j of b_ij          a tuple of J tiles [BT, IT], in registers
    totals      s_j += W_ij^T (c_ij u_i)               matrix product [BT, D * IT] x [D * IT, E]

A program takes BT images and one of `splits` ranges of children, and writes its part of the totals to
[splits, J, B, E]; `finish_totals` adds the parts in their order, so that results are the same every time.
Where J parents do not fit into registers, `normalise` goes over all j first and keeps one number per child,
log sum_j exp(b_ij), and `sum_totals` takes PARENTS of the parents a program.

Poses lie as [D, I] and packed weights as [J, E, D, I], so that a tile is contiguous along the children and
every load has 16 bytes per thread. A warp has 16 images and all dimensions of a child in one thread: the sum
over D adds registers, the softmax runs over a tuple of J tiles, and the second product takes its operand from
registers. For Hopper, Triton 3.9 makes warp-group products (`wgmma`) of it, without shuffles between the two.
"""

# Kernels are Python in syntax only: numbers are constants of the compiler, tuples of tiles grow by addition,
# and I is the letter of the paper.
# ruff: noqa: E741, RUF005
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from capsdist.routing.dynamic.fused.tiles import (
    RUN_TIME_SIZES,
    add_product,
    begin,
    dot_children,
    first_image,
    load_children,
    load_parents,
    load_poses,
    load_priors,
    load_weights,
    multiply,
    num_numbers,
    parent_tile,
    scale_operand,
    squash,
    store,
    store_children,
    store_parents,
)

__all__ = [
    "add_to_softmax", "agreement", "begin_softmax", "finish_totals", "load_state", "normalise", "softmax",
    "sum_parts", "sum_totals",
]  # fmt: skip


@triton.jit
def load_state(
    states, parent, image, B,
    J: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BT: tl.constexpr, PARENTS: tl.constexpr,
    COUPLED: tl.constexpr,
):  # fmt: skip
    """Return the tile [BT, EP] of V of one parent: 0 if not COUPLED."""
    if COUPLED:
        state = load_parents(states, parent, image, B, J, E, EP, BT, PARENTS)
    else:
        state = tl.zeros((BT, EP), tl.float32)
    return state


@triton.jit
def agreement(
    poses, weights, state, priors, parent, child,
    I: tl.constexpr, J: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr, IT: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the logits [BT, IT] of one parent, of tiles of poses (fp32), its weights, and its V."""
    logits = tl.zeros((BT, IT), tl.float32)
    if COUPLED:
        logits = dot_children(multiply(state, weights, PRECISION), poses, BT, DP, IT)
    if HAS_PRIORS:
        logits += load_priors(priors, parent, child, I, J, IT)[None, :]
    return logits


@triton.jit
def softmax(logits, PARENTS: tl.constexpr, NONE: tl.constexpr):
    """Return softmax and log-sum-exp of a tuple of PARENTS tiles, with one more logit of 0 if NONE."""
    largest = logits[0]
    for k in tl.static_range(1, PARENTS):
        largest = tl.maximum(largest, logits[k])
    if NONE:
        largest = tl.maximum(largest, 0.0)
    powers = ()
    for k in tl.static_range(PARENTS):
        powers = powers + (tl.exp(logits[k] - largest),)
    total = powers[0]
    for k in tl.static_range(1, PARENTS):
        total += powers[k]
    if NONE:
        total += tl.exp(-largest)
    scale = 1.0 / total
    coupling = ()
    for k in tl.static_range(PARENTS):
        coupling = coupling + (powers[k] * scale,)
    return coupling, largest + tl.log(total)


@triton.jit
def begin_softmax(BT: tl.constexpr, IT: tl.constexpr, NONE: tl.constexpr):
    """Return the largest logit [BT, IT] and the sum of powers relative to it, before the first parent."""
    if NONE:
        largest, total = tl.zeros((BT, IT), tl.float32), tl.full((BT, IT), 1.0, tl.float32)
    else:
        # Below every logit, but not -inf: a prior may be that, and the difference of two is not a number.
        largest, total = tl.full((BT, IT), -3.0e38, tl.float32), tl.zeros((BT, IT), tl.float32)
    return largest, total


@triton.jit
def add_to_softmax(largest, total, logits):
    """Return both with one more parent, the factor that sums so far shrink by, and the parent's power."""
    before = largest
    largest = tl.maximum(before, logits)
    shrink, power = tl.exp(before - largest), tl.exp(logits - largest)
    return largest, total * shrink + power, shrink, power


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def sum_totals(
    poses, weights, states, priors, normalisers, parts, B, steps,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr, PARENTS: tl.constexpr, NONE: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Write the parts [splits, J, B, E] of the totals; grid [tiles of images * J / PARENTS, splits].

    A split is `steps` tiles of children. With PARENTS = J the coupling is normalised here, otherwise by
    `normalisers` [B, I]. Without COUPLED and priors it is a constant, left to `finish_totals`.
    """
    begin(EARLY)
    image, block = first_image(B, BT, tl.cdiv(J, PARENTS))
    split, first = tl.program_id(1), block * PARENTS
    sums, state = (), ()
    for k in tl.static_range(PARENTS):
        sums = sums + (tl.zeros((BT, EP), tl.float32),)
        state = state + (load_state(states, first + k, image, B, J, E, EP, BT, PARENTS, COUPLED),)
    for step in range(split * steps, tl.minimum((split + 1) * steps, tl.cdiv(I, IT))):
        child = step * IT
        tile = load_poses(poses, image, child, B, I, D, DP, BT, IT)
        wide = tile.to(tl.float32)
        matrices = ()
        for k in tl.static_range(PARENTS):
            matrices = matrices + (
                load_weights(weights, first + k, child, I, J, D, E, DP, EP, IT, PARENTS, False),
            )
        if COUPLED or HAS_PRIORS:
            coupling = ()
            for k in tl.static_range(PARENTS):
                coupling = coupling + (
                    agreement(
                        wide, matrices[k], state[k], priors, first + k, child,
                        I, J, DP, BT, IT, COUPLED, HAS_PRIORS, PRECISION,
                    ),
                )  # fmt: skip
            if PARENTS == J:
                coupling, _norm = softmax(coupling, PARENTS, NONE)
            else:
                norm = load_children(normalisers, image, child, B, float("inf"), I, BT, IT)
                shares = ()
                for k in tl.static_range(PARENTS):
                    shares = shares + (tl.exp(coupling[k] - norm),)
                coupling = shares
        added = ()
        for k in tl.static_range(PARENTS):
            given = tile
            if COUPLED or HAS_PRIORS:
                given = scale_operand(coupling[k], tile, BT, DP, IT)
            added = added + (add_product(sums[k], given, tl.trans(matrices[k]), PRECISION),)
        sums = added
    part = parts + tl.cast(split, tl.int64) * J * B * E
    for k in tl.static_range(PARENTS):
        store_parents(part, sums[k], first + k, image, B, J, E, EP, BT, PARENTS)


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def normalise(
    poses, weights, states, d_totals, priors, normalisers, means, B,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr, NONE: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, SLOPES: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Write log sum_j exp(b_ij) to normalisers [B, I]; with SLOPES also sum_j c_ij dc_ij to means [B, I].

    Grid [tiles of images * tiles of children]; one pass over j that carries maximum and sums. dc_ij is
    u_i . (W_ij ds_j), for the backward pass.
    """
    begin(EARLY)
    image, tile = first_image(B, BT, tl.cdiv(I, IT))
    child = tile * IT
    wide = load_poses(poses, image, child, B, I, D, DP, BT, IT).to(tl.float32)
    largest, total = begin_softmax(BT, IT, NONE)
    mean = tl.zeros((BT, IT), tl.float32)
    for parent in range(J):
        matrix = load_weights(weights, parent, child, I, J, D, E, DP, EP, IT, 1, False)
        state = load_state(states, parent, image, B, J, E, EP, BT, 1, COUPLED)
        logits = agreement(
            wide, matrix, state, priors, parent, child, I, J, DP, BT, IT, COUPLED, HAS_PRIORS, PRECISION
        )
        largest, total, shrink, power = add_to_softmax(largest, total, logits)
        if SLOPES:
            d_total = load_parents(d_totals, parent, image, B, J, E, EP, BT, 1)
            slope = dot_children(multiply(d_total, matrix, PRECISION), wide, BT, DP, IT)
            mean = mean * shrink + power * slope
    store_children(normalisers, largest + tl.log(total), image, child, B, I, BT, IT)
    if SLOPES:
        store_children(means, mean / total, image, child, B, I, BT, IT)


@triton.jit
def sum_parts(
    parts, image, parent, splits, B,
    J: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Return the sum over all splits of a tile [ROWS, EP] of parts [splits, J, B, E], in a fixed order."""
    offsets, inside = parent_tile(parent, image, 0, B, J, E, EP, ROWS, 1)
    total = tl.zeros((ROWS, EP), tl.float32)
    for split in range(0, splits, AT_ONCE):
        several = split + tl.arange(0, AT_ONCE)
        places = several.to(tl.int64)[:, None, None] * J * B * E + offsets[None, :, :]
        exist = (several < splits)[:, None, None] & inside[None, :, :]
        total += tl.sum(tl.load(parts + places, exist, other=0.0), 0)
    return total


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def finish_totals(
    parts, bias, totals, state, operand, parent_poses, B, splits, scale,
    J: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr,
    HAS_BIAS: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Add up the parts: totals [J, B, E] = scale * sum + bias, and their squash v; grid [image tiles * J].

    LAST writes v to parent_poses [B, J, E]; otherwise V grows by v in `state` [J, B, E] (fp32) and is
    rounded into `operand`, alike, for the next iteration's products.
    """
    begin(EARLY)
    image, parent = first_image(B, ROWS, J)
    total = scale * sum_parts(parts, image, parent, splits, B, J, E, EP, ROWS, AT_ONCE)
    columns = tl.arange(0, EP)
    if HAS_BIAS:
        place = num_numbers(parent, E) + columns
        total += tl.load(bias + place, columns < E, other=0.0).to(tl.float32)[None, :]
    store_parents(totals, total, parent, image, B, J, E, EP, ROWS, 1)
    pose = squash(total)
    if LAST:
        images = image + tl.arange(0, ROWS)
        offsets = (images.to(tl.int64)[:, None] * J + parent) * E + columns[None, :]
        inside = (images < B)[:, None] & (columns < E)[None, :]
        store(parent_poses + offsets, pose, inside)
    else:
        if not FIRST:
            pose += load_parents(state, parent, image, B, J, E, EP, ROWS, 1)
        store_parents(state, pose, parent, image, B, J, E, EP, ROWS, 1)
        store_parents(operand, pose, parent, image, B, J, E, EP, ROWS, 1)
