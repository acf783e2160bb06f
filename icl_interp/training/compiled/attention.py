"""Forward and backward of one head in one pass over the demonstrations.

With f = f(score), its derivative f′ and u_n = OV_n · z the pass adds up F = Σf, Σf·z, Σf′·u_n·z and Σf′·z.  From these:

    c = Σf z/F,   ŷ_n = OV_n · c,   ∂OV_n = Σ_b err_n c,   ∂KQ = Σ_b Σ_n err_n (Σf′ u_n z − ŷ_n Σf′ z)/F x_qᵀ

Of softmax the last sum is the second; without normalisation (linear attention) F and f′ are 1, and there is no last
sum.

A head has a coefficient vector for its scores (KQ x_q, another for each prompt), one for each output and, where there
is a last sum of its own, one of zeros that stands for f′; and as many sums.  They are taken in pairs, so there may be a
vector of zeros more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from icl_interp.activations import NEAR_ZERO
from icl_interp.training.compiled.compiler import (
    LANES,
    add_products,
    clear,
    compiled,
    f4,
    i4,
    multiply,
    subtract_products,
    summing,
    vectorise,
)
from icl_interp.training.compiled.random import exp2

SOFTMAX, AFFINE, SQUARE, TANH, LINEAR = range(5)
KINDS = {"softmax": SOFTMAX, "affine": AFFINE, "square": SQUARE, "tanh": TANH, "linear": LINEAR}
_LOG2E = 1.4426950408889634

GROUP = 4  # demonstrations taken together in the inner loops, which are written out for so many
HEADROOM = 30  # powers of two by which a score may exceed its reference
NOTHING = -1e30  # a score that weighs nothing


def vectors(kind: int, outputs: int) -> int:
    """How many coefficient vectors a head has."""
    return (1 + outputs + (kind not in (SOFTMAX, LINEAR)) + 1) // 2 * 2


@compiled
def base(kind):
    """What scores are multiplied by for the sake of powers of two."""
    return _LOG2E if kind in (SOFTMAX, TANH) else 1.0


def _make_project(chunk: int) -> Callable[..., None]:
    @compiled
    def project(z, first, second, s, u, model, tokens):
        """s[t] += Σ_k first[k] ∘ z[t, k] and u[t] += Σ_k second[k] ∘ z[t, k], k < chunk."""
        vectorise()
        step = model * LANES
        for start in range(0, tokens, GROUP):
            o = start * step
            z0, z1, z2, z3 = z[o:], z[o + step :], z[o + 2 * step :], z[o + 3 * step :]
            out_s, out_u = s[start * LANES :], u[start * LANES :]
            for i in range(LANES):
                s0 = s1 = s2 = s3 = u0 = u1 = u2 = u3 = f4(0)
                for k in range(chunk):
                    a, b = first[k * LANES + i], second[k * LANES + i]
                    y0, y1, y2, y3 = z0[k * LANES + i], z1[k * LANES + i], z2[k * LANES + i], z3[k * LANES + i]
                    s0, s1, s2, s3 = s0 + a * y0, s1 + a * y1, s2 + a * y2, s3 + a * y3
                    u0, u1, u2, u3 = u0 + b * y0, u1 + b * y1, u2 + b * y2, u3 + b * y3
                out_s[i] += s0
                out_s[LANES + i] += s1
                out_s[2 * LANES + i] += s2
                out_s[3 * LANES + i] += s3
                out_u[i] += u0
                out_u[LANES + i] += u1
                out_u[2 * LANES + i] += u2
                out_u[3 * LANES + i] += u3

    return project


def _make_collect(chunk: int) -> Callable[..., None]:
    @compiled
    def collect(z, s, u, first, second, model, tokens):
        """first[k] += Σ_t s[t] ∘ z[t, k] and second[k] += Σ_t u[t] ∘ z[t, k], k < chunk."""
        vectorise()
        step = model * LANES
        for start in range(0, tokens, GROUP):
            o = start * step
            z0, z1, z2, z3 = z[o:], z[o + step :], z[o + 2 * step :], z[o + 3 * step :]
            a, b = s[start * LANES :], u[start * LANES :]
            for i in range(LANES):
                s0, s1, s2, s3 = a[i], a[LANES + i], a[2 * LANES + i], a[3 * LANES + i]
                u0, u1, u2, u3 = b[i], b[LANES + i], b[2 * LANES + i], b[3 * LANES + i]
                for k in range(chunk):
                    y0, y1, y2, y3 = z0[k * LANES + i], z1[k * LANES + i], z2[k * LANES + i], z3[k * LANES + i]
                    first[k * LANES + i] += (s0 * y0 + s1 * y1) + (s2 * y2 + s3 * y3)
                    second[k * LANES + i] += (u0 * y0 + u1 * y1) + (u2 * y2 + u3 * y3)

    return collect


# The loops over k must be unrolled for those over lanes to be vectorised, so their lengths are constants.
_project_6, _project_3, _project_1 = _make_project(6), _make_project(3), _make_project(1)
_collect_6, _collect_3, _collect_1 = _make_collect(6), _make_collect(3), _make_collect(1)


@compiled
def _project(z, first, second, s, u, model, tokens):
    """s[t] = Σ_k first[k] ∘ z[t, k] and u[t] = Σ_k second[k] ∘ z[t, k]."""
    clear(s, tokens * LANES)
    clear(u, tokens * LANES)
    k = 0
    while k + 6 <= model:
        _project_6(z[k * LANES :], first[k * LANES :], second[k * LANES :], s, u, model, tokens)
        k += 6
    while k + 3 <= model:
        _project_3(z[k * LANES :], first[k * LANES :], second[k * LANES :], s, u, model, tokens)
        k += 3
    while k < model:
        _project_1(z[k * LANES :], first[k * LANES :], second[k * LANES :], s, u, model, tokens)
        k += 1


@compiled
def _collect(z, s, u, first, second, model, tokens):
    """first[k] += Σ_t s[t] ∘ z[t, k] and second[k] += Σ_t u[t] ∘ z[t, k]."""
    k = 0
    while k + 6 <= model:
        _collect_6(z[k * LANES :], s, u, first[k * LANES :], second[k * LANES :], model, tokens)
        k += 6
    while k + 3 <= model:
        _collect_3(z[k * LANES :], s, u, first[k * LANES :], second[k * LANES :], model, tokens)
        k += 3
    while k < model:
        _collect_1(z[k * LANES :], s, u, first[k * LANES :], second[k * LANES :], model, tokens)
        k += 1


@compiled
def _exceeds(scores, reference, top, tokens):
    """Each prompt's highest score into `top`; whether any exceeds its reference by more than HEADROOM."""
    vectorise()
    for i in range(LANES):
        top[i] = scores[i]
    for t in range(1, tokens):
        row = scores[t * LANES :]
        for i in range(LANES):
            top[i] = row[i] if row[i] > top[i] else top[i]
    over = i4(0)
    for i in range(LANES):
        over |= i4(top[i] > reference[i] + f4(HEADROOM))
    return over


@compiled
def _raise_reference(reference, top, total):
    """Reference to the highest score; `top` becomes what sums relative to the old one are to be multiplied by."""
    vectorise()
    for i in range(LANES):
        new = reference[i] if reference[i] > top[i] else top[i]
        top[i] = exp2(reference[i] - new)
        reference[i] = new
        total[i] *= top[i]


@compiled
def _weigh(scores, outputs, reference, total, tokens):
    """Scores to e, outputs u to e·u; e is added to the total."""
    vectorise()
    for start in range(0, tokens * LANES, 2 * LANES):
        s, u = scores[start:], outputs[start:]
        for i in range(LANES):
            a, b = exp2(s[i] - reference[i]), exp2(s[LANES + i] - reference[i])
            s[i] = a
            s[LANES + i] = b
            u[i] *= a
            u[LANES + i] *= b
            total[i] += a + b


@compiled
def _affine(scores, outputs, slopes, total, size):
    """Scores a to f = 1 + a, outputs u to f′·u and `slopes` to f′; f is added to the total."""
    vectorise()
    for start in range(0, size, LANES):
        s, out = scores[start:], slopes[start:]
        for i in range(LANES):
            s[i] += f4(1)
            out[i] = f4(1)
            total[i] += s[i]


@compiled
def _square(scores, outputs, slopes, total, size):
    """The same for f = (1 + a)²."""
    vectorise()
    for start in range(0, size, LANES):
        s, u, out = scores[start:], outputs[start:], slopes[start:]
        for i in range(LANES):
            a = s[i] + f4(1)
            s[i] = a * a
            out[i] = f4(2) * a
            u[i] *= f4(2) * a
            total[i] += a * a


@compiled
def _tanh(scores, outputs, slopes, total, size):
    """The same for f = 1 + tanh a = 2/(1 + e^(−2a)), of scores to base 2; f′ = f(2 − f)."""
    vectorise()
    for start in range(0, size, LANES):
        s, u, out = scores[start:], outputs[start:], slopes[start:]
        for i in range(LANES):
            a = f4(-2) * s[i]
            a = a if a < f4(126) else f4(126)  # a float32 ends there
            a = a if a > f4(-126) else f4(-126)
            f = f4(2) / (f4(1) + exp2(a))
            s[i] = f
            out[i] = f * (f4(2) - f)
            u[i] *= out[i]
            total[i] += f


@compiled
def _weigh_by(kind, scores, outputs, slopes, total, size):
    """Scores to f, outputs u to f′·u, `slopes` to f′; f is added to the total.  Linear attention has nothing to do."""
    if kind == AFFINE:
        _affine(scores, outputs, slopes, total, size)
    elif kind == SQUARE:
        _square(scores, outputs, slopes, total, size)
    elif kind == TANH:
        _tanh(scores, outputs, slopes, total, size)


@summing
def _multiply_all(rows, others, size):
    vectorise()
    for i in range(size):
        rows[i] *= others[i]


@compiled
def attend(z, tokens, coefs, sums, total, reference, scores, spare, model, vectors, kind):
    """One head over one tile."""
    if kind == SOFTMAX:
        _attend_softmax(z, tokens, coefs, sums, total, reference, scores, spare, model, vectors)
    else:
        _attend_other(z, tokens, coefs, sums, total, scores, model, vectors, kind)


@compiled
def _attend_other(z, tokens, coefs, sums, total, scores, model, vectors, kind):
    padded = (tokens + GROUP - 1) // GROUP * GROUP
    n, m, live = padded * LANES, model * LANES, tokens * LANES
    slopes = scores[vectors * n :]
    for row in range(0, vectors, 2):
        s, u = scores[row * n :], scores[(row + 1) * n :]
        last = row + 2 == vectors
        first, second = row * m, (row + 1) * m
        _project(z, coefs[first:], coefs[second:], s, u, model, padded)
        if row == 0:
            _weigh_by(kind, s, u, slopes, total, live)
            clear(s[live:], n - live)
            clear(slopes[live:], n - live)
            clear(u[live:], n - live)
        elif kind != LINEAR:
            _multiply_all(s, slopes, n)
            for i in range(n if last else 0):
                u[i] = slopes[i]
            if not last:
                _multiply_all(u, slopes, n)
        _collect(z, s, u, sums[first:], sums[second:], model, padded)


@compiled
def _attend_softmax(z, tokens, coefs, sums, total, reference, scores, spare, model, vectors):
    padded = (tokens + GROUP - 1) // GROUP * GROUP
    n, m = padded * LANES, model * LANES
    for row in range(0, vectors, 2):
        s, u = scores[row * n :], scores[(row + 1) * n :]
        first, second = row * m, (row + 1) * m
        _project(z, coefs[first:], coefs[second:], s, u, model, padded)
        if row == 0:
            for i in range(tokens * LANES, n):
                s[i] = f4(NOTHING)
            if _exceeds(s, reference, spare, padded):
                _raise_reference(reference, spare, total)
                multiply(sums, spare, vectors * model)
            _weigh(s, u, reference, total, padded)
        else:
            _multiply_all(s, scores, n)
            _multiply_all(u, scores, n)
        _collect(z, s, u, sums[first:], sums[second:], model, padded)


@compiled
def _invert(total, limit, kind):
    """Denominators to their inverses; NaN for those too near zero, and ones without normalisation."""
    for i in range(LANES):
        if kind == LINEAR:
            total[i] = f4(1)
        elif kind == SOFTMAX or abs(total[i]) >= limit:
            total[i] = f4(1) / total[i]
        else:
            total[i] = f4(np.nan)


@compiled
def conclude(sums, total, coefs, prediction, spare, sizes):
    """Sums to c, and to (Σf′ u_n z − ŷ_n Σf′ z)/F for each output; ŷ_n is added to the prediction."""
    model, outputs, kind = sizes.dim + sizes.outputs, sizes.outputs, sizes.kind
    m = model * LANES
    _invert(total, f4(NEAR_ZERO) * f4(sizes.length), kind)
    multiply(sums, total, sizes.vectors * model)
    slopes = sums if kind == SOFTMAX else sums[(sizes.vectors - 1) * m :]
    for n in range(outputs):
        clear(spare, LANES)
        add_products(spare, sums, coefs[(n + 1) * m :], model)
        if kind != LINEAR:
            subtract_products(sums[(n + 1) * m :], slopes, spare, model)
        out = prediction[n * LANES :]
        for i in range(LANES):
            out[i] += spare[i]
