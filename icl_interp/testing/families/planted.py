"""Families of one response of which claims are true: heads on the solution manifold, alone at their best, along Γ_deb.

Perturbations of up to two percent leave every claim true; what the claims allow decides where members may lie (see
`members.draw_task` and `members.draw_gamma`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from icl_interp import theory
from icl_interp.estimators import best_kernel
from icl_interp.roles import reference_shape
from icl_interp.tasks import LinearRegression, kms
from icl_interp.testing.families.members import (
    CIRCUITS,
    FAITHFUL,
    FIT,
    LENGTH,
    LOSS,
    OPTIMALITY,
    RATE,
    RISK,
    ROLES,
    SIGNS_AND_SUMS,
    STEP,
    claims,
    draw_gamma,
    draw_roles,
    draw_task,
    drawn_family,
    hiding,
    known_of,
    log_uniform,
    opposite_heads,
    plant_heads,
)
from icl_interp.testing.known import Known
from icl_interp.testing.perturbing import KINDS
from icl_interp.testing.planting import plant

ALL = (*CIRCUITS, *ROLES, *FIT, *FAITHFUL, *RISK, *LENGTH, *OPTIMALITY, *LOSS, *RATE)
LARGEST = 0.02
# What is left of heads that cancel, and of what mean heads attend to, is as large as the perturbation of them all: at
# 0.005 it is a tenth of what would give them another role.
LARGEST_WHERE_HEADS_CANCEL = 0.005
# "scale" moves η and Σμ themselves, which are allowed 3 % of their size; the gap to debiased GD, of third order in γ,
# would show a Σμ of 0.5 %.
OF_SCALE = 0.05
# "covariates" adds up over heads, and on prompts whose covariates are shifted or outlying it is what is left to see.
OF_COVARIATES = 0.4
# Of Γ_deb, on the lines to Σ⁻¹ and to Γ*.
AT_THE_BEST = {"preconditioner.readings.0.to_inverse": 0.0, "preconditioner.readings.0.to_plain": 0.0}
ONE_HEAD_PROMPTS = 8_192  # the optimum is found to 1 % on them, of the 5 % that the claim allows


@drawn_family(
    "planted",
    "heads on the solution manifold, some of them idle, averaging or cancelling, perturbed by 2 % at most",
    holds=ALL,
)
def _planted(rng: np.random.Generator) -> Known:
    task, roles = draw_task(rng), draw_roles(rng)
    size, kind = _small_perturbation(rng, roles)
    model = plant(task, roles=roles, gamma=draw_gamma(rng, task), noise=size, perturbation=kind, **hiding(rng))
    return known_of(model, size)


@drawn_family("perturbed", "heads on the solution manifold, perturbed by 2 % up to as much as they are")
def _perturbed(rng: np.random.Generator) -> Known:
    task, size = draw_task(rng, dims=(3, 6), lengths=(5, 10)), log_uniform(rng, 0.02, 1)
    model = plant(
        task,
        roles=draw_roles(rng),
        gamma=draw_gamma(rng, task, 0.15, 0.5),
        noise=size,
        perturbation=str(rng.choice(KINDS)),
        **hiding(rng),
    )
    return known_of(model, size)


@drawn_family(
    "planted_alone",
    "a single head at the optimum of the risk, of either sign, perturbed by 0.5 % at most",
    holds=(*CIRCUITS, *ROLES, *FAITHFUL, "kernel_fit.one_head_optimum", "length_generalization.risk_falls_with_length"),
)
def _planted_alone(rng: np.random.Generator) -> Known:
    task, size = draw_task(rng), log_uniform(rng, 0.0005, 0.005)
    omega, mu = one_head_optimum(task, rng)
    kind = str(rng.choice([kind for kind in KINDS if kind != "scale"]))
    model = plant_heads(rng, task, np.array([omega]), np.array([mu]), size=size, kind=kind)
    return known_of(model, size)


def one_head_optimum(task: LinearRegression, rng: np.random.Generator) -> tuple[float, float]:
    """(ω, μ) of least risk for a single head; its mirror image (−ω, −μ) half of the time."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    best = best_kernel(task.sample(ONE_HEAD_PROMPTS, generator=generator), scaled=True, task=task)
    sign = float(rng.choice([-1, 1]))
    return sign * best.omega, sign * best.mu


@drawn_family(
    "planted_preconditioner",
    "heads along the optimal preconditioner of correlated covariates, with the optimal step, and late iterates of them",
    holds=(
        *claims("preconditioner", "not_the_inverse_covariance", "optimal_preconditioner", "shared_preconditioner"),
        *claims("circuit_pattern", "kq_identity", "kq_21_zero", "ov_21_zero"),
        *ROLES,
        *SIGNS_AND_SUMS,
        *STEP,
        *FAITHFUL,
        *RISK,
        *LENGTH,
        *claims("optimality", "step_of_least_risk", "risk_near_best_debiased_gd"),
        *RATE,
    ),
)
def _planted_preconditioner(rng: np.random.Generator) -> Known:
    task = draw_correlated_task(rng)
    omega, mu = heads_along(rng, task, reference_shape(task, task.dim))
    known = known_of(plant_heads(rng, task, omega, mu, course="settled"), numbers=AT_THE_BEST)
    # With its entries off G, KQ_11 has another ω under Σ than by its diagonal, and μ as a function makes up for that.
    known_so = {path: number for path, number in known.numbers.items() if not path.startswith("kernel_fit.mu")}
    return dataclasses.replace(known, numbers=known_so)


@drawn_family(
    "planted_short_prompts",
    "heads along Γ_deb, read where prompts are so short and covariates so correlated that Γ* is another matrix",
    holds=claims("preconditioner", "not_the_inverse_covariance", "optimal_preconditioner", "debiased_preconditioner"),
)
def _planted_short_prompts(rng: np.random.Generator) -> Known:
    task = draw_short_task(rng)
    omega, mu = heads_along(rng, task, reference_shape(task, task.dim), 0.02, 0.06)
    return known_of(plant_heads(rng, task, omega, mu, course="settled"), numbers=AT_THE_BEST)


def draw_correlated_task(rng: np.random.Generator) -> LinearRegression:
    """Covariates of neighbours correlated by 0.4 to 0.7, or of any covariance with eigenvalues between 0.4 and 2.5.

    With less Σ⁻¹ is within 0.05 of Γ_deb, and late iterates hardly tell them apart.
    """
    task = draw_task(rng)
    if rng.integers(2):
        return dataclasses.replace(task, covariance=kms(float(rng.uniform(0.4, 0.7))))
    return dataclasses.replace(task, covariance=random_covariance(rng, task.dim, 2.5))


def draw_short_task(rng: np.random.Generator) -> LinearRegression:
    """L = 3 and eigenvalues of Σ from 1/8 to 8: Γ_deb and Γ* are 0.045 apart, their distance being of order 1/L."""
    dim = int(rng.integers(6, 9))
    return LinearRegression(dim, 3, round(log_uniform(rng, 0.05, 0.2), 4), random_covariance(rng, dim, 8.0))


def random_covariance(rng: np.random.Generator, dim: int, spread: float) -> np.ndarray:
    """Eigenvalues from 1/spread to spread, evenly spaced in their logarithms up to a random shift; any eigenvectors."""
    vectors = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    logs = np.linspace(-1, 1, dim) + rng.uniform(-0.5, 0.5, dim) / dim
    sigma = vectors @ np.diag(spread ** np.clip(logs, -1, 1)) @ vectors.T
    return (sigma + sigma.T) / 2


def heads_along(
    rng: np.random.Generator, task: LinearRegression, shape: np.ndarray, low: float = 0.15, high: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """(ω, μ) of opposite heads along `shape`, of the best step along it; scores scatter by `low` to `high`."""
    sigma = task.sigma
    gamma = float(rng.uniform(low, high) / np.trace(shape @ sigma @ shape.T @ sigma) ** 0.5)
    return opposite_heads(rng, gamma, best_step_along(task, shape) / (2 * gamma))


def best_step_along(task: LinearRegression, shape: np.ndarray) -> float:
    """The step of debiased GD along `shape` of least risk, which is quadratic in the step."""
    at_0, at_1, at_2 = (
        theory.preconditioned_debiased_gd_risk(
            step * shape, task.sigma, length=task.length, noise_var=task.noise_var, signal_var=task.signal_var
        )
        for step in (0.0, 1.0, 2.0)
    )
    curvature, slope = at_2 - 2 * at_1 + at_0, (4 * at_1 - 3 * at_0 - at_2) / 2
    return -slope / curvature


@drawn_family(
    "planted_activation",
    "heads of 1 + Cx, (1 + Cx)² and 1 + tanh Cx whose scores are so small that (5.2) is true of them",
    holds=(
        *CIRCUITS,
        *ROLES,
        *SIGNS_AND_SUMS,
        *claims("faithfulness", "ideal_heads_explain", "ablations_agree"),
        *RATE,
        *claims("activation", "denominators_safe"),
    ),
)
def _planted_activation(rng: np.random.Generator) -> Known:
    task, name, scale = draw_task(rng), str(rng.choice(["affine", "square", "tanh"])), float(rng.uniform(0.5, 1))
    slope = scale * (2 if name == "square" else 1)
    # The gain of the last two falls with ‖x_q‖, by (d + 2)(Cω)² or so: a percent at most.
    gamma = draw_gamma(rng, task, 0.03, 0.08) if name != "affine" else draw_gamma(rng, task, 0.05, 0.15)
    roles = rng.permutation(["positive"] * int(rng.integers(1, 3)) + ["negative"] * int(rng.integers(1, 3)))
    size = log_uniform(rng, 0.001, 0.005)
    model = plant(
        task, roles=roles.tolist(), gamma=gamma / scale, activation=name, activation_scale=scale, noise=size,
        **hiding(rng),
    )  # fmt: skip
    return known_of(model, size, slope=slope)


def _small_perturbation(rng: np.random.Generator, roles: list[str]) -> tuple[float, str]:
    kind = str(rng.choice(KINDS))
    cancels = "cancelling" in roles or "mean" in roles
    size = log_uniform(rng, 0.001, LARGEST_WHERE_HEADS_CANCEL if cancels else LARGEST)
    return size * {"scale": OF_SCALE, "covariates": OF_COVARIATES}.get(kind, 1.0), kind
