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
from numpy.typing import ArrayLike

from icl_interp import activations
from icl_interp.config import ModelConfig, check_positive
from icl_interp.errors import ConfigError
from icl_interp.manifold import manifold_mu, optimal_step
from icl_interp.records import Dynamics, Run
from icl_interp.roles import Role, reference_shape
from icl_interp.tasks import LinearRegression
from icl_interp.testing import perturbing
from icl_interp.testing.courses import Course, draw_course
from icl_interp.training.recording import Recorder
from icl_interp.weights import Weights

ROLES = ("positive", "negative", "dummy", "mean", "cancelling")


@dataclass(frozen=True, eq=False)
class Planted:
    """A run, and what is true of its heads, as they are ordered in it.

    Args:
        run: the checkpoint.
        roles: as `roles.classify` names them, before they were perturbed.
        omega, mu: KQ_11 = ω·G and OV_22 = μ, before anything was added to them ("scale" is in them already).  Iterates
            in the last fifth of a course scatter about them, the last one too.
    """

    run: Run
    roles: tuple[Role, ...]
    omega: Float[np.ndarray, "heads"]
    mu: Float[np.ndarray, "heads"]


def plant(
    task: LinearRegression | None = None,
    *,
    roles: Sequence[str] | None = None,
    gamma: float = 0.13,
    omega: Sequence[float] | None = None,
    mu: Sequence[float] | None = None,
    preconditioner: ArrayLike | None = None,
    supports: ArrayLike | None = None,
    activation: str = "softmax",
    activation_scale: float = 1.0,
    permute: bool = True,
    condition: float = 4.0,
    inert_noise: float = 1.0,
    noise: float = 0.0,
    perturbation: str = "random",
    course: str | None = None,
    seed: int = 0,
) -> Planted:
    """A one-layer model of ideal heads, (3.1) of arXiv 2503.12734: KQ_11 = ω·G, OV_22 = μ.

    Either `roles`, which puts the model on the solution manifold at `gamma` (4.7): ω = ±γ, each sign sharing ±μ_γ in
    random parts, and two or more mean heads cancelling; or `omega` and `mu`, taken as they are.  Under another
    activation than softmax, for which μ_γ has no formula, the heads' μ make η* of their ω to first order (5.2).

    Args:
        task: None means the paper's main setting.
        roles: "positive", "negative", "dummy", "mean" or "cancelling", one a head.  Cancelling heads come in pairs of
            one ω and opposite μ: each matters alone, both do nothing together, and so they are dummies.  Their |μ| is
            1.3 to 2 times μ_γ, so that no head of another role can be taken for one of a pair.  A perturbation is of
            each head its own, so it leaves them something to do, about as large as it is.
        gamma: |ω|.
        omega, mu: one number a head.
        preconditioner: G, shape (d, d), any, or one a head, shape (heads, d, d); None means `roles.reference_shape`.
        supports: shape (heads, d), true where a head looks at the feature; its KQ_11 is zero in the rows and columns of
            the others.  None means all features.
        activation, activation_scale: how scores become weights (`ModelConfig`).
        permute: put the heads in a random order.
        condition: the matrices between Q and K, and between V and O, have singular values between 1/√condition and
            √condition; 1 means rotations.  Weights are float32: circuits are off by some 1e-7·condition.
        inert_noise: scale of the numbers in parts that no prediction sees.
        noise: size of a perturbation, relative to the largest |ω| (or |μ|); see `icl_interp.testing.perturbing`.
        perturbation: its kind: "random", "diagonal", "off_diagonal", "antisymmetric", "low_rank", "labels",
            "covariates" or "scale".
        course: how the model is said to have been trained; see `icl_interp.testing.courses`.  None means that there is
            no record of it.
        seed: of everything random.

    Raises:
        ConfigError: neither or both of `roles` and (`omega`, `mu`), roles that there are not, cancelling heads without
            partner, roles for linear attention, matrices of other sizes than the model's, a condition below 1, another
            kind of perturbation or course, or a course that the flow on the approximate loss has none like.
    """
    task = task or LinearRegression(dim=5, length=40, noise_var=0.1)
    perturbing.check_kind(perturbation, task.dim)
    check_positive("noise", noise, zero=True)
    rng = np.random.default_rng(seed)
    w, m, named = _heads(task, roles, gamma, (omega, mu), (activation, activation_scale), rng)
    shapes = _shapes(task, len(w), preconditioner, supports)
    if permute:
        order = rng.permutation(len(w))
        w, m, shapes, named = w[order], m[order], shapes[order], tuple(named[h] for h in order)
    if perturbation == "scale":
        w, m = perturbing.rescaled(w, m, noise, rng)
    config = ModelConfig(task.dim, n_heads=len(w), activation=activation, activation_scale=activation_scale)
    path = None if course is None else _course(course, config, task, w, m, seed)
    at_w, at_m = (w, m) if path is None else (path.omega, path.mu)
    weights = hidden_weights(
        config,
        w[:, None, None] * shapes if path is None else path.KQ_11(shapes),
        at_m[..., None],
        inert_noise,
        perturbing.absolute(perturbation, noise, at_w, at_m),
        rng,
        perturbation=perturbation,
        condition=condition,
    )
    return Planted(_run(config, task, weights, path, f"planted with seed {seed}"), named, w, m)


def _run(config: ModelConfig, task: LinearRegression, weights: Weights, path: Course | None, origin: str) -> Run:
    """With a course, whose weights are of every record, the run is at the last one."""
    if path is None:
        return Run(config, weights, task, origin=origin)
    record, last = _recorded(path, weights, config), int(path.steps[-1])
    return Run(config, record.weights(last), task, dynamics=record, step=last, origin=origin)


def _course(
    name: str, config: ModelConfig, task: LinearRegression, omega: np.ndarray, mu: np.ndarray, seed: int
) -> Course:
    """Drawn apart from all else, so that a model is hidden in the same way with a course as without."""
    if config.activation != "softmax" and name != "settled":
        raise ConfigError(f"this course can be planted under softmax attention only, got {config.activation!r}")
    return draw_course(name, task, omega, mu, np.random.default_rng((seed, 1)))


def _recorded(path: Course, weights: Weights, config: ModelConfig) -> Dynamics:
    """As a training would have recorded it."""
    recorder = Recorder(config, path.steps.tolist())
    for i, (step, loss) in enumerate(zip(path.steps.tolist(), path.loss.tolist(), strict=True)):
        recorder.record(step, loss, {name: tensor[i] for name, tensor in weights.items()})
    return recorder.join([recorder.part()])


def _heads(
    task: LinearRegression,
    roles: Sequence[str] | None,
    gamma: float,
    given: tuple[Sequence[float] | None, Sequence[float] | None],
    activation: tuple[str, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, tuple[Role, ...]]:
    """ω, μ and the role of every head, as they were asked for."""
    omega, mu = given
    if (roles is None) == (omega is None or mu is None):
        raise ConfigError("give either roles, or omega and mu")
    if roles is not None:
        w, m = _on_manifold(roles, gamma, _target(task, gamma, *activation), rng)
    else:
        w, m = np.array(omega, dtype=float), np.array(mu, dtype=float)
    if w.shape != m.shape or w.ndim != 1 or not len(w):
        raise ConfigError(f"omega and mu must be equally many numbers, got shapes {w.shape} and {m.shape}")
    return w, m, _roles(w, m, roles)


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
    roles: Sequence[str], gamma: float, target: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if unknown := set(roles) - set(ROLES):
        raise ConfigError(f"roles to plant are {', '.join(map(repr, ROLES))}, got {sorted(unknown)}")
    names = np.array(roles)
    positive, negative, mean, cancelling = (
        np.flatnonzero(names == role) for role in ("positive", "negative", "mean", "cancelling")
    )
    if len(cancelling) % 2:
        raise ConfigError(f"cancelling heads come in pairs, got {len(cancelling)}")
    omega, mu = np.zeros(len(names)), np.zeros(len(names))
    omega[positive], omega[negative] = gamma, -gamma
    for members, total in ((positive, target), (negative, -target), (mean[::2], target), (mean[1::2], -target)):
        parts = rng.uniform(0.5, 1.5, len(members))
        mu[members] = total * parts / parts.sum()
    for pair in cancelling.reshape(-1, 2):
        omega[pair] = gamma * rng.choice([-1, 1])
        mu[pair] = np.array([1, -1]) * target * rng.uniform(1.3, 2)
    return omega, mu


def _roles(omega: np.ndarray, mu: np.ndarray, given: Sequence[str] | None) -> tuple[Role, ...]:
    """By ω and μ, but for cancelling heads, which their own do not tell."""
    apart = [given is not None and given[h] == "cancelling" for h in range(len(omega))]
    return tuple("dummy" if c else _role(*pair) for c, *pair in zip(apart, omega, mu, strict=True))


def _role(omega: float, mu: float) -> Role:
    if mu == 0:
        return "dummy"
    return "mean" if omega == 0 else "positive" if omega > 0 else "negative"


def _shapes(
    task: LinearRegression, heads: int, preconditioner: ArrayLike | None, supports: ArrayLike | None
) -> Float[np.ndarray, "heads dim dim"]:
    """KQ_11 / ω of every head."""
    d = task.dim
    shape = reference_shape(task, d) if preconditioner is None else np.array(preconditioner, dtype=float)
    if shape.shape not in ((d, d), (heads, d, d)) or not np.isfinite(shape).all():
        raise ConfigError(f"preconditioner must be {d} × {d} finite numbers, or so a head, got shape {shape.shape}")
    seen = np.ones((heads, d)) if supports is None else np.array(supports)
    if seen.shape != (heads, d) or not np.isin(seen, (0, 1)).all():
        raise ConfigError(f"supports must be {heads} × {d} truth values, got shape {seen.shape}")
    return seen[:, :, None] * shape * seen[:, None, :]


def hidden_weights(
    config: ModelConfig,
    KQ_11: Float[np.ndarray, "*steps heads dim dim"],
    mu: Float[np.ndarray, "*steps heads outputs"],
    inert_noise: float,
    noise: float | Float[np.ndarray, "*steps"],
    rng: np.random.Generator,
    *,
    perturbation: str = "random",
    condition: float = 4.0,
) -> Weights:
    """Weights of these circuits, factored at random; of many steps of a training, all factored in the same way.

    Args:
        config: of a model of one layer.
        KQ_11, mu: the ideal circuits.
        inert_noise: scale of what is inert.
        noise: size of the perturbation in units of what it is added to (`perturbing.absolute`).
        rng: of everything random.
        perturbation: its kind.
        condition: of the factors (see `plant`).

    Raises:
        ConfigError: a condition below 1, or another kind of perturbation.
    """
    d, D, heads = config.dim, config.d_model, config.n_heads
    if not 1 <= condition < np.inf:
        raise ConfigError(f"condition must be a finite number ≥ 1, got {condition!r}")
    inert_KQ, inert_OV = inert_noise * rng.standard_normal((2, heads, D, D))
    added = perturbing.term(perturbation, rng, heads, d, config.n_outputs)
    size = np.asarray(noise)[..., None, None, None]
    KQ, OV = (np.broadcast_to(inert, (*mu.shape[:-1], D, D)).copy() for inert in (inert_KQ, inert_OV))
    KQ[..., :d] = size * added.KQ
    KQ[..., :d, :d] += KQ_11
    OV[..., d:, :] = 0
    OV[..., d:, :d] = size * added.OV_21
    OV[..., range(d, D), range(d, D)] = mu
    between_qk, between_vo = _invertible(heads, D, condition, rng), _invertible(heads, D, condition, rng)
    factors = {
        "W_Q": between_qk,
        "W_K": config.score_scale * KQ @ np.linalg.inv(between_qk).transpose(0, 2, 1),
        "W_V": between_vo,
        "W_O": np.linalg.inv(between_vo) @ OV.swapaxes(-1, -2),
    }
    return {
        name: torch.from_numpy(np.broadcast_to(factor, KQ.shape)[..., None, :, :, :].copy()).float()
        for name, factor in factors.items()
    }


def _invertible(
    heads: int, size: int, condition: float, rng: np.random.Generator
) -> Float[np.ndarray, "heads size size"]:
    """Random matrices; as is the condition, so far from orthogonal and so near singular."""
    left, right = (np.linalg.qr(rng.standard_normal((heads, size, size)))[0] for _ in range(2))
    return left * np.exp2(np.log2(condition) / 2 * rng.uniform(-1, 1, (heads, 1, size))) @ right
