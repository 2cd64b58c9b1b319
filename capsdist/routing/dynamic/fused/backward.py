"""Kernels of the backward pass, which rebuild the coupling tile by tile from the saved totals.

`begin_gradients` rebuilds all V and takes the first ds. Then, from the last iteration to the first, with
G_ij = W_ij V_j and H_ij = W_ij ds_j in registers only:

    c_ij  = softmax_j(prior_ij + u_i . G_ij),  dc_ij = u_i . H_ij
    db_ij = c_ij (dc_ij - sum_j c_ij dc_ij)
    du_i += sum_j (c_ij H_ij + db_ij G_ij)
    dV_j += sum_i W_ij^T (db_ij u_i)

`sweep` does it for J parents that fit into registers, one launch per iteration; otherwise `normalise`, then
`sum_poses_gradient` (a sum over j) and `sum_state_gradient` (a sum over i). `finish_gradients` adds the parts
of dV and takes the ds of the iteration before. At last, one launch of `sum_weights_gradient` adds over all
iterations and images, with two numbers per child and iteration kept from before:

    dW_ij += (c_ij u_i) ds_j^T + (db_ij u_i) V_j^T,  dprior_ij += db_ij

In the first iteration V is 0: no G, no dV; without priors the coupling is a constant, and db not needed.
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

from capsdist.routing.dynamic.fused.forward import agreement, load_state, softmax, sum_parts
from capsdist.routing.dynamic.fused.tiles import (
    RUN_TIME_SIZES,
    add_product,
    begin,
    dot_children,
    first_image,
    load_children,
    load_parents,
    load_poses,
    load_weights,
    multiply,
    num_numbers,
    scale_operand,
    scale_poses,
    squash,
    squash_backward,
    store_children,
    store_parents,
    store_poses,
)

__all__ = [
    "begin_gradients", "finish_gradients", "sum_poses_gradient", "sum_state_gradient", "sweep",
]  # fmt: skip


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def begin_gradients(
    totals, grad, states, d_totals, d_operand, B, iterations,
    J: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Rebuild states [R - 1, J, B, E] from totals [R, J, B, E]; write the last iteration's ds.

    Grid [tiles of images * J]; `grad` [B, J, E] is that of the result. ds goes to d_totals [R, J, B, E] in
    fp32 and, rounded for products, to d_operand, alike.
    """
    begin(EARLY)
    image, parent = first_image(B, ROWS, J)
    size = num_numbers(B, J * E)
    state = tl.zeros((ROWS, EP), tl.float32)
    for iteration in range(iterations - 1):
        state += squash(load_parents(totals + iteration * size, parent, image, B, J, E, EP, ROWS, 1))
        store_parents(states + iteration * size, state, parent, image, B, J, E, EP, ROWS, 1)
    last = (iterations - 1) * size
    images, columns = image + tl.arange(0, ROWS), tl.arange(0, EP)
    offsets = (images.to(tl.int64)[:, None] * J + parent) * E + columns[None, :]
    d_pose = tl.load(grad + offsets, (images < B)[:, None] & (columns < E)[None, :], other=0.0)
    total = load_parents(totals + last, parent, image, B, J, E, EP, ROWS, 1)
    d_total = squash_backward(total, d_pose.to(tl.float32))
    store_parents(d_totals + last, d_total, parent, image, B, J, E, EP, ROWS, 1)
    store_parents(d_operand + last, d_total, parent, image, B, J, E, EP, ROWS, 1)


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def finish_gradients(
    parts, totals, d_state, d_totals, d_operand, B, splits,
    J: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr,
    FIRST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Add parts [splits, J, B, E] to dV in `d_state` [J, B, E]; write one iteration's ds; grid as above.

    `totals`, `d_totals` and `d_operand` [J, B, E] are those of that iteration. FIRST: dV was 0.
    """
    begin(EARLY)
    image, parent = first_image(B, ROWS, J)
    d_pose = sum_parts(parts, image, parent, splits, B, J, E, EP, ROWS, AT_ONCE)
    if not FIRST:
        d_pose += load_parents(d_state, parent, image, B, J, E, EP, ROWS, 1)
    store_parents(d_state, d_pose, parent, image, B, J, E, EP, ROWS, 1)
    d_total = squash_backward(load_parents(totals, parent, image, B, J, E, EP, ROWS, 1), d_pose)
    store_parents(d_totals, d_total, parent, image, B, J, E, EP, ROWS, 1)
    store_parents(d_operand, d_total, parent, image, B, J, E, EP, ROWS, 1)


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def sweep(
    poses, weights, states, d_totals, priors, normalisers, means, d_before, d_poses, parts, B, steps, scale,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr, NONE: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Do all of one iteration's backward but the weights; grid [tiles of images, splits].

    Writes d_poses [B, D, I] = d_before (if ADD) + du; the parts [splits, J, B, E] of dV; normalisers and
    means [B, I] as `normalise` does. `scale` is the coupling where it is a constant.
    """
    begin(EARLY)
    image, split = tl.program_id(0) * BT, tl.program_id(1)
    sums, state, d_total = (), (), ()
    for k in tl.static_range(J):
        sums = sums + (tl.zeros((BT, EP), tl.float32),)
        state = state + (load_state(states, k, image, B, J, E, EP, BT, J, COUPLED),)
        d_total = d_total + (load_parents(d_totals, k, image, B, J, E, EP, BT, J),)
    for step in range(split * steps, tl.minimum((split + 1) * steps, tl.cdiv(I, IT))):
        child = step * IT
        tile = load_poses(poses, image, child, B, I, D, DP, BT, IT)
        wide = tile.to(tl.float32)
        matrices, again = (), ()
        for k in tl.static_range(J):
            matrices = matrices + (load_weights(weights, k, child, I, J, D, E, DP, EP, IT, J, False),)
            again = again + (load_weights(weights, k, child, I, J, D, E, DP, EP, IT, J, True),)
        d_tile = tl.zeros((BT, DP * IT), tl.float32)
        if COUPLED or HAS_PRIORS:
            coupling, d_coupling = (), ()
            for k in tl.static_range(J):
                coupling = coupling + (
                    agreement(
                        wide, matrices[k], state[k], priors, k, child,
                        I, J, DP, BT, IT, COUPLED, HAS_PRIORS, PRECISION,
                    ),
                )  # fmt: skip
                slope = dot_children(multiply(d_total[k], matrices[k], PRECISION), wide, BT, DP, IT)
                d_coupling = d_coupling + (slope,)
            coupling, norm = softmax(coupling, J, NONE)
            mean = coupling[0] * d_coupling[0]
            for k in tl.static_range(1, J):
                mean += coupling[k] * d_coupling[k]
            store_children(normalisers, norm, image, child, B, I, BT, IT)
            store_children(means, mean, image, child, B, I, BT, IT)
            added = ()
            for k in tl.static_range(J):
                d_tile += scale_poses(coupling[k], multiply(d_total[k], again[k], PRECISION), BT, DP, IT)
                total = sums[k]
                if COUPLED:
                    d_logits = coupling[k] * (d_coupling[k] - mean)
                    d_tile += scale_poses(d_logits, multiply(state[k], again[k], PRECISION), BT, DP, IT)
                    given = scale_operand(d_logits, tile, BT, DP, IT)
                    total = add_product(total, given, tl.trans(again[k]), PRECISION)
                added = added + (total,)
            sums = added
        else:
            for k in tl.static_range(J):
                d_tile = add_product(d_tile, d_total[k], matrices[k], PRECISION)
            d_tile *= scale
        if ADD:
            d_tile += load_poses(d_before, image, child, B, I, D, DP, BT, IT)
        store_poses(d_poses, d_tile, image, child, B, I, D, DP, BT, IT)
    if COUPLED:
        part = parts + tl.cast(split, tl.int64) * J * B * E
        for k in tl.static_range(J):
            store_parents(part, sums[k], k, image, B, J, E, EP, BT, J)


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def sum_poses_gradient(
    poses, weights, states, d_totals, priors, normalisers, means, d_before, d_poses, B, scale,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Write d_poses [B, D, I] = d_before (if ADD) + du, a sum over all j; grid as `normalise`."""
    begin(EARLY)
    image, tile = first_image(B, BT, tl.cdiv(I, IT))
    child = tile * IT
    d_tile = tl.zeros((BT, DP * IT), tl.float32)
    if COUPLED or HAS_PRIORS:
        wide = load_poses(poses, image, child, B, I, D, DP, BT, IT).to(tl.float32)
        norm = load_children(normalisers, image, child, B, float("inf"), I, BT, IT)
        mean = load_children(means, image, child, B, 0.0, I, BT, IT)
    for parent in range(J):
        matrix = load_weights(weights, parent, child, I, J, D, E, DP, EP, IT, 1, False)
        d_total = load_parents(d_totals, parent, image, B, J, E, EP, BT, 1)
        if COUPLED or HAS_PRIORS:
            state = load_state(states, parent, image, B, J, E, EP, BT, 1, COUPLED)
            coupling, d_logits, product = slopes(
                wide, matrix, state, d_total, priors, norm, mean, parent, child,
                I, J, DP, BT, IT, COUPLED, HAS_PRIORS, PRECISION,
            )  # fmt: skip
            d_tile += scale_poses(coupling, product, BT, DP, IT)
            if COUPLED:  # the compiler takes this product once: `slopes` has it too
                d_tile += scale_poses(d_logits, multiply(state, matrix, PRECISION), BT, DP, IT)
        else:
            d_tile = add_product(d_tile, d_total, matrix, PRECISION)
    if not (COUPLED or HAS_PRIORS):
        d_tile *= scale
    if ADD:
        d_tile += load_poses(d_before, image, child, B, I, D, DP, BT, IT)
    store_poses(d_poses, d_tile, image, child, B, I, D, DP, BT, IT)


@triton.jit
def slopes(
    wide, matrix, state, d_total, priors, norm, mean, parent, child,
    I: tl.constexpr, J: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr, IT: tl.constexpr,
    COUPLED: tl.constexpr, HAS_PRIORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return coupling c and db [BT, IT] of one parent, and H [BT, DP * IT], from normaliser and mean."""
    logits = agreement(
        wide, matrix, state, priors, parent, child, I, J, DP, BT, IT, COUPLED, HAS_PRIORS, PRECISION
    )
    coupling = tl.exp(logits - norm)
    product = multiply(d_total, matrix, PRECISION)
    return coupling, coupling * (dot_children(product, wide, BT, DP, IT) - mean), product


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def sum_state_gradient(
    poses, weights, states, d_totals, priors, normalisers, means, parts, B, steps,
    I: tl.constexpr, J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    BT: tl.constexpr, IT: tl.constexpr, PARENTS: tl.constexpr,
    HAS_PRIORS: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Write the parts [splits, J, B, E] of dV; grid as `sum_totals`."""
    begin(EARLY)
    image, block = first_image(B, BT, tl.cdiv(J, PARENTS))
    split, first = tl.program_id(1), block * PARENTS
    sums, state, d_total = (), (), ()
    for k in tl.static_range(PARENTS):
        sums = sums + (tl.zeros((BT, EP), tl.float32),)
        state = state + (load_parents(states, first + k, image, B, J, E, EP, BT, PARENTS),)
        d_total = d_total + (load_parents(d_totals, first + k, image, B, J, E, EP, BT, PARENTS),)
    for step in range(split * steps, tl.minimum((split + 1) * steps, tl.cdiv(I, IT))):
        child = step * IT
        tile = load_poses(poses, image, child, B, I, D, DP, BT, IT)
        wide = tile.to(tl.float32)
        norm = load_children(normalisers, image, child, B, float("inf"), I, BT, IT)
        mean = load_children(means, image, child, B, 0.0, I, BT, IT)
        matrices = ()
        for k in tl.static_range(PARENTS):
            matrices = matrices + (
                load_weights(weights, first + k, child, I, J, D, E, DP, EP, IT, PARENTS, False),
            )
        added = ()
        for k in tl.static_range(PARENTS):
            _coupling, d_logits, _product = slopes(
                wide, matrices[k], state[k], d_total[k], priors, norm, mean, first + k, child,
                I, J, DP, BT, IT, True, HAS_PRIORS, PRECISION,
            )  # fmt: skip
            given = scale_operand(d_logits, tile, BT, DP, IT)
            added = added + (add_product(sums[k], given, tl.trans(matrices[k]), PRECISION),)
        sums = added
    part = parts + tl.cast(split, tl.int64) * J * B * E
    for k in tl.static_range(PARENTS):
        store_parents(part, sums[k], first + k, image, B, J, E, EP, BT, PARENTS)
