"""The kernel: the steps of a launch, for the run that a block has."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from icl_interp.training.compiled.attention import SOFTMAX, TANH
from icl_interp.training.compiled.weights import ADAM, SGD
from icl_interp.training.gpu import attention, prompts
from icl_interp.training.gpu.device import f4, f8, grid, inner, kernel, u4
from icl_interp.training.gpu.shapes import Shape

_LOG2E = 1.4426950408889634
_NOTHING = -1e30  # a score that weighs nothing


@cache
def make(shape: Shape) -> Callable[..., Any]:
    """The kernel of a shape; it is compiled when it is first launched.

    Its arguments, an entry or a row for each run: `now`, steps taken; `ends`, where it stops; `lengths`, `batches`,
    `tiles` (demonstrations between which no normal is carried on); `scales` of the scores; keys, root, mean, signal and
    noise (of demonstrations, of the query) of its prompts; `settings` (lr, weight decay, β₁, β₂, momentum); `powers`
    (β₁^t, β₂^t); weights, gradient and moments; `losses`, to which every step adds.  `steps` is how many to take at
    most; `given_z` and `given_query` are the prompts if they are given, and weights then stay as they are.
    """
    heads, dim, outputs, width, model = shape.heads, shape.dim, shape.outputs, shape.width, shape.model
    entries, parts, rows = shape.entries, shape.parts, shape.rows
    threads, parameters, has_slopes, given = shape.threads, shape.parameters, shape.has_slopes, shape.given
    stride = threads + 1  # of rows in shared memory: those of one prompt then lie in different banks
    per_head, block = model * width, heads * model * width
    of_KQ, of_OV = model * dim, outputs * model  # entries
    sgd, adam = shape.optimizer == SGD, shape.optimizer == ADAM
    base = _LOG2E if shape.kind in (SOFTMAX, TANH) else 1.0
    slope_heads = heads if has_slopes else 1
    query, demonstration = prompts.make(shape)
    attend, conclude = attention.make(shape)

    @inner
    def add_up(left, partial, part, entry):
        """Every `parts`-th prompt, from `part` on: of KQ products with x_q, of all else what was left."""
        value, i = f4(0), u4(part)  # indices without a sign need not be told from those that count from the end
        if entry < of_KQ:
            row, column = u4(entry // dim), u4(model + of_OV + 1 + entry % dim)
            while i < u4(threads):
                value += left[row, i] * left[column, i]
                i = u4(i + u4(parts))
        else:
            row = u4(model + entry - of_KQ)
            while i < u4(threads):
                value += left[row, i]
                i = u4(i + u4(parts))
        partial[part, entry] = value

    @kernel
    def run(steps, now, ends, lengths, batches, tiles, scales, keys, root, mean, signal, noise, given_z, given_query,
            settings, powers, weights, grads, first, second, losses):  # fmt: skip
        r, thread = grid.blockIdx.x, grid.threadIdx.x
        KQ = grid.shared.array((heads, model, dim), f4)
        OV = grid.shared.array((heads, outputs, model), f4)
        gradient = grid.shared.array((heads, entries), f4)
        left = grid.shared.array((rows, stride), f4)
        partial = grid.shared.array((parts, entries), f4)
        rates = grid.shared.array(2, f4)

        z = grid.local.array(model, f4)
        at_query = grid.local.array(model, f4)
        beta = grid.local.array((outputs, dim), f4)
        coefs = grid.local.array((heads, model), f4)
        total = grid.local.array(heads, f4)
        reference = grid.local.array(heads, f4)
        sums = grid.local.array((heads, model), f4)
        products = grid.local.array((heads, outputs, model), f4)
        slopes = grid.local.array((slope_heads, model), f4)
        error = grid.local.array(outputs, f4)

        w, g, m1, m2 = weights[r], grads[r], first[r], second[r]
        length, batch, scale = lengths[r], batches[r], scales[r]
        last = min(now[r] + steps, ends[r])
        for step in range(now[r], last):
            # --- What the step sees of the weights.
            for i in range(thread, heads * model * dim, threads):
                h, k, j = i // (model * dim), i // dim % model, i % dim
                value = f4(0)
                for m in range(width):
                    value += w[block + (h * model + k) * width + m] * w[(h * model + j) * width + m]
                KQ[h, k, j] = value * (scale * f4(base))
            for i in range(thread, heads * outputs * model, threads):
                h, n, k = i // (outputs * model), i // model % outputs, i % model
                value = f4(0)
                for m in range(width):
                    value += (
                        w[2 * block + (h * model + k) * width + m] * w[3 * block + (h * width + m) * model + dim + n]
                    )
                OV[h, n, k] = value
            for i in range(thread, heads * entries, threads):
                gradient[i // entries, i % entries] = f4(0)
            grid.syncthreads()

            # --- Loss and gradient, a prompt a thread; where there are more, one after the other.
            for begin in range(0, batch, threads):
                index = begin + thread
                for h in range(heads):
                    total[h] = f4(0)
                    reference[h] = f4(_NOTHING)
                    for k in range(model):
                        sums[h, k] = f4(0)
                        if has_slopes:
                            slopes[h, k] = f4(0)
                        for n in range(outputs):
                            products[h, n, k] = f4(0)
                for n in range(outputs):
                    error[n] = f4(0)
                squares = f4(0)
                if index < batch:
                    s0, s1, s2, s3 = prompts.start(keys[r], step, index)
                    if given:
                        for k in range(model):
                            at_query[k] = given_query[index, k]
                    else:
                        s0, s1, s2, s3 = query(s0, s1, s2, s3, at_query, beta, noise[r, 1], root[r], mean[r], signal[r])
                    for h in range(heads):
                        for k in range(model):
                            value = f4(0)
                            for j in range(dim):
                                value += KQ[h, k, j] * at_query[j]
                            coefs[h, k] = value
                    spare, full, in_tile = f4(0), False, 0
                    for t in range(length):
                        if given:
                            for k in range(model):
                                z[k] = given_z[index, t, k]
                        else:
                            if in_tile == tiles[r]:
                                in_tile, full = 0, False
                            in_tile += 1
                            s0, s1, s2, s3, spare, full = demonstration(
                                s0, s1, s2, s3, spare, full, z, beta, noise[r, 0], root[r], mean[r]
                            )
                        for h in range(heads):
                            attend(h, z, coefs, OV, total, reference, sums, products, slopes)
                    for h in range(heads):
                        conclude(h, OV, total, sums, products, slopes, error, length)
                    for n in range(outputs):
                        error[n] -= at_query[dim + n]
                        squares += error[n] * error[n]
                        error[n] *= f4(2) / (f4(batch) * f4(outputs))
                # A thread without a prompt has an error of zero, and zeros for all else.
                left[model + of_OV, thread] = squares
                for j in range(dim):
                    left[model + of_OV + 1 + j, thread] = at_query[j] if index < batch else f4(0)
                for h in range(heads):
                    for k in range(model):
                        value = f4(0)
                        for n in range(outputs):
                            value += error[n] * products[h, n, k]
                            left[model + n * model + k, thread] = error[n] * sums[h, k]
                        left[k, thread] = value
                    grid.syncthreads()
                    for job in range(thread, entries * parts, threads):
                        add_up(left, partial, job // entries, job % entries)
                    grid.syncthreads()
                    for entry in range(thread, entries, threads):
                        for part in range(parts):
                            gradient[h, entry] += partial[part, entry]
                grid.syncthreads()

            # --- The chain rule back through the products of weights; zero where nothing was read.
            for i in range(thread, parameters, threads):
                which, at = i // block, i % block
                h, rest = at // per_head, at % per_head
                value = f4(0)
                if which == 0:
                    j, m = rest // width, rest % width
                    if j < dim:
                        for k in range(model):
                            value += gradient[h, k * dim + j] * w[block + (h * model + k) * width + m]
                        value *= scale
                elif which == 1:
                    k, m = rest // width, rest % width
                    for j in range(dim):
                        value += gradient[h, k * dim + j] * w[(h * model + j) * width + m]
                    value *= scale
                elif which == 2:
                    k, m = rest // width, rest % width
                    for n in range(outputs):
                        value += gradient[h, of_KQ + n * model + k] * w[3 * block + (h * width + m) * model + dim + n]
                else:
                    m, c = rest // model, rest % model
                    if c >= dim:
                        for k in range(model):
                            value += (
                                gradient[h, of_KQ + (c - dim) * model + k] * w[2 * block + (h * model + k) * width + m]
                            )
                g[i] = value
            if thread == 0:
                losses[r] += f8(gradient[0, entries - 1]) / (f8(batch) * f8(outputs))
                powers[r, 0] *= settings[r, 2]
                powers[r, 1] *= settings[r, 3]
                rates[0] = f4(settings[r, 0] / (f8(1) - powers[r, 0]))
                rates[1] = f4(f8(1) / math.sqrt(f8(1) - powers[r, 1]))
            grid.syncthreads()

            # --- torch's Adam, AdamW, or SGD (no dampening, no Nesterov).
            if not given:
                lr, decay = f4(settings[r, 0]), f4(settings[r, 1])
                for i in range(thread, parameters, threads):
                    if sgd:
                        keep = f4(settings[r, 4]) if step > 0 else f4(0)
                        m1[i] = keep * m1[i] + (g[i] + decay * w[i])
                        w[i] -= lr * m1[i]
                    else:
                        slope = g[i] + decay * w[i] if adam else g[i]
                        shrink = f4(1) if adam else f4(f8(1) - settings[r, 0] * settings[r, 1])
                        m1[i] += f4(f8(1) - settings[r, 2]) * (slope - m1[i])
                        m2[i] = f4(settings[r, 3]) * m2[i] + f4(f8(1) - settings[r, 3]) * slope * slope
                        w[i] = shrink * w[i] - rates[0] * m1[i] / (f4(math.sqrt(m2[i])) * rates[1] + f4(1e-8))
            grid.syncthreads()
        if thread == 0 and last > now[r]:
            now[r] = last

    return run
