"""Losses and gradients of a population: runs of one shape, each at a batch of prompts.

One layer goes the short way, with a backward pass written by hand: each head's KQ is folded into one matrix applied to
the query and its OV into N rows, so that a step touches the prompts in four batched matrix products over *columns* (the
heads of all runs that see the same prompts) and never builds the L+1 positions that the loss does not see.  Deeper
models, and those with more than heads, go through autograd of `passes`, one run after another.  Both agree with float64
autograd of the plain module (a test says to what error).

A matrix product may round differently when it is a column wider.  Columns therefore come in blocks of a given width,
the last filled up with runs of zero weights, and prompts in chunks of a given length: no product's shape depends on the
population.  (A column's place in its block does; it has been seen to matter, in the last bit, with MKL's AVX2 kernels
and on AMD's processors, not with its AVX-512 ones on Intel's.)  That bounds the memory too, and keeps a block in the
cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from icl_interp.activations import Activation, activation
from icl_interp.attention import near_zero
from icl_interp.config import ModelConfig
from icl_interp.passes import predict
from icl_interp.tasks import Prompt
from icl_interp.training.prompts import Batches
from icl_interp.weights import Weights, weight_shapes

POSITIONS = 10_240  # of a chunk: 256 prompts of length 40, so that 32 columns of scores take 1.3 MB
SCORES = 2**28  # of a chunk where all columns are one block: 1 GB
ALIGNED = 16  # a row is filled up to whole vectors, lest its place decide how the optimiser rounds


def loss(weights: Weights, config: ModelConfig, prompt: Prompt) -> Float[Tensor, ""]:
    """Mean squared error at the query, over prompts and outputs."""
    return (predict(weights, config, prompt.z) - prompt.y_q).square().mean()


class Population:
    """Weights and gradients of equally many runs on each of some streams of prompts, in rows of numbers.

    A row holds a head of a model of one layer, or all of another model.  The runs of a stream are filled up to whole
    blocks, with weights and gradients of zero.

    Args:
        config: of every run.
        weights: to start from, for each stream and each of its runs.
        batch, length: of the prompts of a step.
        block: how many runs of one stream go through a product at once; None for all runs of all streams.
    """

    rows: Float[Tensor, "streams filled *heads numbers"]
    grads: Float[Tensor, "streams filled *heads numbers"]

    def __init__(
        self,
        config: ModelConfig,
        weights: Sequence[Sequence[Weights]],
        batch: int,
        length: int,
        block: int | None = 1,
    ):
        self._config, self._runs = config, len(weights[0])
        rows = torch.stack([torch.stack([_pack(each, config) for each in stream]) for stream in weights])
        self.rows = torch.nn.functional.pad(rows, (0, 0) * (rows.ndim - 2) + (0, -self._runs % (block or 1)))
        self.grads = torch.zeros_like(self.rows)
        self._one_layer = _OneLayer(config, self.rows, self.grads, batch, length, block) if config.plain else None

    def descend(self, streams: Sequence[Batches]) -> Float[Tensor, "streams filled"]:
        """Mean squared errors at the next prompts of each stream, over prompts and outputs; gradients to `grads`."""
        return self._autograd(streams) if self._one_layer is None else self._one_layer(streams)

    def _autograd(self, streams: Sequence[Batches]) -> Tensor:
        losses = torch.zeros_like(self.rows[..., 0])
        for stream, source in enumerate(streams):
            prompt = source.prompt()
            for run in range(self._runs):
                leaves = {
                    name: weight.detach().requires_grad_()
                    for name, weight in unpack(self.rows[stream, run], self._config).items()
                }
                with torch.enable_grad():
                    value = loss(leaves, self._config, prompt)
                    grads = torch.autograd.grad(value, list(leaves.values()))
                for view, grad in zip(unpack(self.grads[stream, run], self._config).values(), grads, strict=True):
                    view.copy_(grad)
                losses[stream, run] = value.detach()
        return losses


class _OneLayer:
    """Attention at the query row, by the chain rule through KQ = W_K W_Qᵀ/scale and VO = W_V W_O.

    With p = f(a)/F of the scores a = Z KQ x_q, F = Σ f(a), c = Zᵀp, the error e and u = Z VO e, the gradients are
    Σ_b c eᵀ for VO and, for KQ, Σ_b Σ_ℓ f′(a_ℓ)/F (u_ℓ − s) z_ℓ x_qᵀ where s = Σ p u = cᵀ VO e; without normalisation
    F is 1, and s not subtracted.  A one at the end of each z_ℓ makes products with Z give F as well, and subtract s.

    The query's response coordinates are zero, so only the first d rows of W_Q are asked anything; only the last N
    columns of W_O are read.  The gradient is exactly zero elsewhere.

    What is large is allocated once, and cut into blocks and chunks once.
    """

    def __init__(self, config: ModelConfig, rows: Tensor, grads: Tensor, batch: int, length: int, block: int | None):
        d, D, N, heads = config.dim, config.d_model, config.n_outputs, config.n_heads
        streams, filled = rows.shape[:2]
        W, g = (unpack(each.flatten(0, 3), config) for each in (rows, grads))  # (columns, …)
        self._weights = W["W_Q"][:, :d], W["W_K"], W["W_V"], W["W_O"][:, :, d:]
        self._grads = g["W_Q"][:, :d], g["W_K"], g["W_V"], g["W_O"][:, :, d:]
        self._activation = f = activation(config.activation)
        self._factor = config.activation_scale / config.score_scale
        self._base = math.log2(math.e) if f.name == "softmax" else 1.0
        columns = streams * filled * heads
        self._KQ, self._VO = rows.new_zeros(columns, D, d), rows.new_zeros(columns, D + 1, N)  # one row meets the ones
        self._sums = rows.new_zeros(self._KQ.numel() + self._VO.numel() + streams * filled)
        g_KQ, g_VO, losses = self._sums.split([self._KQ.numel(), self._VO.numel(), streams * filled])
        self._g_KQ, self._g_VO = g_KQ.view_as(self._KQ), g_VO.view_as(self._VO)
        self._losses = losses.view(streams, filled)

        self._at_once, runs = (1, block) if block else (streams, filled)
        self._columns = runs * heads
        self._positions = POSITIONS if block else SCORES // (streams * self._columns)
        by_run = [t.view(streams, filled, heads, *t.shape[1:]) for t in (self._KQ, self._g_KQ, self._VO, self._g_VO)]
        self._blocks = [  # for each of the streams that go at once
            [
                (
                    *(t[at, start : start + runs].flatten(1, 3) for t in by_run[:2]),
                    *(t[at, start : start + runs].flatten(0, 2) for t in by_run[2:]),
                    self._losses[at, start : start + runs],
                )
                for start in range(0, filled, runs)
            ]
            for at in (slice(start, start + self._at_once) for start in range(0, streams, self._at_once))
        ]
        self._allocate(batch, length)

    def __call__(self, streams: Sequence[Batches]) -> Tensor:
        W_Q, W_K, W_V, W_O = self._weights
        torch.baddbmm(self._KQ, W_K, W_Q.mT, beta=0, alpha=self._base * self._factor, out=self._KQ)
        self._VO[:, :-1].copy_(torch.bmm(W_V, W_O))
        self._sums.zero_()
        for i, blocks in enumerate(self._blocks):
            for s, stream in enumerate(streams[i * self._at_once : (i + 1) * self._at_once]):
                stream.fill(self._z[:, s], self._x_q[s], self._y_q[s])
            for chunk, block in itertools.product(self._chunks, blocks):
                _add(self._activation, *block, *chunk)

        count = self._y_q[0].numel()
        g_VO, twice = self._g_VO[:, :-1], 2 / count
        factors = (self._g_KQ.mT, W_K, twice * self._factor), (self._g_KQ, W_Q, twice * self._factor)
        factors += (g_VO, W_O.mT, twice), (W_V.mT, g_VO, twice)
        for grad, (left, right, factor) in zip(self._grads, factors, strict=True):
            torch.baddbmm(grad, left, right, beta=0, alpha=factor, out=grad)
        return self._losses.div_(count)

    def _allocate(self, batch: int, length: int) -> None:
        _, D, d = self._KQ.shape
        self._z = self._KQ.new_ones(batch, self._at_once, length, D + 1)
        self._x_q, self._y_q = (self._z.new_empty(self._at_once, batch, size) for size in (d, D - d))
        step = min(batch, max(1, self._positions // length))
        scores = self._z.new_empty(2, step * self._at_once, self._columns, length)
        self._chunks = []
        for at in (slice(start, start + step) for start in range(0, batch, step)):
            z = self._z[at].flatten(0, 1)
            self._chunks.append((z, z[:, :, :D], self._x_q[:, at], self._y_q[:, None, at], *scores[:, : len(z)]))


def _add(
    f: Activation,
    KQ: Float[Tensor, "streams columns_D dim"],
    g_KQ: Float[Tensor, "streams columns_D dim"],
    VO: Float[Tensor, "all_columns D_1 outputs"],
    g_VO: Float[Tensor, "all_columns D_1 outputs"],
    losses: Float[Tensor, "streams runs"],
    z: Float[Tensor, "batch_streams length D_1"],
    z_only: Float[Tensor, "batch_streams length D"],
    x_q: Float[Tensor, "streams batch dim"],
    y_q: Float[Tensor, "streams 1 batch outputs"],
    scores: Float[Tensor, "batch_streams columns length"],
    g_scores: Float[Tensor, "batch_streams columns length"],
) -> None:
    """Add the sums over a chunk of prompts of e² and, halved, its gradients for a block; KQ of softmax is to base 2."""
    (streams, _, batch, N), runs, D = y_q.shape, losses.shape[1], z_only.shape[2]

    asks = torch.bmm(x_q, KQ.mT).transpose(0, 1).reshape(len(z), -1, D)
    torch.bmm(asks, z_only.mT, out=scores)
    if f.name == "softmax":  # exp takes up to 40 times as long, where it underflows.
        weights = slopes = scores.sub_(scores.amax(-1, keepdim=True)).exp2_()
    else:
        weights, slopes = f.function(scores), f.derivative(scores)
    read = torch.bmm(weights, z).view(batch, -1, D + 1).transpose(0, 1)  # (all columns, batch, D+1)
    norm = _denominator(f, read[:, :, D:], z.shape[1]).reciprocal_()

    out = torch.bmm(read, VO).mul_(norm)  # each head's part of the prediction: (all columns, batch, outputs)
    error = out.view(streams, runs, -1, batch, N).sum(2).sub_(y_q)  # (streams, runs, batch, outputs)
    losses += error.square().sum((2, 3))
    error = (error[:, :, None] * norm.view(streams, runs, -1, batch, 1)).flatten(0, 2)  # in the shape of `out`
    g_VO.baddbmm_(read.mT, error)

    back = torch.bmm(error, VO.mT)
    torch.sum(out.mul_(error), dim=2, out=back[:, :, D]).mul_(-1 if f.normalised else 0)
    torch.bmm(back.transpose(0, 1).reshape(len(z), -1, D + 1), z.mT, out=g_scores).mul_(slopes)
    g_asks = torch.bmm(g_scores, z_only)
    g_KQ.baddbmm_(g_asks.view(batch, streams, -1).permute(1, 2, 0), x_q)


def _denominator(f: Activation, total: Tensor, length: int) -> Tensor:
    """A copy of Σ f, NaN where it is too near zero; ones without normalisation."""
    if not f.normalised:
        return torch.ones_like(total)
    if f.name == "softmax":
        return total.contiguous()
    return total.masked_fill(near_zero(total, length, f.at_zero), torch.nan)


def _pack(weights: Weights, config: ModelConfig) -> Float[Tensor, "*heads numbers"]:
    axes = 2 if config.plain else 0
    row = torch.cat([weights[name].flatten(axes) for name in weight_shapes(config)], dim=-1)
    return torch.nn.functional.pad(row, (0, -row.shape[-1] % ALIGNED))


def unpack(rows: Float[Tensor, "*rows numbers"], config: ModelConfig) -> Weights:
    """Views of the tensors, with the axes of `rows` first."""
    axes = 2 if config.plain else 0
    shapes = {name: shape[axes:] for name, shape in weight_shapes(config).items()}
    sizes = [math.prod(shape) for shape in shapes.values()]
    parts = rows[..., : sum(sizes)].split(sizes, dim=-1)
    return {name: part.unflatten(-1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
