"""Loss and gradient of a model at a batch of prompts.

One layer goes the short way, with a backward pass written by hand: each head's KQ is folded into one matrix applied to
the query and its OV into N rows, so that a step touches the prompt in four batched matrix products and never builds the
L+1 positions that the loss does not see.  Deeper models go through autograd of the query-row pass.  Both agree with
float64 autograd of the plain module (a test says to what error).
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from icl_interp.attention import fold, predict
from icl_interp.config import ModelConfig
from icl_interp.tasks import Prompt
from icl_interp.weights import Weights


def loss_and_grad(weights: Weights, config: ModelConfig, prompt: Prompt) -> tuple[Float[Tensor, ""], Weights]:
    """Mean squared error at the query, over prompts and outputs, and its gradient for each of the four weights."""
    if config.n_layers == 1:
        return _one_layer(weights, config, prompt)
    return _autograd(weights, config, prompt)


def loss(weights: Weights, config: ModelConfig, prompt: Prompt) -> Float[Tensor, ""]:
    """Mean squared error at the query, over prompts and outputs."""
    KQ, OV = fold(weights["W_Q"], weights["W_K"], weights["W_V"], weights["W_O"], config.score_scale)
    prediction = predict(KQ, OV, prompt.z, config.n_outputs, config.mask, config.activation)
    return (prediction - prompt.y_q).square().mean()


def _autograd(weights: Weights, config: ModelConfig, prompt: Prompt) -> tuple[Tensor, Weights]:
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad():
        value = loss(leaves, config, prompt)
        grads = torch.autograd.grad(value, list(leaves.values()))
    return value.detach(), dict(zip(leaves, grads, strict=True))


def _one_layer(weights: Weights, config: ModelConfig, prompt: Prompt) -> tuple[Tensor, Weights]:
    """Softmax attention at the query row: chain rule through KQ = W_K W_Qᵀ/scale and OV = (W_V W_O)ᵀ.

    The query's response coordinates are zero, so only the first d rows of W_Q are asked anything; only the last N
    columns of W_O are read.  The gradient is exactly zero elsewhere.
    """
    d, scale = config.dim, config.score_scale
    W_Q, W_K, W_V, W_O = (weights[name][0] for name in ("W_Q", "W_K", "W_V", "W_O"))
    W_Q, W_O = W_Q[:, :d], W_O[:, :, d:]
    value, g_KQ, g_OV = _folded(W_K @ W_Q.mT / scale, (W_V @ W_O).mT, prompt)

    grads = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    torch.matmul(g_KQ.mT / scale, W_K, out=grads["W_Q"][0, :, :d])
    torch.matmul(g_KQ / scale, W_Q, out=grads["W_K"][0])
    torch.matmul(g_OV.mT, W_O.mT, out=grads["W_V"][0])
    torch.matmul(W_V.mT, g_OV.mT, out=grads["W_O"][0, :, :, d:])
    return value, grads


def _folded(
    KQ: Float[Tensor, "heads d_model dim"], OV: Float[Tensor, "heads outputs d_model"], prompt: Prompt
) -> tuple[Float[Tensor, ""], Float[Tensor, "heads d_model dim"], Float[Tensor, "heads outputs d_model"]]:
    """Loss and its gradient for the folded matrices.

    With p = softmax(Z KQ x_q), c = Zᵀp and the error e, ∂OV = Σ_b e c and ∂KQ = Σ_b Σ_ℓ p_ℓ (u_ℓ − Σ p u) z_ℓ x_qᵀ
    where u_ℓ = eᵀ OV z_ℓ.
    """
    heads, d_model, _ = KQ.shape
    z, x_q = prompt.demonstrations, prompt.x_q  # (b, ℓ, D), (b, d)
    asks = rearrange(x_q @ rearrange(KQ, "h k q -> q (h k)"), "b (h k) -> b h k", k=d_model)
    p = torch.softmax(asks @ z.mT, dim=-1)  # (b, h, ℓ)
    read = p @ z  # (b, h, D)
    error = einsum(read, OV, "b h k, h n k -> b n") - prompt.y_q
    value = error.square().mean()
    error = error * (2 / error.numel())

    g_OV = einsum(error, read, "b n, b h k -> h n k")
    weighted = p * (einsum(error, OV, "b n, h n k -> b h k") @ z.mT)
    g_scores = weighted @ z - weighted.sum(-1, keepdim=True) * read  # Σ_ℓ ∂score_ℓ z_ℓ: (b, h, D)
    g_KQ = rearrange(rearrange(g_scores, "b h k -> (h k) b") @ x_q, "(h k) q -> h k q", h=heads)
    return value, g_KQ, g_OV
