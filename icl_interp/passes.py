"""The pass of any model, from its weights: without hooks, and without the positions that the prediction does not need.

A model with scratch, a read-in, a read-out or LayerNorm, and any of several layers, is trained and read by this pass;
one layer of heads on a prompt's own columns has the shorter way of `attention`.  Heads stay factored, for those of a
deep model are narrow: a batch of B prompts costs about 4·B·H·L·D·d_head multiply-adds a layer.  Linear attention under
the mask "demonstrations" never builds a score, for Q (Kᵀ V) is (Q Kᵀ) V, and of prompts longer than the stream is wide
it uses no more than XᵀX.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from icl_interp.attention import allowed_keys, fold, weighing
from icl_interp.attention import predict as predict_columns
from icl_interp.config import ModelConfig
from icl_interp.tasks import Prompt
from icl_interp.weights import WEIGHT_NAMES, Weights

LN_EPS = 1e-5
AT_ONCE = 256  # prompts: room for what heads make of many more is fetched anew each time, and that takes as long again
BOUND = 4.0  # root mean squares of labels


def predict(
    weights: Weights, config: ModelConfig, z: Float[Tensor, "batch positions columns"]
) -> Float[Tensor, "batch outputs"]:
    """ŷ_q, in the dtype of the weights."""
    if config.plain:
        KQ, OV = fold(*(weights[name] for name in WEIGHT_NAMES), score_scale=config.score_scale)
        weigh = weighing(config.activation, config.activation_scale)
        return predict_columns(KQ, OV, z, config.n_outputs, config.mask, weigh)
    return torch.cat([predict_from(weights, config, read_in(weights, config, some), 0) for some in z.split(AT_ONCE)])


def bounds(prompt: Prompt, energy: float) -> Float[Tensor, "batch 1"]:
    """What no response is beyond: `BOUND` root mean squares of labels, the prompt's own and all prompts' together.

    Linear attention is a polynomial of high degree.  The few prompts for which its steps are too long, one in thousands
    or millions, would decide every mean, and no sample would show it.

    Args:
        prompt: whose responses they are.
        energy: E y² of all prompts.
    """
    return BOUND * (prompt.y.square().mean((1, 2)) + energy).sqrt()[:, None]


def predict_from(
    weights: Weights, config: ModelConfig, stream: Float[Tensor, "batch positions_or_one d_model"], layer: int
) -> Float[Tensor, "batch outputs"]:
    """ŷ_q of a residual stream as it stands before `layer`; n_layers is after the last one, where the query will do.

    So a change that was made in one layer costs only the layers after it.
    """
    for at in range(layer, config.n_layers):
        stream = _after(weights, config, stream, at)
    return read_out(weights, config, stream[:, -1])


def residuals(
    weights: Weights, config: ModelConfig, z: Float[Tensor, "batch positions columns"]
) -> Iterator[Float[Tensor, "batch positions_or_one d_model"]]:
    """The residual stream before the first layer and after each; after the last one at the query only."""
    stream = read_in(weights, config, z)
    yield stream
    for layer in range(config.n_layers):
        stream = _after(weights, config, stream, layer)
        yield stream


def read_in(
    weights: Weights, config: ModelConfig, z: Float[Tensor, "batch positions columns"]
) -> Float[Tensor, "batch positions d_model"]:
    """A prompt's columns as the residual stream begins."""
    if config.read_in is not None:
        return z @ weights["W_E"]
    return torch.nn.functional.pad(z, (0, config.scratch))


def read_out(
    weights: Weights, config: ModelConfig, stream: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch outputs"]:
    """The responses as a residual stream ends."""
    return stream @ weights["W_U"] if config.read_out else stream[..., config.dim : config.columns]


def normalised(
    stream: Float[Tensor, "*batch d_model"], w: Float[Tensor, " d_model"], b: Float[Tensor, " d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """LayerNorm: what a layer reads where the config says so."""
    return torch.nn.functional.layer_norm(stream, w.shape, w, b, LN_EPS)


def head_results(
    weights: Weights, config: ModelConfig, stream: Float[Tensor, "batch positions d_model"], layer: int
) -> Float[Tensor, "batch positions_or_one heads d_model"]:
    """What each head of a layer adds to the residual stream; of the last layer at the query only."""
    W = [weights[name][layer] for name in WEIGHT_NAMES]
    values = _values(W, config, *_looking(weights, config, stream, layer))
    return einsum(values, W[3], "batch head pos d_head, head d_head d -> batch pos head d")


def _after(
    weights: Weights, config: ModelConfig, stream: Float[Tensor, "batch positions d_model"], layer: int
) -> Float[Tensor, "batch positions_or_one d_model"]:
    """The residual stream after a layer.  What heads add is summed as it is made: apart it would be H times as much."""
    W = _live(weights, layer)
    asking, keys, allowed = _looking(weights, config, stream, layer)
    if config.activation == "linear" and allowed is None and keys.shape[1] >= keys.shape[2]:
        added = asking @ _map_of(W, keys, config.activation_scale / config.score_scale)
    else:
        values = _values(W, config, asking, keys, allowed)
        added = einsum(values, W[3], "batch head pos d_head, head d_head d -> batch pos d")
    return stream[:, -added.shape[1] :] + added


def _live(weights: Weights, layer: int) -> list[Tensor]:
    """The four matrices of a layer's heads: of those that write anything, unless gradients are wanted of the others."""
    W = [weights[name][layer] for name in WEIGHT_NAMES]
    live = W[3].flatten(1).any(1)
    return W if W[3].requires_grad or live.all() else [matrix[live] for matrix in W]


def _looking(
    weights: Weights, config: ModelConfig, stream: Float[Tensor, "batch positions d_model"], layer: int
) -> tuple[Tensor, Tensor, Bool[Tensor, "queries keys"] | None]:
    """Positions that ask in a layer, those that may be asked, and which of these each may ask if not all."""
    x = normalised(stream, weights["ln_w"][layer], weights["ln_b"][layer]) if config.layer_norm else stream
    last = layer == config.n_layers - 1
    causal = config.mask == "strict_causal" and not last  # the query sees all demonstrations under both masks
    allowed = allowed_keys(x.shape[1] - 1, config.mask, x.device)[:, :-1] if causal else None
    return x[:, -1:] if last else x, x[:, :-1], allowed


def _map_of(
    W: list[Tensor], keys: Float[Tensor, "batch keys d_model"], scale: float
) -> Float[Tensor, "batch d_model d_model"]:
    """Σ_h W_Q W_Kᵀ (XᵀX) W_V W_O of keys X: linear attention is this linear map of what asks, and XᵀX all it sees.

    Where there are more keys than dimensions this takes fewer multiplications than scores or keys times values.
    """
    W_Q, W_K, W_V, W_O = W
    seen = einsum(scale * (keys.mT @ keys), W_V, "batch key d, head d value -> head key batch value")
    read = einsum(W_K, seen, "head key d_head, head key batch value -> head d_head batch value")
    written = einsum(read, W_O, "head d_head batch value, head value d -> head d_head batch d")
    return einsum(W_Q, written, "head query d_head, head d_head batch d -> batch query d")


def _values(
    W: list[Tensor], config: ModelConfig, asking: Tensor, keys: Tensor, allowed: Bool[Tensor, "queries keys"] | None
) -> Float[Tensor, "batch heads positions_or_one d_head"]:
    """What each head of a layer has read, before W_O."""
    W_Q, W_K, W_V, _ = W
    q = _project(asking, W_Q) / config.score_scale
    return _attend(config, q, _project(keys, W_K), _project(keys, W_V), allowed)


def _project(
    x: Float[Tensor, "batch positions d_model"], W: Float[Tensor, "heads d_model d_head"]
) -> Float[Tensor, "batch heads positions d_head"]:
    # In order, for products of many small matrices to be fast.
    return einsum(x, W, "batch pos d_model, head d_model d_head -> batch head pos d_head").contiguous()


def _attend(
    config: ModelConfig, q: Tensor, k: Tensor, v: Tensor, allowed: Bool[Tensor, "queries keys"] | None
) -> Float[Tensor, "batch heads queries d_head"]:
    if config.activation == "linear" and allowed is None:
        return config.activation_scale * (q @ (k.mT @ v))
    weigh = weighing(config.activation, config.activation_scale)
    return weigh(q @ k.mT, allowed) @ v
