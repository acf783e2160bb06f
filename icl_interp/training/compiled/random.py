"""Random numbers: one stream for each prompt of each step, standard normals from it, and the functions they need."""

from __future__ import annotations

import math

from icl_interp.training.compiled.compiler import LANES, bits, compiled, f4, from_bits, i4, inlined, u4, u8, vectorise


@inlined
def exp2(x):
    """2^x to 2.3e-7 relative by a minimax polynomial, x < 128; 2^−126 where x is less; NaN stays NaN."""
    x = f4(-126.0) if x < f4(-126.0) else x
    shifted = x + f4(12582912.0)  # 1.5·2²³: the low bits of the sum are x rounded to a whole number
    r = x - (shifted - f4(12582912.0))
    p = f4(1.34073e-3) * r + f4(9.67188e-3)
    p = p * r + f4(5.550308e-2)
    p = p * r + f4(2.4022235e-1)
    p = p * r + f4(6.9314721e-1)
    p = p * r + f4(1.0)
    return from_bits(i4(bits(p) + i4(bits(shifted) << i4(23))))


@inlined
def minus_two_log(u):
    """−2 ln u to 2e-7 relative by a minimax polynomial, 0 < u ≤ 1."""
    b = bits(u)
    exponent = i4(i4(b - i4(0x3F3504F3)) >> i4(23))  # u = 2^exponent (1 + m) with 1 + m between √½ and √2
    m = from_bits(i4(b - i4(exponent << i4(23)))) - f4(1.0)
    p = f4(-0.17469622) * m + f4(0.28615017)
    p = p * m + f4(-0.29835958)
    p = p * m + f4(0.3314102)
    p = p * m + f4(-0.39924144)
    p = p * m + f4(0.5000351)
    p = p * m + f4(-0.666679)
    p = p * m + f4(0.99999983)
    return p * (m * m) + (m * f4(-2.0) + f4(exponent) * f4(-1.3862943611198906))


@compiled
def start_streams(state, key, step, first):
    """Where the streams of prompts `first`, `first` + 1, … of a step start.

    Philox4x32-10 (Salmon et al. 2011) of (index in the batch, 0, step): it permutes the 128-bit numbers, so under one
    key no two prompts ever start from the same state.
    """
    vectorise()
    for i in range(LANES):
        a, b, c, d = u4(first + i), u4(0), u4(step), u4(u8(step) >> u8(32))
        k, m = key[0], key[1]
        for _ in range(10):
            low, high = u8(a) * u8(0xD2511F53), u8(c) * u8(0xCD9E8D57)
            a, b, c, d = u4(u4(high >> u8(32)) ^ b ^ k), u4(high), u4(u4(low >> u8(32)) ^ d ^ m), u4(low)
            k, m = u4(k + u4(0x9E3779B9)), u4(m + u4(0xBB67AE85))
        state[i], state[LANES + i], state[2 * LANES + i], state[3 * LANES + i] = a, b, c, d


@compiled
def normals(state, out, pairs):
    """Fill `pairs` pairs of rows with standard normals: two words of xoshiro128+ (Blackman and Vigna 2021) each pair.

    Box–Muller: one word gives the radius; the other an angle on the half circle where the cosine is positive and, by
    its top bit, the radius' sign, which makes the circle whole.
    """
    vectorise()
    for start in range(0, 2 * pairs * LANES, 2 * LANES):
        even, odd = out[start:], out[start + LANES :]
        for i in range(LANES):
            s0, s1, s2, s3 = state[i], state[LANES + i], state[2 * LANES + i], state[3 * LANES + i]
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
            state[i], state[LANES + i], state[2 * LANES + i], state[3 * LANES + i] = s0, s1, s2, s3

            u = f4(i4(radial >> u4(1))) * f4(2.0**-31) + f4(2.0**-32)
            radius = f4(math.sqrt(minus_two_log(u)))
            radius = from_bits(i4(bits(radius) ^ i4(angular & u4(0x80000000))))
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
            even[i] = radius * cosine
            odd[i] = radius * x * sine
