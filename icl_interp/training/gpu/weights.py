"""What a block's threads do with its run's weights: fold them, find their gradient, move them.

A run's weights lie in a row: W_Q of all heads, W_K, W_V (head, model, width each), W_O (head, width, model).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from icl_interp.training.compiled.attention import SOFTMAX, TANH
from icl_interp.training.compiled.weights import ADAM, SGD
from icl_interp.training.gpu.device import f4, f8, inner
from icl_interp.training.gpu.shapes import Shape

_LOG2E = 1.4426950408889634


def make(shape: Shape) -> tuple[Callable[..., Any], ...]:
    """Of a shape: `fold`, `unfold` and `update`, each thread its share, and `rates`, for one thread."""
    heads, dim, outputs, width, model = shape.heads, shape.dim, shape.outputs, shape.width, shape.model
    threads, parameters, of_KQ = shape.threads, shape.parameters, shape.model * shape.dim
    per_head, block = model * width, heads * model * width
    sgd, adam = shape.optimizer == SGD, shape.optimizer == ADAM
    base = _LOG2E if shape.kind in (SOFTMAX, TANH) else 1.0  # powers of two are what a GPU has

    @inner
    def fold(thread, w, scale, KQ, OV):
        """KQ = scale · W_K W_Qᵀ (model, dim), of a base 2 where there are powers, and OV = (W_V W_O)ᵀ."""
        for i in range(thread, heads * model * dim, threads):
            h, k, j = i // (model * dim), i // dim % model, i % dim
            keys, queries, value = block + h * per_head + k * width, h * per_head + j * width, f4(0)
            for m in range(width):
                value += w[keys + m] * w[queries + m]
            KQ[h, k, j] = value * (scale * f4(base))
        for i in range(thread, heads * outputs * model, threads):
            h, n, k = i // (outputs * model), i // model % outputs, i % model
            values, out, value = 2 * block + h * per_head + k * width, 3 * block + h * per_head + dim + n, f4(0)
            for m in range(width):
                value += w[values + m] * w[out + m * model]
            OV[h, n, k] = value

    @inner
    def unfold(thread, w, g, gradient, scale):
        """The chain rule back through `fold`; zero where nothing was read."""
        for i in range(thread, parameters, threads):
            which, h, rest = i // block, i % block // per_head, i % per_head
            value, head = f4(0), h * per_head
            if which == 0:
                j, m = rest // width, rest % width
                for k in range(model if j < dim else 0):
                    value += gradient[h, k * dim + j] * w[block + head + k * width + m]
                value *= scale
            elif which == 1:
                k, m = rest // width, rest % width
                for j in range(dim):
                    value += gradient[h, k * dim + j] * w[head + j * width + m]
                value *= scale
            elif which == 2:
                k, m = rest // width, rest % width
                for n in range(outputs):
                    value += gradient[h, of_KQ + n * model + k] * w[3 * block + head + m * model + dim + n]
            else:
                m, n = rest // model, rest % model - dim
                for k in range(model if n >= 0 else 0):
                    value += gradient[h, of_KQ + n * model + k] * w[2 * block + head + k * width + m]
            g[i] = value

    @inner
    def rates(settings, powers, found):
        """lr/(1 − β₁^t) and 1/√(1 − β₂^t) of the next update; a β^t is multiplied up, step by step."""
        powers[0] *= settings[2]
        powers[1] *= settings[3]
        found[0] = f4(settings[0] / (f8(1) - powers[0]))
        found[1] = f4(f8(1) / math.sqrt(f8(1) - powers[1]))

    @inner
    def update(thread, step, w, g, m1, m2, settings, found):
        """torch's Adam, AdamW, or SGD (no dampening, no Nesterov)."""
        lr, decay = f4(settings[0]), f4(settings[1])
        for i in range(thread, parameters, threads):
            if sgd:
                keep = f4(settings[4]) if step > 0 else f4(0)
                m1[i] = keep * m1[i] + (g[i] + decay * w[i])
                w[i] -= lr * m1[i]
            else:
                slope = g[i] + decay * w[i] if adam else g[i]
                shrink = f4(1) if adam else f4(f8(1) - settings[0] * settings[1])
                m1[i] += f4(f8(1) - settings[2]) * (slope - m1[i])
                m2[i] = f4(settings[3]) * m2[i] + f4(f8(1) - settings[3]) * slope * slope
                w[i] = shrink * w[i] - found[0] * m1[i] / (f4(math.sqrt(m2[i])) * found[1] + f4(1e-8))

    return fold, unfold, rates, update
