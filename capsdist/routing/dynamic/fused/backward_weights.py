"""The kernel of the weights' gradient: a program owns children, and adds over images and iterations."""

# Kernels are Python in syntax only: numbers are constants of the compiler, tuples of tiles grow by addition,
# and I is the letter of the paper.
# ruff: noqa: E741, RUF005
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from capsdist.routing.dynamic.fused.backward import slopes
from capsdist.routing.dynamic.fused.tiles import (
    RUN_TIME_SIZES,
    add_product,
    begin,
    load_children,
    load_parents,
    load_poses,
    load_weights,
    num_numbers,
    scale_operand,
    store_weights,
)

__all__ = ["sum_weights_gradient"]


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def sum_weights_gradient(
    poses, weights, states, d_totals, priors, normalisers, means, d_weights, d_priors, B, iterations, scale,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr, PARENTS: tl.constexpr,
    HAS_PRIORS: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Write d_weights [J, E, D, I] and, with priors, d_priors [I, J]; grid [tiles of children * J / PARENTS].

    Reads states [R - 1, J, B, E], d_totals [R, J, B, E], normalisers and means [R, B, I].
    """
    begin(EARLY)
    child = tl.program_id(0) % tl.cdiv(I, IT) * IT
    first = tl.program_id(0) // tl.cdiv(I, IT) * PARENTS
    tiles = tl.cdiv(B, BT)
    rows, numbers = num_numbers(B, J * E), num_numbers(B, I)
    matrices, sums, d_prior = (), (), ()
    for k in tl.static_range(PARENTS):
        matrices = matrices + (
            load_weights(weights, first + k, child, I, J, D, E, DP, EP, IT, PARENTS, False),
        )
        sums = sums + (tl.zeros((DP * IT, EP), tl.float32),)
        d_prior = d_prior + (tl.zeros((IT,), tl.float32),)

    # The first iteration, V = 0.
    for index in range(tiles):
        image = index * BT
        tile = load_poses(poses, image, child, B, I, D, DP, BT, IT)
        added, d_added = (), ()
        if HAS_PRIORS:
            wide = tile.to(tl.float32)
            norm = load_children(normalisers, image, child, B, float("inf"), I, BT, IT)
            mean = load_children(means, image, child, B, 0.0, I, BT, IT)
        for k in tl.static_range(PARENTS):
            d_total = load_parents(d_totals, first + k, image, B, J, E, EP, BT, PARENTS)
            given = tile
            d_sum = d_prior[k]
            if HAS_PRIORS:
                coupling, d_logits, _product = slopes(
                    wide, matrices[k], 0.0, d_total, priors, norm, mean, first + k, child,
                    I, J, DP, BT, IT, False, True, PRECISION,
                )  # fmt: skip
                given = scale_operand(coupling, tile, BT, DP, IT)
                d_sum += tl.sum(d_logits, 0)
            added = added + (add_product(sums[k], tl.trans(given), d_total, PRECISION),)
            d_added = d_added + (d_sum,)
        sums, d_prior = added, d_added
    if not HAS_PRIORS:
        scaled = ()
        for k in tl.static_range(PARENTS):
            scaled = scaled + (sums[k] * scale,)
        sums = scaled

    # The others; one loop over iterations and images, so that loads run ahead across both.
    for index in range(tiles, iterations * tiles):
        iteration, image = index // tiles, index % tiles * BT
        tile = load_poses(poses, image, child, B, I, D, DP, BT, IT)
        wide = tile.to(tl.float32)
        norm = load_children(normalisers + iteration * numbers, image, child, B, float("inf"), I, BT, IT)
        mean = load_children(means + iteration * numbers, image, child, B, 0.0, I, BT, IT)
        state_of, d_total_of = states + (iteration - 1) * rows, d_totals + iteration * rows
        state, d_total = (), ()
        for k in tl.static_range(PARENTS):
            state = state + (load_parents(state_of, first + k, image, B, J, E, EP, BT, PARENTS),)
            d_total = d_total + (load_parents(d_total_of, first + k, image, B, J, E, EP, BT, PARENTS),)
        added, d_added = (), ()
        for k in tl.static_range(PARENTS):
            coupling, d_logits, _product = slopes(
                wide, matrices[k], state[k], d_total[k], priors, norm, mean, first + k, child,
                I, J, DP, BT, IT, True, HAS_PRIORS, PRECISION,
            )  # fmt: skip
            given = scale_operand(coupling, tile, BT, DP, IT)
            total = add_product(sums[k], tl.trans(given), d_total[k], PRECISION)
            given = scale_operand(d_logits, tile, BT, DP, IT)
            added = added + (add_product(total, tl.trans(given), state[k], PRECISION),)
            d_sum = d_prior[k]
            if HAS_PRIORS:
                d_sum += tl.sum(d_logits, 0)
            d_added = d_added + (d_sum,)
        sums, d_prior = added, d_added

    children = child + tl.arange(0, IT)
    for k in tl.static_range(PARENTS):
        store_weights(d_weights, tl.trans(sums[k]), first + k, child, I, J, D, E, DP, EP, IT, PARENTS)
        if HAS_PRIORS:
            inside = (children < I) & (tl.full((IT,), first + k, tl.int32) < J)
            tl.store(d_priors + children.to(tl.int64) * J + first + k, d_prior[k], inside)
