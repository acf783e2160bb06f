"""From weights to what a step sees of them, back to their gradient, and the optimiser's update."""

from __future__ import annotations

import math

from icl_interp.training.compiled.compiler import compiled, f4, summing, vectorise

ADAM, ADAMW, SGD = 0, 1, 2


@summing
def fold(W_Q, W_K, W_V, W_O, KQ, OV, dim, outputs, width, scale):
    """One head as the query sees it: KQ = scale · W_K W_Qᵀ (model, dim), OV = (W_V W_O)ᵀ (outputs, model)."""
    vectorise()
    model, factor = dim + outputs, f4(scale)
    for k in range(model):
        keys, values = W_K[k * width :], W_V[k * width :]
        for j in range(dim):
            queries, total = W_Q[j * width :], f4(0)
            for m in range(width):
                total += keys[m] * queries[m]
            KQ[k, j] = total * factor
        for n in range(outputs):
            total = f4(0)
            for m in range(width):
                total += values[m] * W_O[m * model + dim + n]
            OV[n, k] = total


@compiled
def unfold(W_Q, W_K, W_V, W_O, G_Q, G_K, G_V, G_O, g_KQ, g_OV, dim, outputs, width, scale):
    """The chain rule back through `fold`; zero where nothing was read."""
    vectorise()
    model, factor = dim + outputs, f4(scale)
    for i in range(model * width):
        G_Q[i] = G_K[i] = G_V[i] = G_O[i] = f4(0)
    for k in range(model):
        keys, values, to_keys, to_values = W_K[k * width :], W_V[k * width :], G_K[k * width :], G_V[k * width :]
        for j in range(dim):
            queries, to_queries, g = W_Q[j * width :], G_Q[j * width :], g_KQ[k, j] * factor
            for m in range(width):
                to_queries[m] += g * keys[m]
                to_keys[m] += g * queries[m]
        for n in range(outputs):
            g = g_OV[n, k]
            for m in range(width):
                to_values[m] += g * W_O[m * model + dim + n]
                G_O[m * model + dim + n] += g * values[m]


@compiled
def update(kind, weights, grad, first, second, settings, t):
    """torch's Adam, AdamW, or SGD (no dampening, no Nesterov) for one run; `t` counts from 1."""
    vectorise()
    lr, decay, beta_1, beta_2, momentum = settings[0], settings[1], settings[2], settings[3], settings[4]
    if kind == SGD:
        keep = f4(momentum) if t > 1 else f4(0)
        for i in range(weights.size):
            first[i] = keep * first[i] + (grad[i] + f4(decay) * weights[i])
            weights[i] -= f4(lr) * first[i]
        return
    rate, root = f4(lr / (1 - beta_1**t)), f4(1 / math.sqrt(1 - beta_2**t))
    shrink = f4(1 - lr * decay) if kind == ADAMW else f4(1)
    couple = f4(decay) if kind == ADAM else f4(0)
    for i in range(weights.size):
        g = grad[i] + couple * weights[i]
        first[i] += f4(1 - beta_1) * (g - first[i])
        second[i] = f4(beta_2) * second[i] + f4(1 - beta_2) * g * g
        weights[i] = shrink * weights[i] - rate * first[i] / (f4(math.sqrt(second[i])) * root + f4(1e-8))
