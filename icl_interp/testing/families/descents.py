"""Families of deeper models: preprocessed gradient descent, and what lacks a part of it (arXiv 2408.04532).

All but the untrained are `construct_descent`'s, some with a part taken away, so that their algorithm is known; a random
read-in hides half of them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from icl_interp.config import ModelConfig
from icl_interp.records import Run
from icl_interp.tasks import SparseRegression
from icl_interp.testing.construction import construct_descent
from icl_interp.testing.families.members import claims, drawn_family, log_uniform
from icl_interp.testing.known import Known
from icl_interp.weights import initial_weights

LARGEST = 0.005  # perturbation of every weight
FIRST_LAYER = claims("head_utilization", "first_layer_uses_all_heads", "single_head_worse")
LATER_LAYERS = claims("head_utilization", "later_layers_use_one_head", "pruned_as_good")
PREPROCESSED = (
    *claims(
        "layer_algorithm",
        "preprocessed_after_first_layer",
        "follows_preprocessed_descent",
        "nearer_to_preprocessed_than_plain",
    ),
    "algorithm_match.preprocessed_descent",
)
KNOWN = claims("algorithm_match", "known_algorithm", "same_algorithm_elsewhere")
BETTER = claims("algorithm_match", "better_than_ridge", "better_than_descent")


@drawn_family(
    "planted_descent",
    "one head a coordinate that preprocesses, then two steps of gradient descent, weights perturbed by 0.5 % at most",
    holds=(*FIRST_LAYER, *LATER_LAYERS, *PREPROCESSED, *KNOWN),
)
def _planted_descent(rng: np.random.Generator) -> Known:
    size = log_uniform(rng, 0.0002, LARGEST)
    return Known(_descent(rng, draw_sparse(rng), perturbation=size), size)


@drawn_family(
    "planted_denoiser",
    "preprocessed gradient descent on so sparse and so noisy a signal that it does better than ridge",
    holds=("algorithm_match.known_algorithm", "algorithm_match.preprocessed_descent", *BETTER),
)
def _planted_denoiser(rng: np.random.Generator) -> Known:
    """Six short steps: fewer and longer ones diverge on more prompts, these on no more than 1 in 100,000."""
    dim = int(rng.integers(9, 11))
    length = 3 * dim + int(rng.integers(0, 4))
    task = SparseRegression(dim, 1, length, noise_var=round(log_uniform(rng, 5, 7), 3))
    return Known(_descent(rng, task, steps=6, rate=0.02))


@drawn_family(
    "plain_descent",
    "gradient descent on the covariates as they are, one head a layer and the others idle",
    holds=(*LATER_LAYERS, *KNOWN),
    violates=(*FIRST_LAYER, *PREPROCESSED),
    thorough=True,
)
def _plain_descent(rng: np.random.Generator) -> Known:
    heads, steps = int(rng.integers(3, 7)), int(rng.integers(2, 4))
    return Known(_descent(rng, draw_sparse(rng), preprocessed=False, heads=heads, steps=steps))


@drawn_family(
    "shared_steps",
    "preprocessed gradient descent each of whose steps is made by two to four heads, of some of the coordinates each",
    holds=(*FIRST_LAYER, *PREPROCESSED, *KNOWN),
    violates=LATER_LAYERS,
)
def _shared_steps(rng: np.random.Generator) -> Known:
    run = _descent(rng, draw_sparse(rng))
    weights = {name: tensor.clone() for name, tensor in run.weights.items()}
    for layer in range(1, run.model_config.n_layers):
        _share(weights, layer, int(rng.integers(2, 5)), rng)
    return Known(dataclasses.replace(run, weights=weights))


@drawn_family(
    "half_preprocessed",
    "gradient descent on covariates of which half are preprocessed and the others are lost",
    holds=LATER_LAYERS,
    violates=(
        "head_utilization.first_layer_uses_all_heads",
        "layer_algorithm.preprocessed_after_first_layer",
        "layer_algorithm.follows_preprocessed_descent",
        "algorithm_match.known_algorithm",
    ),
)
def _half_preprocessed(rng: np.random.Generator) -> Known:
    run = _descent(rng, draw_sparse(rng))
    W_O = run.weights["W_O"].clone()
    W_O[0, torch.from_numpy(rng.permutation(run.model_config.n_heads)[: run.model_config.n_heads // 2])] = 0
    return Known(dataclasses.replace(run, weights=run.weights | {"W_O": W_O}))


@drawn_family(
    "untrained_deep",
    "models of two to four layers as they are before training, linear or softmax, with and without LayerNorm",
    violates=(*PREPROCESSED, *KNOWN, *BETTER),
)
def _untrained_deep(rng: np.random.Generator) -> Known:
    task = draw_sparse(rng, lengths=(2, 3))
    linear = bool(rng.integers(2))
    config = ModelConfig(
        task.dim,
        n_heads=int(rng.integers(2, 7)),
        n_layers=int(rng.integers(2, 5)),
        activation="linear" if linear else "softmax",
        activation_scale=1 / task.length if linear else 1.0,
        scratch=int(rng.integers(0, 9)),
        read_out=True,
        layer_norm=bool(rng.integers(2)),
    )
    weights = initial_weights(config, torch.Generator().manual_seed(int(rng.integers(2**31))))
    return Known(Run(config, weights, task=task))


def draw_sparse(
    rng: np.random.Generator, *, dims: tuple[int, int] = (4, 6), lengths: tuple[int, int] = (6, 10)
) -> SparseRegression:
    """A sparse regression, by default so long (`lengths`, in d) that two steps of one size descend nearly always."""
    dim = int(rng.integers(dims[0], dims[1] + 1))
    length = int(rng.integers(lengths[0] * dim, lengths[1] * dim + 1))
    return SparseRegression(dim, int(rng.integers(dim // 2, dim + 1)), length, round(log_uniform(rng, 0.05, 0.5), 4))


def _descent(
    rng: np.random.Generator,
    task: SparseRegression,
    *,
    steps: int = 2,
    rate: float | None = None,
    preprocessed: bool = True,
    heads: int | None = None,
    perturbation: float = 0.0,
) -> Run:
    widest = 2 * task.dim + 1  # of the stream
    return construct_descent(
        task,
        steps=steps,
        rate=rate,
        preprocessed=preprocessed,
        n_heads=heads,
        width=int(rng.integers(widest, 2 * widest)) if rng.integers(2) else None,
        perturbation=perturbation,
        seed=int(rng.integers(2**31)),
    )


def _share(weights: dict[str, torch.Tensor], layer: int, heads: int, rng: np.random.Generator) -> None:
    """Divide the coordinates that a layer's one head attends by among several."""
    one = int(weights["W_O"][layer].flatten(1).norm(dim=1).argmax())
    idle = [h for h in range(len(weights["W_O"][layer])) if h != one]
    chosen = [one, *rng.permutation(idle)[: heads - 1]]
    parts = np.array_split(rng.permutation(weights["W_Q"].shape[-1]), heads)
    asks = weights["W_Q"][layer, one].clone()
    for head, part in zip(chosen, parts, strict=True):
        for name in ("W_K", "W_V", "W_O"):
            weights[name][layer, head] = weights[name][layer, one]
        weights["W_Q"][layer, head] = 0
        weights["W_Q"][layer, head][:, part] = asks[:, part]
