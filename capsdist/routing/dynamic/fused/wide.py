"""Kernels for wide capsules, of more than 64 dimensions: D and E are taken in blocks of DP and EP.

Each does as the kernel of `forward`, `backward` or `backward_weights` without the word wide does, with the
same arguments, and takes one parent at a time. What is linear in a dimension is cut there: a program owns one
block of E of the totals, of D of the poses' gradient, of both of the weights'. The coupling is not; each
program sums u_i . (W_ij V_j) over all blocks, and does so again for every block that another program owns.
That costs products, as many times more as there are blocks, and keeps coupling and logits out of memory.
"""

# Kernels are Python in syntax only: numbers are constants of the compiler, and I is the letter of the paper.
# ruff: noqa: E741, SIM102
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from capsdist.routing.dynamic.fused.forward import add_to_softmax, begin_softmax
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
    num_numbers,
    scale_operand,
    scale_poses,
    store_children,
    store_parents,
    store_poses,
    store_weights,
)

__all__ = [
    "normalise_wide", "sum_wide_poses_gradient", "sum_wide_state_gradient", "sum_wide_totals",
    "sum_wide_weights_gradient",
]  # fmt: skip


@triton.jit
def products(
    weights, states, d_totals, parent, image, child, dim, B,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr,
    COUPLED: tl.constexpr, SLOPES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return G = W V and H = W ds [BT, DP * IT] of one parent and block of D; 0 without COUPLED, SLOPES."""
    product = tl.zeros((BT, DP * IT), tl.float32)
    d_product = tl.zeros((BT, DP * IT), tl.float32)
    for row in range(0, E, EP):
        matrix = load_weights(weights, parent, child, I, J, D, E, DP, EP, IT, 1, False, dim, row)
        if COUPLED:
            state = load_parents(states, parent, image, B, J, E, EP, BT, 1, row)
            product = add_product(product, state, matrix, PRECISION)
        if SLOPES:
            d_total = load_parents(d_totals, parent, image, B, J, E, EP, BT, 1, row)
            d_product = add_product(d_product, d_total, matrix, PRECISION)
    return product, d_product


@triton.jit
def logits_and_slopes(
    poses, weights, states, d_totals, priors, parent, image, child, B,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, SLOPES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return b and, with SLOPES, dc [BT, IT] of one parent: sums over all blocks of D and E."""
    logits, slopes = tl.zeros((BT, IT), tl.float32), tl.zeros((BT, IT), tl.float32)
    if COUPLED or SLOPES:
        for dim in range(0, D, DP):
            wide = load_poses(poses, image, child, B, I, D, DP, BT, IT, dim).to(tl.float32)
            product, d_product = products(
                weights, states, d_totals, parent, image, child, dim, B,
                I, J, D, E, DP, EP, BT, IT, COUPLED, SLOPES, PRECISION,
            )  # fmt: skip
            if COUPLED:
                logits += dot_children(product, wide, BT, DP, IT)
            if SLOPES:
                slopes += dot_children(d_product, wide, BT, DP, IT)
    if HAS_PRIORS:
        logits += load_priors(priors, parent, child, I, J, IT)[None, :]
    return logits, slopes


@triton.jit
def couple(
    poses, weights, states, d_totals, priors, normalisers, means, parent, image, child, B,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, SLOPES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return c and, with SLOPES, db [BT, IT] of one parent, from normalisers and means [B, I]."""
    logits, slopes = logits_and_slopes(
        poses, weights, states, d_totals, priors, parent, image, child, B,
        I, J, D, E, DP, EP, BT, IT, COUPLED, HAS_PRIORS, SLOPES, PRECISION,
    )  # fmt: skip
    coupling = tl.exp(logits - load_children(normalisers, image, child, B, float("inf"), I, BT, IT))
    d_logits = coupling
    if SLOPES:
        d_logits = coupling * (slopes - load_children(means, image, child, B, 0.0, I, BT, IT))
    return coupling, d_logits


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def normalise_wide(
    poses, weights, states, d_totals, priors, normalisers, means, B,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr, NONE: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, SLOPES: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Do as `normalise`; grid [tiles of images * tiles of children]."""
    begin(EARLY)
    image, tile = first_image(B, BT, tl.cdiv(I, IT))
    child = tile * IT
    largest, total = begin_softmax(BT, IT, NONE)
    mean = tl.zeros((BT, IT), tl.float32)
    for parent in range(J):
        logits, slopes = logits_and_slopes(
            poses, weights, states, d_totals, priors, parent, image, child, B,
            I, J, D, E, DP, EP, BT, IT, COUPLED, HAS_PRIORS, SLOPES, PRECISION,
        )  # fmt: skip
        largest, total, shrink, power = add_to_softmax(largest, total, logits)
        if SLOPES:
            mean = mean * shrink + power * slopes
    store_children(normalisers, largest + tl.log(total), image, child, B, I, BT, IT)
    if SLOPES:
        store_children(means, mean / total, image, child, B, I, BT, IT)


@triton.jit
def sum_over_children(
    poses, weights, states, d_totals, priors, normalisers, means, parts, B, steps,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, SLOPES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write parts [splits, J, B, E] of sum_i W_ij^T (x_ij u_i): x is the coupling or, with SLOPES, db."""
    blocks: tl.constexpr = (E + EP - 1) // EP
    image, other = first_image(B, BT, J * blocks)
    split, parent, row = tl.program_id(1), other // blocks, other % blocks * EP
    total = tl.zeros((BT, EP), tl.float32)
    for step in range(split * steps, tl.minimum((split + 1) * steps, tl.cdiv(I, IT))):
        child = step * IT
        if COUPLED or HAS_PRIORS:
            coupling, d_logits = couple(
                poses, weights, states, d_totals, priors, normalisers, means, parent, image, child, B,
                I, J, D, E, DP, EP, BT, IT, COUPLED, HAS_PRIORS, SLOPES, PRECISION,
            )  # fmt: skip
        for dim in range(0, D, DP):
            given = load_poses(poses, image, child, B, I, D, DP, BT, IT, dim)
            if SLOPES:
                given = scale_operand(d_logits, given, BT, DP, IT)
            elif COUPLED or HAS_PRIORS:
                given = scale_operand(coupling, given, BT, DP, IT)
            matrix = load_weights(weights, parent, child, I, J, D, E, DP, EP, IT, 1, False, dim, row)
            total = add_product(total, given, tl.trans(matrix), PRECISION)
    part = parts + num_numbers(split, J * E) * B
    store_parents(part, total, parent, image, B, J, E, EP, BT, 1, row)


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def sum_wide_totals(
    poses, weights, states, priors, normalisers, parts, B, steps,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr, PARENTS: tl.constexpr, NONE: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Do as `sum_totals`; grid [tiles of images * J * blocks of E, splits]."""
    begin(EARLY)
    sum_over_children(
        poses, weights, states, states, priors, normalisers, normalisers, parts, B, steps,
        I, J, D, E, DP, EP, BT, IT, COUPLED, HAS_PRIORS, False, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def sum_wide_state_gradient(
    poses, weights, states, d_totals, priors, normalisers, means, parts, B, steps,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr, PARENTS: tl.constexpr,
    HAS_PRIORS: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Do as `sum_state_gradient`; grid as `sum_wide_totals`."""
    begin(EARLY)
    sum_over_children(
        poses, weights, states, d_totals, priors, normalisers, means, parts, B, steps,
        I, J, D, E, DP, EP, BT, IT, True, HAS_PRIORS, True, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def sum_wide_poses_gradient(
    poses, weights, states, d_totals, priors, normalisers, means, d_before, d_poses, B, scale,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Do as `sum_poses_gradient`; grid [tiles of images * tiles of children * blocks of D]."""
    begin(EARLY)
    blocks: tl.constexpr = (D + DP - 1) // DP
    image, other = first_image(B, BT, tl.cdiv(I, IT) * blocks)
    child, dim = other // blocks * IT, other % blocks * DP
    d_tile = tl.zeros((BT, DP * IT), tl.float32)
    for parent in range(J):
        if COUPLED or HAS_PRIORS:
            coupling, d_logits = couple(
                poses, weights, states, d_totals, priors, normalisers, means, parent, image, child, B,
                I, J, D, E, DP, EP, BT, IT, COUPLED, HAS_PRIORS, COUPLED, PRECISION,
            )  # fmt: skip
        product, d_product = products(
            weights, states, d_totals, parent, image, child, dim, B,
            I, J, D, E, DP, EP, BT, IT, COUPLED, True, PRECISION,
        )  # fmt: skip
        if COUPLED or HAS_PRIORS:
            d_product = scale_poses(coupling, d_product, BT, DP, IT)
        if COUPLED:
            d_product += scale_poses(d_logits, product, BT, DP, IT)
        d_tile += d_product
    if not (COUPLED or HAS_PRIORS):
        d_tile *= scale
    if ADD:
        d_tile += load_poses(d_before, image, child, B, I, D, DP, BT, IT, dim)
    store_poses(d_poses, d_tile, image, child, B, I, D, DP, BT, IT, dim)


@triton.jit
def add_images(
    total, d_prior,
    poses, weights, states, d_totals, priors, normalisers, means, parent, image, child, dim, row, B,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return `total` [DP * IT, EP] and `d_prior` [IT] with one iteration's part of a tile of images."""
    tile = load_poses(poses, image, child, B, I, D, DP, BT, IT, dim)
    given = tile
    if COUPLED or HAS_PRIORS:
        coupling, d_logits = couple(
            poses, weights, states, d_totals, priors, normalisers, means, parent, image, child, B,
            I, J, D, E, DP, EP, BT, IT, COUPLED, HAS_PRIORS, True, PRECISION,
        )  # fmt: skip
        given = scale_operand(coupling, tile, BT, DP, IT)
    d_total = load_parents(d_totals, parent, image, B, J, E, EP, BT, 1, row)
    total = add_product(total, tl.trans(given), d_total, PRECISION)
    if COUPLED:
        state = load_parents(states, parent, image, B, J, E, EP, BT, 1, row)
        given = scale_operand(d_logits, tile, BT, DP, IT)
        total = add_product(total, tl.trans(given), state, PRECISION)
    if HAS_PRIORS:
        d_prior += tl.sum(d_logits, 0)
    return total, d_prior


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def sum_wide_weights_gradient(
    poses, weights, states, d_totals, priors, normalisers, means, d_weights, d_priors, B, iterations, scale,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr, PARENTS: tl.constexpr,
    HAS_PRIORS: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Do as `sum_weights_gradient`; grid [tiles of children * J * blocks of E * blocks of D]."""
    begin(EARLY)
    steps: tl.constexpr = (I + IT - 1) // IT
    rows: tl.constexpr = (E + EP - 1) // EP
    dims: tl.constexpr = (D + DP - 1) // DP
    child, other = tl.program_id(0) % steps * IT, tl.program_id(0) // steps
    dim, row, parent = other % dims * DP, other // dims % rows * EP, other // dims // rows
    total, d_prior = tl.zeros((DP * IT, EP), tl.float32), tl.zeros((IT,), tl.float32)
    tiles = tl.cdiv(B, BT)
    for index in range(tiles):  # the first iteration, V = 0
        total, d_prior = add_images(
            total, d_prior, poses, weights, states, d_totals, priors, normalisers, means,
            parent, index * BT, child, dim, row, B,
            I, J, D, E, DP, EP, BT, IT, False, HAS_PRIORS, PRECISION,
        )  # fmt: skip
    if not HAS_PRIORS:
        total *= scale
    numbers, children = num_numbers(B, J * E), num_numbers(B, I)
    for index in range(tiles, iterations * tiles):
        iteration, image = index // tiles, index % tiles * BT
        total, d_prior = add_images(
            total, d_prior, poses, weights,
            states + (iteration - 1) * numbers, d_totals + iteration * numbers, priors,
            normalisers + iteration * children, means + iteration * children,
            parent, image, child, dim, row, B,
            I, J, D, E, DP, EP, BT, IT, True, HAS_PRIORS, PRECISION,
        )  # fmt: skip
    store_weights(d_weights, tl.trans(total), parent, child, I, J, D, E, DP, EP, IT, 1, dim, row)
    if HAS_PRIORS:
        if dim + row == 0:  # all blocks have found the same
            places = child + tl.arange(0, IT)
            tl.store(d_priors + places.to(tl.int64) * J + parent, d_prior, places < I)
