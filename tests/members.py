"""Members of the families built by formula, and what their weights say."""

from __future__ import annotations

from functools import cache

import numpy as np

from icl_interp import theory
from icl_interp.circuits import Circuits
from icl_interp.manifold import Groups, optimal_step
from icl_interp.tasks import LinearRegression, MultiTaskRegression
from icl_interp.testing import Known, known_families

FAMILIES = {name: family for name, family in known_families().items() if not family.trained}
SLOW = [name for name in FAMILIES if "course" in name or name in ("planted_alone", "wrong_alone", "same_sign")]
MARGIN = 1.25  # what is violated is a quarter beyond its threshold at least


@cache
def members(name: str) -> tuple[Known, ...]:
    return tuple(FAMILIES[name].members(range(3 if name in SLOW else 16), None))


def circuits_of(known: Known) -> Circuits:
    return Circuits.from_weights(known.run.weights, known.run.model_config)


def heads_of(known: Known) -> tuple[np.ndarray, np.ndarray, Groups]:
    """ω, μ and the groups of positive and negative heads, as the weights have them."""
    circuits = circuits_of(known)
    omega, mu = circuits.diagonal[0].mean(-1), circuits.mu[0, :, 0]
    return omega, mu, Groups(omega > 1e-4, omega < -1e-4)


def regression(known: Known) -> LinearRegression:
    assert isinstance(known.run.task, LinearRegression)
    return known.run.task


def tasks_of(known: Known) -> MultiTaskRegression:
    assert isinstance(known.run.task, MultiTaskRegression)
    return known.run.task


def best_debiased_risk(task: LinearRegression) -> float:
    star = optimal_step(task)
    assert star is not None
    return theory.debiased_gd_risk(star, dim=task.dim, length=task.length, noise_var=task.noise_var)


def read_preconditioner(known: Known) -> np.ndarray:
    """The mean over late iterates, where there is a record."""
    record = known.run.dynamics
    circuits = [circuits_of(known)] if record is None else [known.run.circuits(step) for step in record.late_steps()]
    return np.mean([np.einsum("h,hij->ij", each.mu[0, :, 0], each.KQ_11[0]) for each in circuits], axis=0)
