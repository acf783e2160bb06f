"""Families under correlated covariates whose heads do not attend along Γ_deb, the best debiased preconditioner."""

from __future__ import annotations

import dataclasses

import numpy as np

from icl_interp import theory
from icl_interp.roles import reference_shape
from icl_interp.tasks import LinearRegression, kms
from icl_interp.testing.families.members import claims, draw_task, drawn_family, plant_heads
from icl_interp.testing.families.planted import draw_short_task, heads_along, random_covariance
from icl_interp.testing.known import Known

SHARED = claims("preconditioner", "shared_preconditioner")
OPTIMAL = claims("preconditioner", "optimal_preconditioner")
NOT_INVERSE = claims("preconditioner", "not_the_inverse_covariance")


@drawn_family(
    "preconditioner_identity",
    "heads along the identity under correlated covariates, with the best step along it",
    holds=SHARED,
    violates=(*OPTIMAL, "circuit_pattern.kq_identity", "optimality.risk_near_best_debiased_gd"),
)
def _identity(rng: np.random.Generator) -> Known:
    task = _correlated(rng)
    return _along(rng, task, np.eye(task.dim))


@drawn_family(
    "preconditioner_inverse",
    "heads along the inverse of the covariance, with the best step along it",
    holds=SHARED,
    violates=(*NOT_INVERSE, *OPTIMAL),
)
def _inverse(rng: np.random.Generator) -> Known:
    task = _correlated(rng)
    return _along(rng, task, np.linalg.inv(task.sigma))


@drawn_family(
    "preconditioner_plain",
    "heads along Γ*, the best preconditioner of plain GD, where prompts are short enough to tell it from Γ_deb",
    holds=NOT_INVERSE,
    violates=claims("preconditioner", "debiased_preconditioner"),
)
def _plain(rng: np.random.Generator) -> Known:
    task = draw_short_task(rng)
    gamma = theory.gd_preconditioner(task.sigma, length=task.length, noise_var=task.noise_var)
    omega, mu = heads_along(rng, task, gamma, 0.02, 0.06)
    model = plant_heads(rng, task, omega, mu, shape=gamma, course="settled")
    return Known(model.run, numbers={"preconditioner.readings.0.to_plain": 1.0})


@drawn_family(
    "preconditioner_split",
    "positive heads along Γ_deb and negative ones along the identity, or the other way round",
    violates=SHARED,
)
def _split(rng: np.random.Generator) -> Known:
    task = _correlated(rng)
    shape = reference_shape(task, task.dim)
    omega, mu = heads_along(rng, task, shape)
    plain = np.sign(omega) == rng.choice([-1, 1])
    shapes = np.where(plain[:, None, None], np.eye(task.dim), shape)
    return Known(plant_heads(rng, task, omega, mu, shape=shapes, course="settled").run)


def _correlated(rng: np.random.Generator) -> LinearRegression:
    """Neighbours correlated by 0.45 to 0.75, or eigenvalues between 1/3 and 3."""
    task = draw_task(rng)
    sigma = kms(float(rng.uniform(0.45, 0.75))) if rng.integers(2) else random_covariance(rng, task.dim, 3.0)
    return dataclasses.replace(task, covariance=sigma)


def _along(rng: np.random.Generator, task: LinearRegression, shape: np.ndarray) -> Known:
    omega, mu = heads_along(rng, task, shape)
    return Known(plant_heads(rng, task, omega, mu, shape=shape, course="settled").run)
