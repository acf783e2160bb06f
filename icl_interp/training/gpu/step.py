"""The kernel: the steps of a launch, for the run that a block has."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from icl_interp.training.gpu import attention, prompts, weights
from icl_interp.training.gpu.device import f4, f8, grid, inner, kernel, u4
from icl_interp.training.gpu.shapes import Shape

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
    heads, dim, outputs, model, given = shape.heads, shape.dim, shape.outputs, shape.model, shape.given
    entries, rows, threads, has_slopes = shape.entries, shape.rows, shape.threads, shape.has_slopes
    stride = threads + 1  # of rows in shared memory: those of one prompt then lie in different banks
    parts, slope_heads = shape.parts, heads if has_slopes else 1
    query, demonstration = prompts.make(shape)
    attend, conclude = attention.make(shape)
    leave, add_up = _reduction(shape)
    fold, unfold, rates, update = weights.make(shape)

    @kernel(shape.registers)
    def run(steps, now, ends, lengths, batches, tiles, scales, keys, root, mean, signal, noise, given_z, given_query,
            settings, powers, weights, grads, first, second, losses):  # fmt: skip
        r, thread = grid.blockIdx.x, grid.threadIdx.x
        KQ = grid.shared.array((heads, model, dim), f4)
        OV = grid.shared.array((heads, outputs, model), f4)
        gradient = grid.shared.array((heads, entries), f4)
        left = grid.shared.array((rows, stride), f4)
        partial = grid.shared.array((parts, entries), f4)
        found = grid.shared.array(2, f4)

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
        length, batch = lengths[r], batches[r]
        last = min(now[r] + steps, ends[r])
        for step in range(now[r], last):
            fold(thread, w, scales[r], KQ, OV)
            for i in range(thread, heads * entries, threads):
                gradient[i // entries, i % entries] = f4(0)
            grid.syncthreads()

            for begin in range(0, batch, threads):  # a prompt a thread; where there are more, one after the other
                index, squares = begin + thread, f4(0)
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
                if index < batch:
                    s0, s1, s2, s3 = prompts.start(keys[r], step, index)
                    if given:
                        for k in range(model):
                            at_query[k] = given_query[index, k]
                    else:
                        s0, s1, s2, s3 = query(s0, s1, s2, s3, at_query, beta, noise[r, 1], root[r], mean[r], signal[r])
                    for h in range(heads):
                        for k in range(model):
                            coefs[h, k] = f4(0)
                            for j in range(dim):
                                coefs[h, k] += KQ[h, k, j] * at_query[j]
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
                for h in range(heads):
                    leave(thread, index < batch, h, at_query, error, squares, sums, products, left)
                    grid.syncthreads()
                    add_up(thread, left, partial)
                    grid.syncthreads()
                    for entry in range(thread, entries, threads):
                        for part in range(parts):
                            gradient[h, entry] += partial[part, entry]
                grid.syncthreads()

            unfold(thread, w, g, gradient, scales[r])
            if thread == 0:
                losses[r] += f8(gradient[0, entries - 1]) / (f8(batch) * f8(outputs))
                rates(settings[r], powers[r], found)
            grid.syncthreads()
            if not given:
                update(thread, step, w, g, m1, m2, settings[r], found)
            grid.syncthreads()
        if thread == 0 and last > now[r]:
            now[r] = last

    return run


def _reduction(shape: Shape) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Of a shape: `leave`, what a thread's prompt adds to a head's gradient, and `add_up`, over all of the block's.

    The rows of what is left: the side of KQ's gradient whose outer product with x_q it is, OV's gradient, the squared
    error, x_q.
    """
    dim, outputs, model = shape.dim, shape.outputs, shape.model
    entries, parts, threads = shape.entries, shape.parts, shape.threads
    of_KQ, of_OV = model * dim, outputs * model  # entries

    @inner
    def leave(thread, there, h, at_query, error, squares, sums, products, left):
        """Of a thread without a prompt, whose error is zero, zeros."""
        for k in range(model):
            value = f4(0)
            for n in range(outputs):
                value += error[n] * products[h, n, k]
                left[model + n * model + k, thread] = error[n] * sums[h, k]
            left[k, thread] = value
        if h == 0:
            left[model + of_OV, thread] = squares
            for j in range(dim):
                left[model + of_OV + 1 + j, thread] = at_query[j] if there else f4(0)

    @inner
    def add_up(thread, left, partial):
        """Every `parts`-th prompt, beginning with each: of KQ products with x_q, of all else what was left."""
        for job in range(thread, entries * parts, threads):
            part, entry = job // entries, job % entries
            value, i = f4(0), u4(part)  # an index without a sign need not be told from one that counts from the end
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

    return leave, add_up
