"""Checkpoints that share heads between tasks in a known mode (arXiv 2503.12734, section 5.4; modes as in `sharing`).

To first order every mode is a table E of steps, and heads (ω, μ) with Σ_h μ_n^h ω_i^h = E_ni; all of them are drawn at
random among those that make it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from icl_interp.config import ModelConfig, check_positive
from icl_interp.errors import ConfigError
from icl_interp.records import Run
from icl_interp.sharing import Mode, expected_groups, own_steps, shared_steps
from icl_interp.tasks import MultiTaskRegression
from icl_interp.testing import perturbing
from icl_interp.testing.planting import hidden_weights

_Heads = tuple[Float[np.ndarray, "heads features"], Float[np.ndarray, "heads tasks"]]


@dataclass(frozen=True, eq=False)
class PlantedTasks:
    """A run, and what is true of it.

    Args:
        run: the checkpoint.
        mode: how its tasks share heads.
        groups: features that go together.
        omega, mu: KQ_11's and OV_22's diagonals, before anything was added to KQ_11; as heads are ordered in it.
    """

    run: Run
    mode: Mode
    groups: tuple[tuple[int, ...], ...]
    omega: Float[np.ndarray, "heads features"]
    mu: Float[np.ndarray, "heads tasks"]


def plant_tasks(
    task: MultiTaskRegression | None = None,
    mode: Mode = "IV",
    *,
    n_heads: int | None = None,
    gamma: float = 0.13,
    permute: bool = True,
    condition: float = 4.0,
    inert_noise: float = 1.0,
    noise: float = 0.0,
    perturbation: str = "random",
    seed: int = 0,
) -> PlantedTasks:
    """A one-layer softmax model whose heads serve the tasks in a given mode.

    I: heads of one sign, which split the μ of one.  II: heads of both signs, shared by all tasks, with the steps of
    `theory.shared_steps`.  III: the same for each task alone, with `theory.superposition_steps`.  IV: a random solution
    of (A.3)–(A.4) in which every head may serve every task.

    Args:
        task: None means the paper's: d = 6, two supports of four features that share two, L = 48, σ² = 0.1.
        mode: one of "I", "II", "III", "IV".
        n_heads: None means as few as the mode takes: 1, 2, 2N or N + 1.
        gamma: the size of ω (root mean square over the features that a head asks for).
        permute: put the heads, the features and the tasks in a random order; the run's task is permuted alike.
        condition: of the matrices between Q and K, and between V and O, as for `plant`.
        inert_noise: scale of the numbers in parts that no prediction sees.
        noise: size of a perturbation, relative to the largest |ω| (or |μ|); see `icl_interp.testing.perturbing`.
        perturbation: its kind.  "random" is relative to γ in KQ, and is of OV_22's diagonal too, relative to each of
            its entries.
        seed: of everything random.

    Raises:
        ConfigError: another mode, too few heads for it, or tasks that cannot be told apart where the mode does; another
            kind of perturbation, or a condition below 1.
    """
    task = task or MultiTaskRegression(6, [(0, 1, 2, 3), (2, 3, 4, 5)], length=48, noise_var=0.1)
    perturbing.check_kind(perturbation, task.dim)
    check_positive("noise", noise, zero=True)
    rng = np.random.default_rng(seed)
    task = _permuted(task, rng) if permute else task
    fewest = _fewest(task, mode)
    heads = fewest if n_heads is None else n_heads
    if heads < fewest:
        raise ConfigError(f"mode {mode} of {task.n_outputs} tasks takes {fewest} heads, got {heads}")
    omega, mu = _HEADS[mode](task, heads, gamma, rng)
    if permute:
        order = rng.permutation(heads)
        omega, mu = omega[order], mu[order]
    if perturbation == "random":
        mu = mu * (1 + noise * rng.standard_normal(mu.shape))
    elif perturbation == "scale":
        omega, mu = perturbing.rescaled(omega, mu, noise, rng)
    absolute = float(perturbing.absolute(perturbation, noise, omega.ravel(), mu.ravel()))
    size = noise * gamma if perturbation == "random" else absolute
    config = ModelConfig(task.dim, task.n_outputs, heads)
    weights = hidden_weights(
        config,
        omega[:, None, :] * np.eye(task.dim),
        mu,
        inert_noise,
        size,
        rng,
        perturbation=perturbation,
        condition=condition,
    )
    run = Run(config, weights, task=task, origin=f"planted in mode {mode} with seed {seed}")
    return PlantedTasks(run, mode, expected_groups(task, mode), omega, mu)


def _fewest(task: MultiTaskRegression, mode: Mode) -> int:
    """Heads that the mode takes."""
    N = task.n_outputs
    if mode not in _HEADS:
        raise ConfigError(f"modes to plant are {', '.join(map(repr, _HEADS))}, got {mode!r}")
    if mode in ("III", "IV") and (N < 2 or len(set(task.supports)) < N):
        raise ConfigError(f"mode {mode} tells tasks apart: it takes two at least, each with a support of its own")
    return {"I": 1, "II": 2, "III": 2 * N, "IV": N + 1}[mode]


def _one_sign(task: MultiTaskRegression, heads: int, gamma: float, rng: np.random.Generator) -> _Heads:
    """One kernel regressor, ω larger on the features that more tasks use, split among heads; its step is half of II's.

    γ is not used: a kernel that is not debiased by another has to be narrow, ω ≈ 1/√d (4.12).
    """
    profile = _profile(task)
    omega = rng.choice([-1, 1]) * profile / np.sqrt((profile > 0).sum())
    step = 0.5 * shared_steps(task).max()
    mu = np.tile(step / omega[np.abs(omega).argmax()], task.n_outputs)
    return np.tile(omega, (heads, 1)), _parts(heads, rng)[:, None] * mu


def _both_signs(task: MultiTaskRegression, heads: int, gamma: float, rng: np.random.Generator) -> _Heads:
    omega, mu = _opposite(gamma * _profile(task), shared_steps(task).max(), heads, rng)
    return omega, np.tile(mu[:, None], (1, task.n_outputs))


def _own_heads(task: MultiTaskRegression, heads: int, gamma: float, rng: np.random.Generator) -> _Heads:
    steps, N = own_steps(task), task.n_outputs
    omega, mu = np.zeros((heads, task.dim)), np.zeros((heads, N))
    for n, own in enumerate(np.array_split(np.arange(heads), N)):
        omega[own], mu[own, n] = _opposite(gamma * (steps[n] > 0), steps[n].max(), len(own), rng)
    return omega, mu


def _superposed(task: MultiTaskRegression, heads: int, gamma: float, rng: np.random.Generator) -> _Heads:
    """μ with random orthogonal columns that sum to zero, and the smallest ω that make the steps of them."""
    steps = own_steps(task)
    centred = rng.standard_normal((heads, task.n_outputs))
    directions = np.linalg.qr(centred - centred.mean(0))[0]
    omega = directions @ steps
    size = gamma / np.sqrt((omega[omega != 0] ** 2).mean())
    return omega * size, directions / size


_HEADS = {"I": _one_sign, "II": _both_signs, "III": _own_heads, "IV": _superposed}


def _opposite(omega: np.ndarray, step: float, heads: int, rng: np.random.Generator) -> _Heads:
    """Heads at ±ω that together make the step where ω is largest; each sign's μ is split at random."""
    positive = heads // 2 + (heads % 2 and int(rng.integers(2)))
    sign = np.where(np.arange(heads) < positive, 1, -1)
    total = step / (2 * np.abs(omega).max())
    mu = np.concatenate([total * _parts(positive, rng), -total * _parts(heads - positive, rng)])
    return sign[:, None] * omega, mu


def _parts(count: int, rng: np.random.Generator) -> np.ndarray:
    """Random parts of 1."""
    parts = rng.uniform(0.5, 1.5, count)
    return parts / parts.sum()


def _profile(task: MultiTaskRegression) -> np.ndarray:
    """`theory.shared_steps`, relative to the root mean square over the features that are used."""
    steps = shared_steps(task)
    return steps / np.sqrt((steps[steps > 0] ** 2).mean())


def _permuted(task: MultiTaskRegression, rng: np.random.Generator) -> MultiTaskRegression:
    """The task with its features and its responses in another order."""
    place = rng.permutation(task.dim)
    supports = [tuple(place[list(task.supports[n])].tolist()) for n in rng.permutation(task.n_outputs)]
    return replace(task, supports=supports)
