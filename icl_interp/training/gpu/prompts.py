"""Random numbers, and prompts of Gaussian linear regression from them, a demonstration at a time.

The streams are those of `compiled.random`: for each prompt of each step xoshiro128+ (Blackman and Vigna 2021), whose
state is Philox4x32-10 (Salmon et al. 2011) of (index in the batch, 0, step) under the run's key.  So are the normals
and what becomes of them, in the same order; logarithms are the hardware's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from icl_interp.training.gpu.device import f4, i4, inner, log2, u4, u8
from icl_interp.training.gpu.shapes import Shape


@inner
def start(key, step, index):
    """The stream of a prompt."""
    a, b, c, d = u4(index), u4(0), u4(step), u4(u8(step) >> u8(32))
    k, m = key[0], key[1]
    for _ in range(10):
        low, high = u8(a) * u8(0xD2511F53), u8(c) * u8(0xCD9E8D57)
        a, b, c, d = u4(u4(high >> u8(32)) ^ b ^ k), u4(high), u4(u4(low >> u8(32)) ^ d ^ m), u4(low)
        k, m = u4(k + u4(0x9E3779B9)), u4(m + u4(0xBB67AE85))
    return a, b, c, d


@inner
def two_normals(s0, s1, s2, s3):
    """Two standard normals by Box–Muller, and the stream after them: a word for the radius, one for the angle.

    The angle is one of the half circle where the cosine is positive; the word's top bit is the radius' sign.
    """
    radial = u4(s0 + s3)
    t = u4(s1 << u4(9))
    s2, s3 = u4(s2 ^ s0), u4(s3 ^ s1)
    s1, s0 = u4(s1 ^ s2), u4(s0 ^ s3)
    s2, s3 = u4(s2 ^ t), u4(u4(s3 << u4(11)) | u4(s3 >> u4(21)))
    angular = u4(s0 + s3)
    t = u4(s1 << u4(9))
    s2, s3 = u4(s2 ^ s0), u4(s3 ^ s1)
    s1, s0 = u4(s1 ^ s2), u4(s0 ^ s3)
    s2, s3 = u4(s2 ^ t), u4(u4(s3 << u4(11)) | u4(s3 >> u4(21)))

    u = f4(i4(radial >> u4(1))) * f4(2.0**-31) + f4(2.0**-32)
    radius = f4(math.sqrt(f4(-1.3862943611198906) * log2(u)))
    radius = -radius if angular >> u4(31) else radius
    x = f4(i4(u4(angular << u4(1)))) * f4(2.0**-31)  # the angle in units of π/2, in [−1, 1)
    z = x * x
    sine = f4(1.50820564e-4) * z + f4(-4.67222792e-3)
    sine = sine * z + f4(7.96884805e-2)
    sine = sine * z + f4(-6.45963360e-1)
    sine = sine * z + f4(1.57079629)
    cosine = f4(8.58190614e-4) * z + f4(-2.08106275e-2)
    cosine = cosine * z + f4(2.53650745e-1)
    cosine = cosine * z + f4(-1.23369821)
    cosine = cosine * z + f4(9.99999953e-1)
    return s0, s1, s2, s3, f4(radius * cosine), f4(radius * x * sine)


def make(shape: Shape) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Of a shape: `query`, which draws β, x_q and its responses, and `demonstration`, which draws one.

    Normals come in pairs.  What is over of one is `spare`, if `full`, until the next that belongs to it.
    """
    dim, outputs, model = shape.dim, shape.outputs, shape.model
    plain, shared = shape.plain, shape.shared
    even = model % 2 == 0

    @inner
    def complete(row, beta, noise, root, mean):
        """Standard normals in place to covariates, and noise to responses."""
        if not plain:
            for k in range(dim - 1, -1, -1):  # from the last up: each needs the normals before it
                x = row[k] * root[k, k]
                for j in range(k):
                    x += row[j] * root[k, j]
                row[k] = x + mean[k]
        for n in range(outputs):
            y = row[dim + n] * noise
            for k in range(dim):
                y += row[k] * beta[n, k]
            row[dim + n] = y

    @inner
    def query(s0, s1, s2, s3, row, beta, noise, root, mean, signal):
        spare, full = f4(0), False
        for i in range(outputs * dim + model):
            if full:
                normal, full = spare, False
            else:
                s0, s1, s2, s3, normal, spare = two_normals(s0, s1, s2, s3)
                full = True
            if i < outputs * dim:
                beta[i // dim, i % dim] = normal
            else:
                row[i - outputs * dim] = normal
        for n in range(outputs - 1, -1, -1):  # the first last: others may need its normals
            for k in range(dim):
                beta[n, k] = (beta[0, k] if shared else beta[n, k]) * signal[n, k]
        complete(row, beta, noise, root, mean)
        return s0, s1, s2, s3

    @inner
    def demonstration(s0, s1, s2, s3, spare, full, row, beta, noise, root, mean):
        if even:
            for k in range(0, model, 2):
                s0, s1, s2, s3, row[k], row[k + 1] = two_normals(s0, s1, s2, s3)
        else:
            for k in range(model):
                if full:
                    row[k], full = spare, False
                else:
                    s0, s1, s2, s3, row[k], spare = two_normals(s0, s1, s2, s3)
                    full = True
        complete(row, beta, noise, root, mean)
        return s0, s1, s2, s3, spare, full

    return query, demonstration
