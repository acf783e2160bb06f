"""Checkpoints whose truth is known, hidden as well as a trained model would hide it.

The circuits are written down, then factored at random: W_Q and W_K (and W_V and W_O) are only known up to an invertible
matrix between them.  Inert parts, which no prediction sees, are filled with noise: whoever reads a pattern from them
is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from icl_interp import activations
from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.manifold import manifold_mu, optimal_step
from icl_interp.records import Run
from icl_interp.roles import Role, reference_shape
from icl_interp.tasks import LinearRegression
from icl_interp.weights import Weights


@dataclass(frozen=True, eq=False)
class Planted:
    """A run, and what is true of its heads."""

    run: Run
    roles: tuple[Role, ...]
    omega: Float[np.ndarray, "heads"]
    mu: Float[np.ndarray, "heads"]


def plant(
    task: LinearRegression | None = None,
    *,
    roles: Sequence[Role] | None = None,
    gamma: float = 0.13,
    omega: Sequence[float] | None = None,
    mu: Sequence[float] | None = None,
    activation: str = "softmax",
    activation_scale: float = 1.0,
    permute: bool = True,
    inert_noise: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Planted:
    """A one-layer model of ideal heads, (3.1) of arXiv 2503.12734: KQ_11 = ω·G, OV_22 = μ.

    Either `roles`, which puts the model on the solution manifold at `gamma` (4.7): ω = ±γ, each sign sharing ±μ_γ in
    random parts, and two or more mean heads cancelling; or `omega` and `mu`, taken as they are.  Under another
    activation than softmax, for which μ_γ has no formula, the heads' μ make η* of their ω to first order (5.2).

    Args:
        task: None means the paper's main setting.
        roles: "positive", "negative", "dummy" or "mean", one a head.
        gamma: |ω|.
        omega, mu: one number a head.
        activation, activation_scale: how scores become weights (`ModelConfig`).
        permute: put the heads in a random order.
        inert_noise: scale of the numbers in parts that no prediction sees.
        noise: scale of a Gaussian perturbation of the live parts of KQ, relative to γ (or the largest |ω|).
        seed: of everything random.

    Raises:
        ConfigError: neither or both of `roles` and (`omega`, `mu`), other roles than those four, or roles for linear
            attention.
    """
    task = task or LinearRegression(dim=5, length=40, noise_var=0.1)
    rng = np.random.default_rng(seed)
    if (roles is None) == (omega is None or mu is None):
        raise ConfigError("give either roles, or omega and mu")
    if roles is not None:
        w, m = _on_manifold(roles, gamma, _target(task, gamma, activation, activation_scale), rng)
    else:
        w, m = np.array(omega, dtype=float), np.array(mu, dtype=float)
    if w.shape != m.shape or w.ndim != 1 or not len(w):
        raise ConfigError(f"omega and mu must be equally many numbers, got shapes {w.shape} and {m.shape}")
    if permute:
        order = rng.permutation(len(w))
        w, m = w[order], m[order]
    config = ModelConfig(task.dim, n_heads=len(w), activation=activation, activation_scale=activation_scale)
    scale = noise * np.abs(w).max()
    weights = hidden_weights(
        config, w[:, None, None] * reference_shape(task, task.dim), m[:, None], inert_noise, scale, rng
    )
    run = Run(config, weights, task=task, origin=f"planted with seed {seed}")
    return Planted(run, tuple(_role(*pair) for pair in zip(w, m, strict=True)), w, m)


def _target(task: LinearRegression, gamma: float, activation: str, scale: float) -> float:
    """What the positive heads' μ sum to."""
    mu_of, f = manifold_mu(task), activations.activation(activation)
    if mu_of is None:
        raise ConfigError("roles can be planted under isotropic, centred covariates only: give omega and mu")
    if not f.normalised:
        raise ConfigError(f"heads of {activation} attention have no roles: give omega and mu")
    if f.name == "softmax":
        return mu_of(gamma)
    step = optimal_step(task)
    assert step is not None  # as mu_of is not
    return step / (2 * gamma * scale * f.slope)


def _on_manifold(
    roles: Sequence[Role], gamma: float, target: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    unknown = set(roles) - {"positive", "negative", "dummy", "mean"}
    if unknown:
        raise ConfigError(f"roles to plant are 'positive', 'negative', 'dummy' and 'mean', got {sorted(unknown)}")
    names = np.array(roles)
    positive, negative, mean = (np.flatnonzero(names == role) for role in ("positive", "negative", "mean"))
    omega, mu = np.zeros(len(names)), np.zeros(len(names))
    omega[positive], omega[negative] = gamma, -gamma
    for members, total in ((positive, target), (negative, -target), (mean[::2], target), (mean[1::2], -target)):
        parts = rng.uniform(0.5, 1.5, len(members))
        mu[members] = total * parts / parts.sum()
    return omega, mu


def _role(omega: float, mu: float) -> Role:
    if mu == 0:
        return "dummy"
    return "mean" if omega == 0 else "positive" if omega > 0 else "negative"


def hidden_weights(
    config: ModelConfig,
    KQ_11: Float[np.ndarray, "heads dim dim"],
    mu: Float[np.ndarray, "heads outputs"],
    inert_noise: float,
    noise: float,
    rng: np.random.Generator,
) -> Weights:
    """Weights of these circuits, factored at random; noise on the live part of KQ and in all that is inert."""
    d, D, heads = config.dim, config.d_model, config.n_heads
    KQ = inert_noise * rng.standard_normal((heads, D, D))
    OV = inert_noise * rng.standard_normal((heads, D, D))
    KQ[:, :, :d] = noise * rng.standard_normal((heads, D, d))
    KQ[:, :d, :d] += KQ_11
    OV[:, d:] = 0
    OV[:, range(d, D), range(d, D)] = mu
    between_qk, between_vo = _invertible(heads, D, rng), _invertible(heads, D, rng)
    factors = {
        "W_Q": between_qk,
        "W_K": config.score_scale * KQ @ np.linalg.inv(between_qk).transpose(0, 2, 1),
        "W_V": between_vo,
        "W_O": np.linalg.inv(between_vo) @ OV.transpose(0, 2, 1),
    }
    return {name: torch.from_numpy(factor[None]).float() for name, factor in factors.items()}


def _invertible(heads: int, size: int, rng: np.random.Generator) -> Float[np.ndarray, "heads size size"]:
    """Random matrices with singular values between 1/2 and 2: far from orthogonal, never near singular."""
    left, right = (np.linalg.qr(rng.standard_normal((heads, size, size)))[0] for _ in range(2))
    return left * np.exp2(rng.uniform(-1, 1, (heads, 1, size))) @ right
