"""Models of any depth with heads taken away, by the pass without hooks: what that costs, and how many heads are in use.

One head at a time its output, at all positions and before it is summed, becomes zero or what else it is to be; or a
layer keeps but one of its heads.  These are the ablations of `icl_interp.interventions`, where a head of layer l costs
the layers after l alone: about H·(n_layers − 1)/2 passes of the whole model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float
from scipy import special
from torch import Tensor

from icl_interp.circuits import defined
from icl_interp.config import ModelConfig
from icl_interp.estimates import LEVEL, Estimate, propagate
from icl_interp.passes import bounds, head_results, predict_from, read_in, residuals
from icl_interp.tasks import Prompt
from icl_interp.weights import WEIGHT_NAMES, Weights

Z = NormalDist().inv_cdf((1 + LEVEL) / 2)  # an interval's half-width in standard errors
PIECE_NUMBERS = 1_000_000  # of what a layer's heads add, held at once: few, so that they stay near the processor

# What heads add, layer by layer; axes that are the same throughout may be of length one, and prompts are if they agree.
Results = Sequence[Float[Tensor, "batch positions heads d_model"]]


@dataclass(frozen=True, eq=False)
class Model:
    """A model's weights in float64, and what is asked of them here.

    Args:
        weights, config: the model's.
        energy: E y² of all prompts, where predictions are to be clipped to `passes.bounds`; None if they are not.
    """

    weights: Weights
    config: ModelConfig
    energy: float | None = None

    def keeping(self, heads: Sequence[int]) -> Model:
        """The same model with this one head in each layer, all others gone."""
        layers = torch.arange(self.config.n_layers)
        alone = {name: self.weights[name][layers, list(heads)][:, None] for name in WEIGHT_NAMES}
        return dataclasses.replace(
            self, weights={**self.weights, **alone}, config=dataclasses.replace(self.config, n_heads=1)
        )

    def results(self, prompt: Prompt) -> Results:
        """What each head adds, layer by layer; in the last one at the query only."""
        streams, layers = residuals(self.weights, self.config, prompt.z), range(self.config.n_layers)
        return [
            head_results(self.weights, self.config, stream, at) for at, stream in zip(layers, streams, strict=False)
        ]

    def errors_from(
        self, stream: Float[Tensor, "batch positions_or_one d_model"], layer: int, prompt: Prompt
    ) -> Float[Tensor, "batch"]:
        """Squared errors, means over responses, where `stream` is the residual stream before `layer`.

        Raises:
            NumericsError: the denominator of an activation is next to zero at some prompt.
        """
        prediction = defined(predict_from(self.weights, self.config, stream, layer), prompt, self.config.activation)
        if self.energy is not None:
            most = bounds(prompt, self.energy)
            prediction = prediction.clamp(-most, most)
        return (prediction - prompt.y_q).square().mean(-1)

    def pieces(self, prompts: Iterable[Prompt]) -> Iterator[Prompt]:
        """The same prompts, in pieces that one layer's results have room for."""
        for chunk in prompts:
            numbers = (chunk.length + 1) * self.config.n_heads * self.config.d_model
            size = max(1, PIECE_NUMBERS // numbers)
            yield from (chunk[start : start + size] for start in range(0, len(chunk), size))


def nothing(model: Model) -> Results:
    """What heads add after zero ablation."""
    like = model.weights[WEIGHT_NAMES[0]]
    return [torch.zeros(1, 1, model.config.n_heads, 1).to(like)] * model.config.n_layers


def ablated_errors(
    model: Model, prompt: Prompt, instead: Results
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "layers heads batch"]]:
    """Squared errors of the model as it is, and with the output of one head at a time replaced."""
    config, stream = model.config, read_in(model.weights, model.config, prompt.z)
    ablated: list[Tensor | None] = []
    for layer in range(config.n_layers):
        own = head_results(model.weights, config, stream, layer)
        stream = stream[:, -own.shape[1] :] + own.sum(2)  # past the last layer there is the query alone
        changes = (instead[layer] - own).unbind(2)
        ablated += [model.errors_from(stream + each, layer + 1, prompt) if each.any() else None for each in changes]
    errors = model.errors_from(stream, config.n_layers, prompt)
    each = torch.stack([errors if of_head is None else of_head for of_head in ablated])
    return errors, each.reshape(config.n_layers, config.n_heads, -1)


def kept_errors(
    model: Model, prompts: Iterable[Prompt], dominant: Sequence[int]
) -> tuple[Float[np.ndarray, "prompts"], Float[np.ndarray, "3 prompts"]]:
    """y_q², and squared errors of the model, of the same with one dominant head in each layer but the first, and of
    the same with one in each layer, prompt by prompt.
    """
    alone = model.keeping(dominant)
    squares, errors = [], []
    for prompt in model.pieces(prompts):
        streams = list(residuals(model.weights, model.config, prompt.z))
        whole = model.errors_from(streams[-1], model.config.n_layers, prompt)
        pruned, single = (alone.errors_from(streams[layer], layer, prompt) for layer in (1, 0))
        squares.append(prompt.y_q.square().mean(-1))
        errors.append(torch.stack([whole, pruned, single]))
    return torch.cat(squares).cpu().numpy(), torch.cat(errors, -1).cpu().numpy()


def effective_number(worth: Float[np.ndarray, "*draws heads"]) -> Float[np.ndarray, "*draws"]:
    """exp(−Σ p_h log p_h) of the shares p_h ∝ max(worth, 0); 0 where nothing is worth anything."""
    worth = np.maximum(worth, 0.0)
    total = worth.sum(-1, keepdims=True)
    shares = worth / np.where(total > 0, total, 1.0)
    return np.where(total[..., 0] > 0, np.exp(special.entr(shares).sum(-1)), 0.0)


def heads_in_use(changes: Float[np.ndarray, "heads prompts"], floor: float, seed: int = 0) -> Estimate:
    """The effective number of heads by the means of `changes` over prompts, whose errors depend on each other.

    It is 0 where every head is sure to be worth `floor` at most.
    """
    heads, n = changes.shape
    mean, covariance = changes.mean(1), np.cov(changes).reshape(heads, heads) / n if n > 1 else np.full((1, 1), np.nan)
    if not np.isfinite(covariance).all():
        return Estimate(float(effective_number(mean)), -np.inf, np.inf, "prompts")
    if (mean + Z * np.sqrt(covariance.diagonal())).max() <= floor:
        return Estimate(0.0, 0.0, 0.0, "prompts")
    variances, directions = np.linalg.eigh(covariance)
    errors = np.sqrt(variances.clip(0.0)) * directions  # times independent normal numbers: errors of the means
    found = propagate(
        lambda normal: effective_number(mean + normal @ errors.T),
        (np.zeros(heads), np.full(heads, Z)),
        seed=seed,
        batched=True,
        covers="prompts",
    )
    return Estimate(found.value, max(found.low, min(found.value, 1.0)), min(found.high, float(heads)), "prompts")
