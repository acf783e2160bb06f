"""A training step, block by block of its batch, for the runs of one unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from icl_interp.training.compiled import attention
from icl_interp.training.compiled.compiler import (
    LANES,
    Entry,
    add_products,
    add_scaled,
    clear,
    compiled,
    dots,
    f4,
    summing,
    vectorise,
)
from icl_interp.training.compiled.prompts import draw_query, draw_tile
from icl_interp.training.compiled.random import start_streams
from icl_interp.training.compiled.weights import fold, unfold, update


class Sizes(NamedTuple):
    """Of a unit: runs of one shape on one stream of prompts."""

    runs: int
    heads: int  # of each run
    dim: int
    outputs: int
    width: int  # d_head
    length: int
    batch: int
    tile: int  # demonstrations in the first-level cache, a multiple of attention.GROUP
    vectors: int  # of a head, attention.vectors
    kind: int  # of activation, attention.KINDS
    scale: float  # of the scores: what an activation is a function of is scale · x_ℓᵀ W_K W_Qᵀ x_q


class Scratch(NamedTuple):
    """What one thread works in, in rows."""

    state: np.ndarray  # 4, uint32
    query: np.ndarray  # β (outputs × dim), x_q (dim), response (outputs), one spare
    z: np.ndarray  # (tile, model), model being dim + outputs
    coefs: np.ndarray  # (runs, heads, vectors, model)
    sums: np.ndarray  # the same
    total: np.ndarray  # (runs, heads)
    reference: np.ndarray  # (runs, heads)
    scores: np.ndarray  # (vectors, and one for slopes, tile)
    error: np.ndarray  # (runs, outputs)
    spare: np.ndarray  # 1


class Folded(NamedTuple):
    """What a step sees of the weights, and of each block the gradient."""

    KQ: np.ndarray  # (runs·heads, model, dim), the scale and the base of exponentials folded in
    OV: np.ndarray  # (runs·heads, outputs, model)
    grad_KQ: np.ndarray  # (blocks, runs·heads, model, dim)
    grad_OV: np.ndarray  # (blocks, runs·heads, outputs, model)
    loss: np.ndarray  # (blocks, runs) float64: sums of squares


class Optimizer(NamedTuple):
    """Weights, gradient and moments, (runs, parameters) each: W_Q of all heads, then W_K, W_V, W_O."""

    kind: int
    weights: np.ndarray
    grad: np.ndarray
    first: np.ndarray
    second: np.ndarray
    settings: np.ndarray  # (runs, 5) float64: lr, weight decay, β₁, β₂, momentum


@compiled
def _fold(optimizer, folded, scratch, sizes):
    model = sizes.dim + sizes.outputs
    part, n = model * sizes.width, sizes.heads * model * sizes.width
    for c in range(sizes.runs * sizes.heads):
        w, o = optimizer.weights[c // sizes.heads], c % sizes.heads * part
        fold(w[o:], w[n + o :], w[2 * n + o :], w[3 * n + o :], folded.KQ[c], folded.OV[c], sizes.dim, sizes.outputs,
             sizes.width, sizes.scale * attention.base(sizes.kind))  # fmt: skip
        for n_out in range(sizes.outputs):
            for k in range(model):
                row = scratch.coefs[((c * sizes.vectors + n_out + 1) * model + k) * LANES :]
                for i in range(LANES):
                    row[i] = folded.OV[c, n_out, k]


@compiled
def _unfold(optimizer, folded, sizes):
    """The blocks' gradients are added up in their order."""
    model = sizes.dim + sizes.outputs
    part, n = model * sizes.width, sizes.heads * model * sizes.width
    for c in range(sizes.runs * sizes.heads):
        for block in range(1, folded.loss.shape[0]):
            for k in range(model):
                for j in range(sizes.dim):
                    folded.grad_KQ[0, c, k, j] += folded.grad_KQ[block, c, k, j]
                for n_out in range(sizes.outputs):
                    folded.grad_OV[0, c, n_out, k] += folded.grad_OV[block, c, n_out, k]
        r, o = c // sizes.heads, c % sizes.heads * part
        w, g = optimizer.weights[r], optimizer.grad[r]
        unfold(w[o:], w[n + o :], w[2 * n + o :], w[3 * n + o :], g[o:], g[n + o :], g[2 * n + o :], g[3 * n + o :],
               folded.grad_KQ[0, c], folded.grad_OV[0, c], sizes.dim, sizes.outputs, sizes.width,
               sizes.scale)  # fmt: skip


@compiled
def _block(index, step, folded, source, scratch, sizes):
    """Loss and gradient of one block of prompts, into its own part of `folded`."""
    dim, outputs, columns = sizes.dim, sizes.outputs, sizes.runs * sizes.heads
    model, m = dim + outputs, (dim + outputs) * LANES
    x_q = scratch.query[outputs * dim * LANES :]
    if source.given:
        for i in range(m):
            x_q[i] = source.given_query[index, i]
    else:
        start_streams(scratch.state, source.key, step, index * LANES)
        draw_query(scratch.state, scratch.query, source, dim, outputs)

    head = sizes.vectors * m
    for c in range(columns):
        for k in range(model):
            row = scratch.coefs[c * head + k * LANES :]
            clear(row, LANES)
            add_scaled(row, x_q, folded.KQ[c, k], dim)
    clear(scratch.sums, columns * head)
    clear(scratch.total, columns * LANES)
    for i in range(columns * LANES):
        scratch.reference[i] = f4(attention.NOTHING)

    z = scratch.z
    for start in range(0, sizes.length, sizes.tile):
        tokens = min(sizes.tile, sizes.length - start)
        if source.given:
            z = source.given_z[index, start * m :]
        else:
            draw_tile(scratch.state, z, scratch.query, source, tokens, dim, outputs)
        for c in range(columns):
            attention.attend(z, tokens, scratch.coefs[c * head :], scratch.sums[c * head :],
                             scratch.total[c * LANES :], scratch.reference[c * LANES :], scratch.scores, scratch.spare,
                             model, sizes.vectors, sizes.kind)  # fmt: skip
    _gradient(index, x_q, folded, scratch, sizes)


@compiled
def _gradient(index, x_q, folded, scratch, sizes):
    dim, outputs, columns = sizes.dim, sizes.outputs, sizes.runs * sizes.heads
    model, m = dim + outputs, (dim + outputs) * LANES
    head, run = sizes.vectors * m, outputs * LANES
    clear(scratch.error, sizes.runs * run)
    for c in range(columns):
        attention.conclude(scratch.sums[c * head :], scratch.total[c * LANES :], scratch.coefs[c * head :],
                           scratch.error[c // sizes.heads * run :], scratch.spare, sizes)  # fmt: skip
    factor, valid = f4(2.0 / (sizes.batch * outputs)), sizes.batch - index * LANES
    for r in range(sizes.runs):
        squares = 0.0
        for n in range(outputs):
            squares += _close(scratch.error[r * run + n * LANES :], x_q[(dim + n) * LANES :], factor, valid)
        folded.loss[index, r] = squares
    for c in range(columns):
        error, sums = scratch.error[c // sizes.heads * run :], scratch.sums[c * head :]
        for n in range(outputs):
            dots(folded.grad_OV[index, c, n], error[n * LANES :], sums, model)
        for k in range(model):
            clear(scratch.spare, LANES)
            for n in range(outputs):
                add_products(scratch.spare, error[n * LANES :], sums[((n + 1) * model + k) * LANES :], 1)
            dots(folded.grad_KQ[index, c, k], scratch.spare, x_q, dim)


@summing
def _close(error, target, factor, valid):
    """Prediction to error times `factor`; the sum of squares over the first `valid` prompts, the others being zero."""
    vectorise()
    total = f4(0)
    for i in range(LANES):
        e = error[i] - target[i] if i < valid else f4(0)
        total += e * e
        error[i] = e * factor
    return total


def _make(digest: str) -> Callable[..., None]:
    def run(step, steps, begin, end, finish, optimizer, folded, source, scratch, losses, sizes):
        """Of steps `step` to before `step + steps`, the blocks `begin` to before `end`, in one thread.

        `finish`: 0: no more than that, other threads do the other blocks; 1: add up the gradient, which all blocks have
        been computed for; 2: update the weights too, and add the loss to `losses`.
        """
        digest  # noqa: B018  # pyright: ignore[reportUnusedExpression]
        for now in range(step, step + steps):
            if begin < end:
                _fold(optimizer, folded, scratch, sizes)
            for index in range(begin, end):
                _block(index, now, folded, source, scratch, sizes)
            if finish >= 1:
                _unfold(optimizer, folded, sizes)
            if finish == 2:
                for r in range(sizes.runs):
                    update(optimizer.kind, optimizer.weights[r], optimizer.grad[r], optimizer.first[r],
                           optimizer.second[r], optimizer.settings[r], now + 1)  # fmt: skip
                    squares = 0.0
                    for block in range(folded.loss.shape[0]):
                        squares += folded.loss[block, r]
                    losses[r] += squares / (sizes.batch * sizes.outputs)

    return run


run = Entry(
    _make, by="import icl_interp as icl; icl.train(icl.LinearRegression(1, 1), engine='numba', steps=1, progress=False)"
)
