"""Prompts of Gaussian linear regression, drawn a tile of demonstrations at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from icl_interp.training.compiled.compiler import LANES, Entry, add_scaled, compiled, f4, scale, vectorise
from icl_interp.training.compiled.random import normals, start_streams

UNROLLED = 5


class Source(NamedTuple):
    """Where prompts come from: y_n = (signal_n ∘ β_n)ᵀx + noise with β_n normal and x = root · normal + mean."""

    key: np.ndarray  # (2,) uint32
    root: np.ndarray  # (dim, dim) Cholesky factor of Σ
    mean: np.ndarray  # (dim,)
    signal: np.ndarray  # (outputs, dim): standard deviations of β
    shared: bool  # the normals of β are the same for all outputs
    noise: np.float32  # standard deviation
    query_noise: np.float32  # of the query's response
    plain: bool  # Σ = I and mean = 0
    given: bool  # not drawn at all, but these:
    given_z: np.ndarray  # (blocks, length padded to a group, dim + outputs) rows
    given_query: np.ndarray  # (blocks, dim + outputs) rows


@compiled
def draw_query(state, query, source, dim, outputs):
    """Rows of β (outputs × dim), then the query (dim), then its response (outputs); one more row may be used up."""
    normals(state, query, (outputs * dim + dim + outputs + 1) // 2)
    for n in range(outputs - 1, -1, -1):  # the first last: others may need its normals
        for k in range(dim):
            row = query[(n * dim + k) * LANES :]
            if source.shared:
                for i in range(LANES):
                    row[i] = query[k * LANES + i]
            scale(row, source.signal[n, k], f4(0))
    _complete(query[outputs * dim * LANES :], query, source.query_noise, source, 1, dim, outputs)


@compiled
def draw_tile(state, z, beta, source, tokens, dim, outputs):
    """`tokens` demonstrations of covariates and responses; one more row may be used up."""
    model = dim + outputs
    normals(state, z, (tokens * model + 1) // 2)
    _complete(z, beta, source.noise, source, tokens, dim, outputs)


@compiled
def _complete(rows, beta, noise, source, count, dim, outputs):
    """Standard normals in place to covariates, and noise to responses, `count` times."""
    if not source.plain:
        for start in range(0, count * (dim + outputs) * LANES, (dim + outputs) * LANES):
            x = rows[start:]
            for k in range(dim - 1, -1, -1):  # from the last up: each needs the normals before it
                row = x[k * LANES :]
                scale(row, source.root[k, k], f4(0))
                add_scaled(row, x, source.root[k], k)
                scale(row, f4(1), source.mean[k])
    for n in range(outputs):
        _respond(rows, beta[n * dim * LANES :], noise, count, dim, dim + n, dim + outputs)


@compiled
def _respond(rows, beta, noise, count, dim, response, model):
    """The row `response` of each: noise · itself + βᵀx."""
    vectorise()
    for start in range(0, count * model * LANES, model * LANES):
        y = rows[start + response * LANES :]
        for i in range(LANES):
            y[i] *= noise
        for k in range(0, dim - dim % UNROLLED, UNROLLED):
            x, b = rows[start + k * LANES :], beta[k * LANES :]
            for i in range(LANES):
                total = y[i]
                for j in range(UNROLLED):
                    total += x[j * LANES + i] * b[j * LANES + i]
                y[i] = total
        for k in range(dim - dim % UNROLLED, dim):
            x, b = rows[start + k * LANES :], beta[k * LANES :]
            for i in range(LANES):
                y[i] += x[i] * b[i]


def _make(digest: str) -> Callable[..., None]:
    def draw(step, source, state, query, rows, tile, z, x_q, y_q):
        """The prompts of a step, where torch wants them: z (batch, length, at least dim + outputs), x_q and y_q.

        `state` (4 rows), `query` and `rows` (those of a tile) are to work in.
        """
        digest  # noqa: B018  # pyright: ignore[reportUnusedExpression]
        dim, outputs = x_q.shape[1], y_q.shape[1]
        model = dim + outputs
        for first in range(0, z.shape[0], LANES):
            lanes = min(LANES, z.shape[0] - first)
            start_streams(state, source.key, step, first)
            draw_query(state, query, source, dim, outputs)
            for k in range(model):
                row = query[(outputs * dim + k) * LANES :]
                for i in range(lanes):
                    if k < dim:
                        x_q[first + i, k] = row[i]
                    else:
                        y_q[first + i, k - dim] = row[i]
            for start in range(0, z.shape[1], tile):
                tokens = min(tile, z.shape[1] - start)
                draw_tile(state, rows, query, source, tokens, dim, outputs)
                for i in range(lanes):
                    out = z[first + i]
                    for t in range(tokens):
                        for k in range(model):
                            out[start + t, k] = rows[(t * model + k) * LANES + i]

    return draw


draw = Entry(
    _make,
    by="import icl_interp as icl; from icl_interp.training.gaussian import Drawn; "
    "Drawn(icl.TrainConfig(icl.LinearRegression(1, 1), icl.ModelConfig(1))).prompt()",
)
