"""The query-row pass: what a model predicts, without the positions and hooks that the prediction does not need.

One head of one layer adds OV · Z · softmax(Zᵀ KQ z_q) to the query's column (arXiv 2503.12734, section 2; other ways
for scores to become weights are in `activations`), with the paper's KQ (rows: key, columns: query, score scale folded
in) and OV (rows: output, columns: input).  Training and analysis use this pass; `ICLTransformer.forward` is the hooked
one, and a test holds the two together.  A batch of B prompts costs about 4·B·H·L·D multiply-adds here, against L times
as many for the full pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from icl_interp.activations import NEAR_ZERO, activation
from icl_interp.config import Mask

# From scores to weights; the second argument says which keys are allowed, None standing for all.
Weigh = Callable[[Tensor, Tensor | None], Tensor]


def fold(
    W_Q: Float[Tensor, "*layers heads d_model d_head"],
    W_K: Float[Tensor, "*layers heads d_model d_head"],
    W_V: Float[Tensor, "*layers heads d_model d_head"],
    W_O: Float[Tensor, "*layers heads d_head d_model"],
    score_scale: float,
) -> tuple[Float[Tensor, "*layers heads d_model d_model"], Float[Tensor, "*layers heads d_model d_model"]]:
    """Each head's (KQ, OV) in the paper's convention, from weights in TransformerLens's."""
    return W_K @ W_Q.mT / score_scale, (W_V @ W_O).mT


def softmax_weights(
    scores: Float[Tensor, "... queries keys"], allowed: Bool[Tensor, "... queries keys"] | None = None
) -> Float[Tensor, "... queries keys"]:
    """Softmax over the allowed keys; a row that may attend to nothing gets zeros, not NaN."""
    if allowed is None:
        return torch.softmax(scores, dim=-1)
    weights = torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
    return weights.masked_fill(~allowed.any(-1, keepdim=True), 0.0)


def weighing(name: str, scale: float = 1.0) -> Weigh:
    """How scores become weights under an activation: the one place where they do.

    Of a normalised one, a row whose denominator is nearer to zero than `activations.NEAR_ZERO` is NaN throughout: what
    follows from it has no meaning, and must not look as if it had.

    Raises:
        ConfigError: an activation that is not known.
    """
    f = activation(name)
    if f.name == "softmax":
        return softmax_weights

    def weigh(scores: Tensor, allowed: Tensor | None = None) -> Tensor:
        if allowed is None:
            allowed = torch.ones_like(scores, dtype=torch.bool)
        # What is not allowed may be −∞ already, which functions other than exp do not take to zero.
        values = f.function(scale * scores.masked_fill(~allowed, 0.0)).masked_fill(~allowed, 0.0)
        if not f.normalised:
            return values
        total, count = values.sum(-1, keepdim=True), allowed.sum(-1, keepdim=True)
        return values / total.masked_fill(near_zero(total, count, f.at_zero), torch.nan).masked_fill(count == 0, 1.0)

    return weigh


def near_zero(total: Tensor, count: Tensor | int, at_zero: float) -> Bool[Tensor, "*shape"]:
    """Where a denominator Σ f over `count` keys is too near zero to divide by."""
    return total.abs() < NEAR_ZERO * abs(at_zero) * count


def allowed_keys(length: int, mask: Mask, device: torch.device | None = None) -> Bool[Tensor, "positions positions"]:
    """Which of the L+1 positions (columns) each position (row) attends to; the query, the last, is never a key."""
    allowed = torch.ones(length + 1, length + 1, dtype=torch.bool, device=device)
    if mask == "strict_causal":
        allowed = allowed.tril(-1)
    allowed[:, -1] = False
    return allowed


def head_outputs(
    KQ: Float[Tensor, "heads d_model d_model"],
    OV: Float[Tensor, "heads out d_model"],
    queries: Float[Tensor, "batch queries d_model"],
    keys: Float[Tensor, "batch keys d_model"],
    allowed: Bool[Tensor, "queries keys"] | None = None,
    weigh: Weigh = softmax_weights,
) -> Float[Tensor, "batch queries heads out"]:
    """What each head adds to each query.  Keep only the rows of OV that are wanted: `out` is whatever they are."""
    # einsum leaves prompts innermost; products of many small matrices that are laid out so take several times as long.
    asks = einsum(KQ, queries, "head key query, batch q query -> batch head q key").contiguous()
    scores = einsum(asks, keys, "batch head q d, batch k d -> batch head q k")
    read = einsum(weigh(scores, allowed), keys, "batch head q k, batch k d -> batch q head d")
    return einsum(OV, read, "head out d, batch q head d -> batch q head out")


def query_row(
    KQ: Float[Tensor, "layers heads d_model d_model"],
    OV: Float[Tensor, "layers heads d_model d_model"],
    z: Float[Tensor, "batch positions d_model"],
    n_outputs: int,
    mask: Mask = "demonstrations",
    weigh: Weigh = softmax_weights,
) -> Float[Tensor, "batch heads outputs"]:
    """Each last-layer head's contribution to the prediction at the query.

    With one layer their sum is the prediction.  In a deeper model earlier layers run over all positions, and what they
    left in the query's response coordinates is to be added: see `predict`.
    """
    return _query_row(KQ, OV, z, n_outputs, mask, weigh)[1]


def predict(
    KQ: Float[Tensor, "layers heads d_model d_model"],
    OV: Float[Tensor, "layers heads d_model d_model"],
    z: Float[Tensor, "batch positions d_model"],
    n_outputs: int,
    mask: Mask = "demonstrations",
    weigh: Weigh = softmax_weights,
) -> Float[Tensor, "batch outputs"]:
    """ŷ_q: the query's response coordinates after the last layer."""
    before, added = _query_row(KQ, OV, z, n_outputs, mask, weigh)
    return before + added.sum(1)


def _query_row(KQ: Tensor, OV: Tensor, z: Tensor, n_outputs: int, mask: Mask, weigh: Weigh) -> tuple[Tensor, Tensor]:
    if len(KQ) > 1:
        allowed = allowed_keys(z.shape[1] - 1, mask, z.device)
        for kq, ov in zip(KQ[:-1], OV[:-1], strict=True):
            z = z + head_outputs(kq, ov, z, z, allowed, weigh).sum(2)
    query, demonstrations = z[:, -1:], z[:, :-1]
    added = head_outputs(KQ[-1], OV[-1][:, -n_outputs:], query, demonstrations, weigh=weigh)
    return query[:, 0, -n_outputs:], added[:, 0]
